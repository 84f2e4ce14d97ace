"""A tiny GGUF file of every type and of every family."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edged.models.packing.gguf_source import QUANTIZED
from tests.native.families import FAMILIES, write_gguf
from tests.native.gguf_types import write_model
from tests.native.helpers import tiny_checkpoint


def typed_files(folder: Path) -> dict[str, Path]:
    """One file for each type, and one of a mixture in which gate and up differ; by type."""
    paths = {kind: folder / f"type-{kind.lower()}.gguf" for kind in (*QUANTIZED, "F16", "BF16", "F32")}
    for kind, path in paths.items():
        write_model(path, {}, kind)
    mixed = folder / "types-mixed.gguf"
    write_model(mixed, {"ffn_up": "Q5_0", "attn_v": "Q6_K", "token_embd": "Q8_0", "output": "BF16"}, "Q4_K")
    return paths | {"mixed": mixed}


def family_files(folder: Path) -> dict[str, Path]:
    """One file for each entry of FAMILIES, by its name."""
    paths = {}
    for entry, (family, changes) in FAMILIES.items():
        with tempfile.TemporaryDirectory() as checkpoint:
            model = tiny_checkpoint(Path(checkpoint), family, **changes)
        paths[entry] = write_gguf(model, folder / f"family-{entry.replace(', ', '-').replace(' ', '-')}.gguf")
    return paths
