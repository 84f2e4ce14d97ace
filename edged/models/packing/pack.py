"""Packing: a GGUF file, a checkpoint folder or a named shape becomes a packed folder, a few rows of a tensor at a time.

GGUF's Q4_0, Q4_1 and Q8_0 keep their codes and scales exactly. Floats are kept, or quantized to 4 or 8 bits in groups.
The folder appears whole or not at all: it is written under another name and renamed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edged.core.errors import ModelError
from edged.models.digest import file_sha256
from edged.models.formats.gguf import open_gguf
from edged.models.formats.packed import (
    MANIFEST,
    WEIGHTS,
    Manifest,
    TensorInfo,
    matrix_names,
    vector_names,
    write_manifest,
    write_weights,
)
from edged.models.formats.tiles import GROUPS, Codes, Kind, tile_codes, tile_floats
from edged.models.packing.checkpoint_source import CheckpointSource
from edged.models.packing.gguf_source import GgufSource
from edged.models.packing.rounding import quantize
from edged.models.packing.shapes import RandomSource
from edged.models.packing.source import Source, widen
from edged.models.tokenizer.table_writer import write_tables
from edged.models.tokenizer.texts import read_texts

Progress = Callable[[str], None]
KEEP: Final = None  # bits: floats stay as they are


def open_source(source: str | Path) -> Source:
    """A GGUF file or a checkpoint folder as something to pack. Raises ModelError."""
    path = Path(source)
    if path.is_dir():
        return CheckpointSource(path)
    return GgufSource(open_gguf(path))


def pack(
    source: Source,
    destination: Path,
    *,
    bits: int | None = KEEP,
    group: int = 32,
    minimum: bool = True,
    source_digest: str = "",
    progress: Progress = lambda _: None,
) -> Manifest:
    """Packs `source` into the folder `destination`, which must not exist (or be empty).

    `bits`: 4, 8, or None to keep floats as they are. `minimum`: 4-bit groups get a minimum as well as a scale. What a
    GGUF file has quantized keeps its codes in any case. Raises ModelError: `unsupported`, `bad_model` (weights that are
    not finite, too), `no_disk`.
    """
    if bits not in {KEEP, 4, 8} or group not in GROUPS:
        raise ModelError(
            "unsupported", f"Weights are packed in 4 or 8 bits and groups of 32, 64 or 128, not {bits} and {group}."
        )
    kind = {KEEP: None, 4: Kind.Q4_BYTE_MIN if minimum else Kind.Q4_BYTE, 8: Kind.Q8}[bits]
    infos: dict[str, TensorInfo] = {}
    for name, rows, cols in matrix_names(source.shape, source.tied):
        stored = _kind(source, name)
        final, its_group = (stored, 32) if kind is None or not stored.is_float else (kind, group)
        infos[name] = TensorInfo(final, rows, cols, 0 if final.is_float else its_group)
    if bits is not KEEP and all(info.kind is _kind(source, name) for name, info in infos.items()):
        raise ModelError(
            "unsupported", f"The weights of {source.name} are quantized already and keep their bits; leave bits out."
        )
    for name, length, required in vector_names(source.shape):
        if required or source.has(name):
            infos[name] = TensorInfo(Kind.F32, 1, length, 0)
    _check_destination(destination)
    work: Path | None = None
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".part", dir=destination.parent))
        digest = write_weights(work / WEIGHTS, infos, _data(source, infos, progress))
        source.write_tokenizer(work)
        _write_token_tables(work)
        files = {path.name: f"sha256:{file_sha256(path)}" for path in sorted(work.iterdir()) if path.name != WEIGHTS}
        manifest = Manifest(source.name, _name(infos), source_digest, {WEIGHTS: digest, **files}, source.shape, infos)
        write_manifest(work / MANIFEST, manifest)
        work.chmod(0o755)  # mkdtemp gives access to its user alone
        work.rename(destination)
    except OSError as error:
        raise ModelError("no_disk", f"The packed model could not be written to {destination} ({error}).") from error
    finally:
        if work:
            shutil.rmtree(work, ignore_errors=True)
    return manifest


def _write_token_tables(folder: Path) -> None:
    """Adds the tokenizer as tables, where it can be; one that cannot be read is refused when the model is loaded."""
    with suppress(ModelError):
        texts = read_texts(folder)
        write_tables(folder, texts.codec, texts.template, texts.architecture)


def _check_destination(destination: Path) -> None:
    """Raises ModelError unless a folder can be renamed to `destination`: nothing is there, or an empty folder."""
    if not os.path.lexists(destination):
        return
    if destination.is_symlink() or not destination.is_dir():
        raise ModelError(
            "bad_model", f"{destination} exists already and is not a folder; give the name of a new folder."
        )
    try:
        empty = not any(destination.iterdir())
    except OSError as error:
        raise ModelError(
            "no_disk", f"{destination} cannot be read ({error.strerror}); give the name of a new folder."
        ) from error
    if not empty:
        raise ModelError("bad_model", f"{destination} exists already; remove it or give another folder.")


def pack_path(
    source: str | Path, destination: Path, *, bits: int | None = KEEP, group: int = 32, **more: Any
) -> Manifest:
    """Packs a GGUF file or a checkpoint folder (see `pack`)."""
    return pack(open_source(source), destination, bits=bits, group=group, **more)


def pack_shape(
    name: str,
    destination: Path,
    *,
    bits: int = 4,
    group: int = 32,
    minimum: bool = False,
    texts: Path | None = None,
    progress: Progress = lambda _: None,
) -> Manifest:
    """Packs random weights of a named shape (see `pack` and RandomSource)."""
    return pack(RandomSource(name, texts), destination, bits=bits, group=group, minimum=minimum, progress=progress)


def _data(source: Source, infos: dict[str, TensorInfo], progress: Progress) -> Iterator[tuple[str, Iterator[bytes]]]:
    for count, (name, info) in enumerate(infos.items()):
        progress(f"packing tensor {count + 1} of {len(infos)}")
        yield name, _vector(source, name, info) if info.is_vector else _matrix(source, name, info)


def _vector(source: Source, name: str, info: TensorInfo) -> Iterator[bytes]:
    if name.endswith(".gate_up_bias"):
        parts = [source.vector(name.replace("gate_up", part)) for part in ("gate", "up")]
        values = interleave(*(part.astype(np.float32).reshape(-1, 1) for part in parts)).reshape(-1)
    else:
        values = np.ascontiguousarray(source.vector(name), np.float32)
    if values.shape != (info.cols,):
        raise ModelError(
            "bad_model", f"Tensor {name} of {source.name} has {values.size} values, not {info.cols}; fetch it again."
        )
    _check_finite(values, name, source)
    yield values.tobytes()


def _kind(source: Source, name: str) -> Kind:
    """How a packed matrix is stored in the source; gate and up must agree."""
    if not name.endswith(".gate_up"):
        return source.kind(name)
    gate, up = (source.kind(name.replace("gate_up", part)) for part in ("gate", "up"))
    if gate is not up:
        raise ModelError(
            "unsupported", f"Gate and up of {source.name} are stored as different kinds; use the torch backend."
        )
    return gate


def _floats(source: Source, name: str, info: TensorInfo) -> Iterator[npt.NDArray[Any]]:
    if not name.endswith(".gate_up"):
        yield from source.floats(name, info.rows, info.cols)
        return
    gate, up = (source.floats(name.replace("gate_up", part), source.shape.ffn, info.cols) for part in ("gate", "up"))
    for pair in zip(gate, up, strict=True):
        yield interleave(*pair)


def _codes(source: Source, name: str, info: TensorInfo) -> Iterator[Codes]:
    if not name.endswith(".gate_up"):
        yield from source.codes(name, info.rows, info.cols)
        return
    gate, up = (source.codes(name.replace("gate_up", part), source.shape.ffn, info.cols) for part in ("gate", "up"))
    for one, other in zip(gate, up, strict=True):
        minimum = None if one.minimum is None or other.minimum is None else interleave(one.minimum, other.minimum)
        yield Codes(interleave(one.codes, other.codes), interleave(one.scale, other.scale), minimum)


def interleave(gate: npt.NDArray[Any], up: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """32 rows of gate, 32 of up, and so on; the last 32 of each are filled with zeros."""
    rows, cols = gate.shape
    both = np.zeros((2, -(-rows // 32) * 32, cols), gate.dtype)
    both[0, :rows], both[1, :rows] = gate, up
    return np.asarray(both.reshape(2, -1, 32, cols).transpose(1, 0, 2, 3).reshape(-1, cols))


def _matrix(source: Source, name: str, info: TensorInfo) -> Iterator[bytes]:
    stored = _kind(source, name)
    if not stored.is_float:
        for codes in _codes(source, name, info):
            _check_codes(codes, name, source)
            yield tile_codes(codes, info.kind, info.group)
        return
    for values in _floats(source, name, info):
        wide = widen(values, stored)
        _check_finite(wide, name, source)
        if info.kind.is_float:
            yield tile_floats(values)
        else:
            codes = quantize(wide, info.kind, info.group)
            _check_codes(codes, name, source)
            yield tile_codes(codes, info.kind, info.group)


def _check_codes(codes: Codes, name: str, source: Source) -> None:
    _check_finite(codes.scale, name, source)
    for values in (codes.minimum, codes.factor):
        if values is not None:
            _check_finite(values, name, source)


def _check_finite(values: npt.NDArray[Any], name: str, source: Source) -> None:
    if not np.isfinite(values).all():
        raise ModelError(
            "bad_model",
            f"Tensor {name} of {source.name} holds values that are not finite, or too large to be rounded; "
            "fetch the model again.",
        )


def _name(infos: dict[str, TensorInfo]) -> str:
    """The kind of most weights: ggml's name (`q4_0`, `q4_1`, `q8_0`, `f32`) where it has one, else ours
    (`q4_byte_min`)."""
    weight: dict[Kind, int] = {}
    for info in infos.values():
        weight[info.kind] = weight.get(info.kind, 0) + info.rows * info.cols
    names = {Kind.Q4: "q4_0", Kind.Q4_MIN: "q4_1", Kind.Q8: "q8_0", Kind.Q8_MIN: "q8_1"}
    most = max(weight, key=lambda kind: weight[kind])
    return names.get(most, most.name.lower())
