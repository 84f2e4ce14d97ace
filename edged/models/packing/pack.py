"""Packing: a GGUF file, a checkpoint folder or a named shape becomes a packed folder, a few rows of a tensor at a time.

What a GGUF file has quantized keeps its codes and scales exactly. Floats are kept, or quantized to 4 or 8 bits in
groups. The folder appears whole or not at all: it is written under another name and renamed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from edged.core.errors import ModelError
from edged.models.digest import file_sha256
from edged.models.formats.gguf import open_gguf
from edged.models.formats.names import quantization_name
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
from edged.models.formats.tiles import GROUPS, Codes, Kind, Scales, tile_codes, tile_floats
from edged.models.packing.checkpoint_source import CheckpointSource
from edged.models.packing.gguf_source import GgufSource
from edged.models.packing.rounding import quantize
from edged.models.packing.shapes import RandomSource
from edged.models.packing.source import Source, widen
from edged.models.tokenizer.table_writer import write_tables
from edged.models.tokenizer.texts import read_texts

Progress = Callable[[str], None]
_Slab = TypeVar("_Slab")
KEEP: Final = None  # bits: floats stay as they are
# They stay floats in any case: gates are tiny and a state sums up their errors, a router decides which experts compute.
_UNROUNDED: Final = (".delta_alpha", ".delta_beta", ".router")
_GGML_NAMES: Final = {
    Kind.Q4: "q4_0", Kind.Q4_MIN: "q4_1", Kind.Q5: "q5_0", Kind.Q5_MIN: "q5_1", Kind.Q8: "q8_0", Kind.Q8_MIN: "q8_1",
}  # fmt: skip


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
    head_bits: int | None = None,
    minimum: bool = True,
    source_digest: str = "",
    progress: Progress = lambda _: None,
) -> Manifest:
    """Packs `source` into the folder `destination`, which must not exist (or be empty).

    `bits`: 4, 8, or None to keep floats as they are. `head_bits`: of head and embedding, which lose most by 4 bits;
    None: 8. `minimum`: 4-bit groups get a minimum as well as a scale. Routers and the gates of delta nets stay floats,
    and what a GGUF file has quantized keeps its codes in any case. Raises ModelError: `unsupported`, `bad_model`
    (weights that are not finite, too), `no_disk`.
    """
    if bits not in {KEEP, 4, 8} or head_bits not in {None, 4, 8} or group not in GROUPS:
        raise ModelError(
            "unsupported", f"Weights are packed in 4 or 8 bits and groups of 32, 64 or 128, not {bits} and {group}."
        )
    kinds = {4: Kind.Q4_BYTE_MIN if minimum else Kind.Q4_BYTE, 8: Kind.Q8}
    infos: dict[str, TensorInfo] = {}
    for name, rows, cols in matrix_names(source.shape, source.tied, _separate_layers(source)):
        stored = _kind(source, name)
        final, its_group = stored, stored.groups[0]
        if bits is not KEEP and stored.is_float and not name.endswith(_UNROUNDED):
            final, its_group = kinds[(head_bits or 8) if name in {"embedding", "head"} else bits], group
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
        manifest = Manifest(
            source.name, _name(source, infos), source_digest, {WEIGHTS: digest, **files}, source.shape, infos
        )
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
    head_bits: int | None = None,
    minimum: bool = False,
    texts: Path | None = None,
    progress: Progress = lambda _: None,
) -> Manifest:
    """Packs random weights of a named shape (see `pack` and RandomSource). `head_bits` None: `bits`, as a peer has it
    in its file of the same shape."""
    return pack(
        RandomSource(name, texts),
        destination,
        bits=bits,
        group=group,
        head_bits=head_bits or bits,
        minimum=minimum,
        progress=progress,
    )


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


def _separate_layers(source: Source) -> set[int]:
    """The layers whose gate and up are stored as different kinds."""

    def kinds(layer: int) -> set[Kind]:
        return {source.kind(f"layers.{layer}.{part}") for part in ("gate", "up")}

    return {layer for layer in range(source.shape.layers) if len(kinds(layer)) > 1}


def _kind(source: Source, name: str) -> Kind:
    """How a packed matrix is stored in the source."""
    return source.kind(name.replace("gate_up", "gate"))


def _floats(source: Source, name: str, info: TensorInfo) -> Iterator[npt.NDArray[Any]]:
    for parts in _source_slabs(source.floats, source, name, info):
        yield _joined(name, *parts)


def _codes(source: Source, name: str, info: TensorInfo) -> Iterator[Codes]:
    for parts in _source_slabs(source.codes, source, name, info):
        arrays = zip(*(codes.arrays() for codes in parts), strict=True)
        yield Codes(*(None if one[0] is None else _joined(name, *one) for one in arrays))  # type: ignore[arg-type]


def _source_slabs(
    read: Callable[[str, int, int], Iterator[_Slab]], source: Source, name: str, info: TensorInfo
) -> Iterator[tuple[_Slab, ...]]:
    """Slabs of a packed matrix as the source has them: of gate and of up where it holds both."""
    part = name.rsplit(".", 1)[-1]
    ffn = max(1, source.shape.experts) * source.shape.ffn
    rows = ffn if part in {"gate", "up", "gate_up"} else info.rows
    names = [name.replace("gate_up", half) for half in ("gate", "up")] if part == "gate_up" else [name]
    yield from zip(*(read(one, rows, info.cols) for one in names), strict=True)


def _joined(name: str, *parts: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The rows of a packed matrix from those of the source."""
    if name.endswith(".gate_up"):
        return interleave(*parts)
    if not name.endswith((".gate", ".up")):
        return parts[0]
    rows, cols = parts[0].shape
    padded = np.zeros((-(-rows // 32) * 32, cols), parts[0].dtype)
    padded[:rows] = parts[0]
    return padded


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
            _check_codes(codes, info.kind, name, source)
            yield tile_codes(codes, info.kind, info.group)
        return
    for values in _floats(source, name, info):
        wide = widen(values, stored)
        _check_finite(wide, name, source)
        if info.kind.is_float:
            yield tile_floats(values)
        else:
            codes = quantize(wide, info.kind, info.group)
            _check_codes(codes, info.kind, name, source)
            yield tile_codes(codes, info.kind, info.group)


def _check_codes(codes: Codes, kind: Kind, name: str, source: Source) -> None:
    if kind.layout.scales is Scales.BRAIN:  # the largest level times the scale must be finite, too
        with np.errstate(over="ignore"):
            largest = widen(codes.scale, Kind.BF16) * np.float32(max(kind.layout.levels))
        _check_finite(largest, name, source)
        return
    for values in (codes.scale, codes.minimum, codes.factor, codes.minimum_factor):
        if values is not None:
            _check_finite(values, name, source)


def _check_finite(values: npt.NDArray[Any], name: str, source: Source) -> None:
    if not np.isfinite(values).all():
        raise ModelError(
            "bad_model",
            f"Tensor {name} of {source.name} holds values that are not finite, or too large to be rounded; "
            "fetch the model again.",
        )


def _name(source: Source, infos: dict[str, TensorInfo]) -> str:
    """The kinds of the matrices: ggml's names (`q4_0`, `q4_k`, `f32`) where it has them, else ours (`q4_byte_min`)."""
    weights: dict[str, int] = {}
    for info in infos.values():
        if not info.is_vector:
            name = _GGML_NAMES.get(info.kind, info.kind.name.lower())
            weights[name] = weights.get(name, 0) + info.rows * info.cols
    return quantization_name(source.file_type, weights)
