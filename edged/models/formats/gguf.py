"""GGUF files: metadata and tensors, read with every length checked against the file.

The layout is that of ggml's `docs/gguf.md` (versions 2 and 3, little endian); a model may be split into files that
lie beside each other (`gguf_split.py`). The reader is ours because the `gguf`
package's takes 2.4 s for a vocabulary of 49,152 words and does not check lengths; de-quantizing is the package's.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edged.core.errors import ModelError
from edged.models.formats.gguf_split import join_parts, part_paths
from edged.models.formats.names import file_type, quantization_name

MAX_KEYS: Final = 10_000
MAX_TENSORS: Final = 100_000
MAX_ARRAY: Final = 4_000_000
MAX_STRING: Final = 16_000_000
_STRING, _ARRAY = 8, 9
# ggml's number → name, values and bytes of a block, for the types that the native engine reads: a worker with
# no other does not import the `gguf` package, which knows them all (and takes 5 MB).
_TYPES: Final = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    20: ("IQ4_NL", 32, 18),
    23: ("IQ4_XS", 256, 136),
    30: ("BF16", 1, 2),
    39: ("MXFP4", 32, 17),
}
_NAMES: Final = [name for name, _, _ in _TYPES.values()]
_KNOWN_TYPES: Final = f"{', '.join(_NAMES[:-1])} or {_NAMES[-1]}"
_NEWER_TYPES: Final = {40: "NVFP4", 41: "Q1_0", 42: "Q2_0"}  # that a `gguf` package may not know
_REMOVED_TYPES: Final = {4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8"}
# value type → struct format (little endian)
_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class GgufTensor:
    """A tensor's place in the file, in bytes. `shape`: row-major order (rows first); `type`: ggml's name (`Q4_1`).

    `part`: the file that it is in, of a model that is split into several.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    size: int
    part: int = 0


class GgufFile:
    """An open GGUF file. `metadata` maps keys to Python values, `tensors` names to places; data is read on use.

    Raises ModelError `bad_model` for a tensor that is not there, `unsupported` for types that cannot be read.
    """

    def __init__(
        self,
        path: Path,
        data: mmap.mmap,
        metadata: dict[str, Any],
        tensors: dict[str, GgufTensor],
        others: Sequence[mmap.mmap] = (),
    ) -> None:
        """`others`: the further files of a model that is split."""
        self.path = path
        self.metadata = metadata
        self.tensors = tensors
        self.parts = (data, *others)

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The tensor's bytes as they are in the file (a read-only view, uint8 [size])."""
        tensor = self._tensor(name)
        return np.frombuffer(self.parts[tensor.part], np.uint8, tensor.size, tensor.offset)

    def drop_pages(self) -> None:
        """Drops the pages that were read from memory; they are read again when they are used.

        Mapped pages count as this process's memory: without this, reading all tensors takes as much as the file.
        """
        for part in self.parts:
            part.madvise(mmap.MADV_DONTNEED)

    def dequantize(self, name: str) -> npt.NDArray[np.float32]:
        """The tensor as float32 in its row-major shape."""
        from gguf import GGMLQuantizationType, dequantize

        tensor = self._tensor(name)
        kind = GGMLQuantizationType[tensor.type]
        raw = self.raw(name)
        if tensor.type in {"F32", "F16", "F64"}:
            width = {"F32": np.float32, "F16": np.float16, "F64": np.float64}[tensor.type]
            return raw.view(width).astype(np.float32).reshape(tensor.shape)
        rows = raw.reshape(*tensor.shape[:-1], -1)
        try:
            values = dequantize(rows, kind)
        except NotImplementedError as error:
            raise ModelError(
                "unsupported",
                f"Tensor {name} of {self.path.name} is stored as {tensor.type}, which cannot be read; "
                f"use a file quantized as {_KNOWN_TYPES}.",
            ) from error
        return np.ascontiguousarray(values, np.float32).reshape(tensor.shape)

    def get(self, key: str, default: Any = None) -> Any:
        """The metadata value of `key`, or `default`."""
        return self.metadata.get(key, default)

    def quantization(self) -> str:
        """The file's name for itself and the types of its matrices, in lower case (`q4_1`)."""
        weights: dict[str, int] = {}
        for tensor in self.tensors.values():
            if len(tensor.shape) > 1:
                kind = tensor.type.lower()
                weights[kind] = weights.get(kind, 0) + prod(tensor.shape)
        return quantization_name(file_type(self.metadata), weights)

    def weight_count(self) -> int:
        """The number of weights in all tensors."""
        return sum(prod(tensor.shape) for tensor in self.tensors.values())

    def _tensor(self, name: str) -> GgufTensor:
        tensor = self.tensors.get(name)
        if tensor is None:
            raise ModelError("bad_model", f"{self.path.name} has no tensor {name}; fetch or convert the model again.")
        return tensor


def open_gguf(path: Path) -> GgufFile:
    """Opens a GGUF file and reads its metadata; tensor data is memory-mapped and read on use.

    Of a model that is split, `path` is any of its files; all must lie beside it. Raises ModelError `missing`,
    `bad_model` for a file that is malformed or cut short, `unsupported` for its version, byte order or a type.
    """
    first, *others = part_paths(path)
    file = _open_one(first)
    tensors, metadata, rest = join_parts(file, [_open_one(other) for other in others])
    return GgufFile(first, file.parts[0], metadata, tensors, rest)


