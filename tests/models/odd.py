"""Odd GGUF files: each is one change of the tiny model that people's files or tools have been seen to make."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from edged.models.formats.gguf import open_gguf
from tests.tiny import make_gguf

U32, I32, F32, BOOL, TEXT, LIST = 4, 5, 6, 7, 8, 9
NUMBERS: Final = {"F32": 0, "Q8_0": 8}


class Raw:
    """A value that is written as it is: its type's number, then its bytes."""

    def __init__(self, kind: int, data: bytes) -> None:
        self.kind, self.data = kind, data


def text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def value(item: Any) -> bytes:
    """A value of the types that llama.cpp's converter writes."""
    if isinstance(item, Raw):
        return struct.pack("<I", item.kind) + item.data
    if isinstance(item, bool):
        return struct.pack("<I?", BOOL, item)
    if isinstance(item, int):
        return struct.pack("<II", U32, item & 0xFFFFFFFF) if item >= 0 else struct.pack("<Ii", I32, item)
    if isinstance(item, float):
        return struct.pack("<If", F32, item)
    if isinstance(item, str):
        return struct.pack("<I", TEXT) + text(item)
    kind, form = {str: (TEXT, ""), int: (I32, "i"), float: (F32, "f")}[type(item[0]) if item else int]
    packed = b"".join(map(text, item)) if kind == TEXT else struct.pack(f"<{len(item)}{form}", *item)
    return struct.pack("<IIQ", LIST, kind, len(item)) + packed


def write(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[tuple[int, ...], int, bytes]],
    place: Callable[[str, int], int] = lambda _, offset: offset,
    version: int = 3,
) -> Path:
    """`tensors`: shape, ggml's type and data. `place` may move what a tensor's offset is said to be."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(text(key) + value(item) for key, item in metadata.items())
    body, offset = b"", 0
    for name, (shape, kind, data) in tensors.items():
        head += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        head += struct.pack("<IQ", kind, place(name, offset))
        padded = data + b"\0" * (-len(data) % 32)
        body, offset = body + padded, offset + len(padded)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + body)
    return path


def tiny_parts(folder: Path) -> tuple[dict[str, Any], dict[str, tuple[tuple[int, ...], int, bytes]]]:
    """Metadata and tensors of the tiny model."""
    file = open_gguf(make_gguf(folder / "whole.gguf", context=64))
    tensors = {name: (one.shape, NUMBERS[one.type], file.raw(name).tobytes()) for name, one in file.tensors.items()}
    return dict(file.metadata), tensors


def split(folder: Path, name: str, count: int = 3) -> list[Path]:
    """The tiny model as llama.cpp's `gguf-split` writes it."""
    metadata, tensors = tiny_parts(folder)
    paths = []
    for number in range(count):
        own = dict(list(tensors.items())[number::count])
        facts = {"split.no": number, "split.count": count, "split.tensors.count": len(tensors)}
        path = folder / f"{name}-{number + 1:05}-of-{count:05}.gguf"
        paths.append(write(path, (metadata if number == 0 else {}) | facts, own))
    return paths


def odd_files(folder: Path) -> dict[str, Path]:
    """Every odd file, by what is odd about it. `good` is the tiny model itself."""
    metadata, tensors = tiny_parts(folder)
    first = "blk.0.attn_q.weight"
    shape, kind, data = tensors[first]
    plain = {key: item for key, item in metadata.items() if key != "tokenizer.chat_template"}

    def made(name: str, changes: Mapping[str, Any] = {}, **more: Any) -> Path:
        return write(folder / f"{name}.gguf", metadata | dict(changes), **{"tensors": tensors, **more})

    def with_first(name: str, *entry: Any) -> Path:
        return made(name, tensors=tensors | {first: entry})

    swapped = bytearray(made("big").read_bytes())
    swapped[4:8] = swapped[4:8][::-1]
    big = folder / "big.gguf"
    big.write_bytes(swapped)
    return {
        "good": made("good"),
        "no template": write(folder / "no-template.gguf", plain, tensors),
        "ids of -1": made("minus", {"tokenizer.ggml.bos_token_id": -1, "tokenizer.ggml.unknown_token_id": -1}),
        "ids of 2^32-1": made("none", {"tokenizer.ggml.bos_token_id": 0xFFFFFFFF}),
        "lists of equal values": made(
            "lists", {"llama.attention.head_count_kv": [2, 2], "llama.feed_forward_length": [128, 128]}
        ),
        "lists of different values": made("different", {"llama.attention.head_count_kv": [2, 1]}),
        "an empty list": made("empty", {"llama.feed_forward_length": []}),
        "scores": made("scored", {"tokenizer.ggml.scores": [0.0] * len(metadata["tokenizer.ggml.tokens"])}),
        "scores missing": made("unscored", {"tokenizer.ggml.model": "llama"}),
        "big-endian": big,
        "Q2_0": with_first("q2_0", shape, 42, data),
        "Q4_0_4_4": with_first("q4_0_4_4", shape, 31, data),
        "a type nobody has": with_first("type", shape, 4_000_000_000, data),
        "zero dimension": with_first("zero", (0, shape[1]), kind, b""),
        "huge dimension": with_first("huge", (1 << 62, shape[1]), kind, data),
        "no dimensions": with_first("none-at-all", (), kind, data),
        "offset past the end": made("past", place=lambda name, at: 1 << 50 if name == first else at),
        "offset of all ones": made("ones", place=lambda name, at: (1 << 64) - 32 if name == first else at),
        "not aligned": made("crooked", place=lambda name, at: at + 1 if name == first else at),
        "architecture is a number": made("number", {"general.architecture": 7}),
        "alignment is a text": made("alignment", {"general.alignment": "32"}),
        "layers are a text": made("layers", {"llama.block_count": "2"}),
        "template is a list": made("template", {"tokenizer.chat_template": [1, 2]}),
        "tokens are numbers": made("tokens", {"tokenizer.ggml.tokens": [1, 2, 3]}),
        "token types are texts": made("types", {"tokenizer.ggml.token_type": ["1", "2"]}),
        "list of lists": made("nested", {"x.y": Raw(LIST, struct.pack("<IQ", LIST, 1) + b"\0" * 24)}),
        "a value of an unknown type": made("unknown", {"x.y": Raw(99, b"\0" * 8)}),
        "endless list": made("endless", {"x.y": Raw(LIST, struct.pack("<IQ", U32, 1 << 60))}),
        "endless text": made("long", {"x.y": Raw(TEXT, struct.pack("<Q", 1 << 60))}),
        "version 1": made("one", version=1),
        "version 99": made("later", version=99),
        "no tensors": write(folder / "vocabulary.gguf", metadata, {}),
        "a tensor is missing": write(
            folder / "less.gguf", metadata, {name: entry for name, entry in tensors.items() if name != first}
        ),
        "split": split(folder, "split")[0],
    }
