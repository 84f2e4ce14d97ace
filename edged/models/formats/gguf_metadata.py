"""GGUF files without tensors: a packed folder keeps the metadata of the file that it was made from as one."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any


def write_metadata(path: Path, metadata: dict[str, Any]) -> None:
    """A GGUF file with this metadata and no tensors (layout: ggml's `docs/gguf.md`, version 3)."""
    codes: dict[type, tuple[int, str]] = {bool: (7, "?"), int: (11, "q"), float: (12, "d")}
    unsigned = (10, "Q")

    def text(value: str) -> bytes:
        encoded = value.encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(encoded)) + encoded

    def value(item: Any) -> bytes:
        if isinstance(item, str):
            return struct.pack("<I", 8) + text(item)
        if isinstance(item, list):
            first = item[0] if item else ""
            if isinstance(first, str):
                return struct.pack("<IIQ", 9, 8, len(item)) + b"".join(map(text, item))
            code, form = unsigned if type(first) is int and max(item) >= 1 << 63 else codes[type(first)]
            return struct.pack(f"<IIQ{len(item)}{form}", 9, code, len(item), *item)
        code, form = unsigned if type(item) is int and item >= 1 << 63 else codes[type(item)]
        return struct.pack("<I" + form, code, item)

    parts = [b"GGUF", struct.pack("<IQQ", 3, 0, len(metadata))]
    parts += [text(key) + value(item) for key, item in metadata.items()]
    path.write_bytes(b"".join(parts))