def _open_one(path: Path) -> GgufFile:
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise ModelError("missing", f"There is no file {path}; check the path or pull the model.") from error
    except (OSError, ValueError) as error:
        raise ModelError("bad_model", f"{path.name} cannot be read ({error}); fetch the model again.") from error
    try:
        return _parse(path, data)
    except ModelError:
        raise
    except (struct.error, ValueError, KeyError, OverflowError, UnicodeDecodeError) as error:
        raise ModelError(
            "bad_model", f"{path.name} is not a whole GGUF file ({error}); fetch the model again."
        ) from error


def _parse(path: Path, data: mmap.mmap) -> GgufFile:
    if data[:4] != b"GGUF":
        raise ModelError("bad_model", f"{path.name} is not a GGUF file; give a .gguf file or a checkpoint folder.")
    cursor = _Cursor(data, 4)
    _check_version(cursor.scalar("I"), path.name)
    tensor_count, key_count = cursor.scalar("Q"), cursor.scalar("Q")
    if tensor_count > MAX_TENSORS or key_count > MAX_KEYS:
        raise ValueError(f"{tensor_count} tensors and {key_count} keys are too many")
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.string()
        if key in metadata:
            raise ValueError(f"the key {key!r} is there twice")
        metadata[key] = cursor.value(cursor.scalar("I"))
    places = [_place(cursor, path.name) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"the alignment {alignment!r} is not a power of two")
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for place in places:
        end = start + place.offset + place.size
        if place.name in tensors:
            raise ValueError(f"the tensor {place.name!r} is there twice")
        if place.offset % alignment:
            raise ValueError(f"the tensor {place.name!r} is not aligned")
        if end > len(data):
            raise ValueError(f"it ends {end - len(data):,} bytes before the end of tensor {place.name!r}")
        tensors[place.name] = GgufTensor(place.name, place.shape, place.type, start + place.offset, place.size)
    return GgufFile(path, data, metadata, tensors)


def _check_version(version: int, name: str) -> None:
    if version & 0xFFFF == 0 and version >> 24 in {1, 2, 3}:
        raise ModelError(
            "unsupported", f"{name} is big-endian; convert it to little-endian (gguf-convert-endian), or fetch one."
        )
    if version not in {2, 3}:
        raise ModelError("unsupported", f"{name} is GGUF version {version}; convert it to version 3.")


def _place(cursor: _Cursor, file: str) -> GgufTensor:
    """One tensor's entry; `offset` is still relative to the start of the data."""
    name = cursor.string()
    dimensions = cursor.scalar("I")
    if not 1 <= dimensions <= 4:
        raise ValueError(f"tensor {name!r} has {dimensions} dimensions")
    shape = tuple(cursor.scalar("Q") for _ in range(dimensions))[::-1]
    kind, block, block_bytes = _block(cursor.scalar("I"), name, file)
    if min(shape) < 1 or prod(shape) > 1 << 40 or shape[-1] % block:
        raise ValueError(f"tensor {name!r} has the shape {shape}, which does not fit {kind}")
    return GgufTensor(name, shape, kind, cursor.scalar("Q"), prod(shape) // block * block_bytes)


def _block(number: int, tensor: str, file: str) -> tuple[str, int, int]:
    """Name, values and bytes of a block of ggml's type `number`. Raises ModelError `unsupported`."""
    if number in _TYPES:
        return _TYPES[number]
    from gguf.constants import GGML_QUANT_SIZES

    for kind, sizes in GGML_QUANT_SIZES.items():
        if kind == number:
            return kind.name, *sizes
    if number > 200:  # no version of ggml has as many
        raise ValueError(f"tensor {tensor!r} is of the type {number}")
    name = {**_NEWER_TYPES, **_REMOVED_TYPES}.get(number, f"the type {number}")
    raise ModelError(
        "unsupported",
        f"Tensor {tensor[:60]} of {file} is stored as {name}, which this version does not read; use a file quantized "
        f"as {_KNOWN_TYPES}.",
    )


class _Cursor:
    """Reads little-endian values one after the other; a read past the end raises ValueError or struct.error."""

    def __init__(self, data: mmap.mmap, at: int) -> None:
        self.data = data
        self.at = at

    def scalar(self, form: str) -> Any:
        size = struct.calcsize("<" + form)
        (value,) = struct.unpack_from("<" + form, self.data, self.at)
        self.at += size
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        if length > MAX_STRING or self.at + length > len(self.data):
            raise ValueError("it is cut short inside a text")
        text = self.data[self.at : self.at + length]
        self.at += length
        return text.decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        return self.scalar(self._form(kind))

    def array(self) -> list[Any]:
        kind, count = self.scalar("I"), self.scalar("Q")
        if count > MAX_ARRAY:
            raise ValueError(f"a list of {count:,} values is too long")
        if kind == _STRING:
            return [self.string() for _ in range(count)]
        form = self._form(kind)  # no known model uses lists of lists
        values = struct.unpack_from(f"<{count}{form}", self.data, self.at)
        self.at += count * struct.calcsize("<" + form)
        return list(values)

    def _form(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise ValueError(f"a value of its metadata is of the type {kind}")
        return _SCALARS[kind]
