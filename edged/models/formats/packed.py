"""The packed folder: a model as the native engine maps it into memory.

`model.safetensors` holds the tensors (matrices as tiles of bytes, vectors as float32), `manifest.json` says what they
are, and the files beside it make the tokenizer and chat template: `tokenizer.gguf` (the metadata of a GGUF file, no
tensors) or a checkpoint's own files, and for most vocabularies the same as tables to map (`tokenizer/tables.py`).
Matrices come first and fill whole cache lines, so that each begins on one.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from edged.core.errors import ModelError
from edged.models.digest import file_sha256
from edged.models.formats.families import FAMILIES
from edged.models.formats.shape import LayerKind, Shape, check_native
from edged.models.formats.tiles import Kind, packed_bytes

FORMAT: Final = 6  # written; 4 and 5 had fewer kinds and fewer figures of a shape
READABLE: Final = (4, 5, 6)
WEIGHTS: Final = "model.safetensors"
MANIFEST: Final = "manifest.json"
GGUF_TOKENIZER: Final = "tokenizer.gguf"
LINE: Final = 64  # bytes; tensors begin on a multiple
MAX_HEADER: Final = 20_000_000  # bytes of a safetensors header or a manifest
HUGE_PAGE: Final = 2 << 20  # bytes; files are written in whole ones, but for their end


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's place in the manifest. Vectors have one row; `group` is 0 for floats."""

    kind: Kind
    rows: int
    cols: int
    group: int

    @property
    def size(self) -> int:
        """Bytes without the padding to a cache line."""
        return self.cols * 4 if self.is_vector else packed_bytes(self.kind, self.rows, self.cols, self.group)

    @property
    def is_vector(self) -> bool:
        """Whether it is a norm's weight or a bias: float32, not tiled."""
        return self.rows == 1 and self.kind is Kind.F32


@dataclass(frozen=True)
class Manifest:
    """What a packed folder holds. `quantization` names it for people; digests are `sha256:` + 64 hex digits.

    `files`: the digest of each file beside the manifest, the weights among them. So the manifest's own digest
    identifies the whole model.
    """

    name: str
    quantization: str
    source_digest: str
    files: Mapping[str, str]
    shape: Shape
    tensors: Mapping[str, TensorInfo]


class PackedModel:
    """An open packed folder; its weights are mapped read-only and shared between processes."""

    def __init__(
        self, folder: Path, manifest: Manifest, data: mmap.mmap, places: Mapping[str, tuple[int, int]]
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.weights_bytes = len(data)
        self.data = data
        self._places = places

    def place(self, name: str) -> tuple[int, int] | None:
        """Offset and size in bytes of a tensor within `data`; None where the model has none of that name."""
        return self._places.get(name)

    def verify(self) -> None:
        """Reads all files once. Raises ModelError `tampered` where one was changed, is missing or was added."""
        others = {path.name for path in self.folder.iterdir()} - self.manifest.files.keys() - {MANIFEST}
        if others:
            raise ModelError(
                "tampered", f"{min(others)} in {self.folder} does not belong there; remove it or pack again."
            )
        for name, expected in self.manifest.files.items():
            actual = hashlib.sha256(self.data).hexdigest() if name == WEIGHTS else _sha256(self.folder / name)
            if f"sha256:{actual}" != expected:
                raise ModelError(
                    "tampered", f"{name} in {self.folder} is not what was packed; pack the model again with edged pack."
                )


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError:
        return "missing"


def packed_digest(folder: Path) -> str:
    """The digest of a packed model: of its manifest, which holds those of all other files."""
    return f"sha256:{file_sha256(folder / MANIFEST)}"


def padded_ffn(shape: Shape) -> int:
    """Rows of gate, and of up, in the matrix that holds both: 32 rows of gate, 32 of up, and so on."""
    return -(-shape.ffn // 32) * 32


def vector_names(shape: Shape) -> Iterator[tuple[str, int, bool]]:
    """Names and lengths of all vectors that a model of this shape may have, and whether it must."""
    family, width = shape.family, shape.width
    yield "final_norm", width, True
    if family.layer_norm:
        yield "final_norm_bias", width, False
    for layer, kind in enumerate(shape.kinds):
        at = f"layers.{layer}."
        if family.pre_norm:
            yield from ((at + "attention_norm", width, True), (at + "ffn_norm", width, True))
        if family.layer_norm:
            yield from ((at + "attention_norm_bias", width, False), (at + "ffn_norm_bias", width, False))
        if family.post_norm:
            yield from ((at + "post_attention_norm", width, True), (at + "post_ffn_norm", width, True))
        for name, length, required in _mixer_vectors(shape, kind):
            yield at + name, length, required
        if not shape.experts:
            yield at + "gate_up_bias", 2 * padded_ffn(shape), False
            yield at + "down_bias", width, False


def _mixer_vectors(shape: Shape, kind: LayerKind) -> Iterator[tuple[str, int, bool]]:
    """The same of what mixes the tokens in a layer, without the layer's number."""
    family, width, q, kv = shape.family, shape.width, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    if kind == "delta_net" and shape.delta_net:
        net = shape.delta_net
        yield "taps", shape.taps * net.channels, True
        yield from ((name, net.value_heads, True) for name in ("delta_decay", "delta_step_bias"))
        yield "delta_norm", net.value_dim, True
    elif kind == "convolution":
        yield "taps", shape.taps * width, True
    else:
        norms = (q, kv) if family.qk_norm == "wide" else (shape.head_dim, shape.head_dim)
        if family.qk_norm:
            yield from (("query_norm", norms[0], True), ("key_norm", norms[1], True))
        for name, length in (("query_bias", q), ("key_bias", kv), ("value_bias", kv)):
            yield name, length, family.qkv_bias
        yield "out_bias", width, False


def matrix_names(shape: Shape, tied: bool, separate: Container[int] = ()) -> Iterator[tuple[str, int, int]]:
    """Names, rows and columns of all matrices of a model of this shape.

    `separate`: the layers whose gate and up are two matrices, since they are stored as different kinds. The matrices of
    all experts of a layer follow each other in one.
    """
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "embedding", shape.vocabulary, shape.width
    if not tied:
        yield "head", shape.vocabulary, shape.width
    width, experts = shape.width, max(1, shape.experts)
    ffn = experts * padded_ffn(shape)
    gate = {"attention_gate": (q, width)} if shape.family.gated else {}
    mixers = {
        "attention": {"query": (q, width), "key": (kv, width), "value": (kv, width), **gate, "out": (width, q)},
        "convolution": {"conv_in": (3 * width, width), "conv_out": (width, width)},
    }
    if net := shape.delta_net:
        mixers["delta_net"] = {
            "delta_in": (net.channels, width),
            "delta_gate": (net.values, width),
            "delta_beta": (net.value_heads, width),
            "delta_alpha": (net.value_heads, width),
            "delta_out": (width, net.values),
        }
    for layer, kind in enumerate(shape.kinds):
        gate_up = {"gate": ffn, "up": ffn} if layer in separate else {"gate_up": 2 * ffn}
        for name, (rows, cols) in mixers[kind].items():
            yield f"layers.{layer}.{name}", rows, cols
        for name, rows in gate_up.items():
            yield f"layers.{layer}.{name}", rows, width
        yield f"layers.{layer}.down", experts * width, shape.ffn
        if shape.experts:
            yield f"layers.{layer}.router", shape.experts, width


def write_weights(path: Path, tensors: Mapping[str, TensorInfo], data: Iterable[tuple[str, Iterable[bytes]]]) -> str:
    """Writes a safetensors file, a piece at a time, in the order of `tensors` (`data` must follow it). Returns its
    digest."""
    header: dict[str, Any] = {}
    at = 0
    for name, info in tensors.items():
        size = info.size if info.is_vector else -(-info.size // LINE) * LINE
        kind, length = ("F32", info.cols) if info.is_vector else ("U8", size)
        header[name] = {"dtype": kind, "shape": [length], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % LINE)
    digest = hashlib.sha256()

    def body() -> Iterator[bytes]:
        yield len(text).to_bytes(8, "little") + text
        for (name, pieces), (expected, info) in zip(data, tensors.items(), strict=True):
            begin, end = header[expected]["data_offsets"]
            written = 0
            for piece in pieces:
                yield piece
                written += len(piece)
            if name != expected or written != info.size:
                raise AssertionError(f"{name}: {written} bytes were packed where {expected} of {info.size} belongs")
            yield bytes(end - begin - written)

    # Linux keeps what one call writes in pages of that size where the file system can (seen: ext4 on 6.18): a buffer
    # of just that size, filled to the last byte, is written in one call.
    with path.open("wb", buffering=HUGE_PAGE) as file:
        for block in in_blocks(body(), HUGE_PAGE):
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return "sha256:" + digest.hexdigest()


def in_blocks(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in blocks of `size`; the last may be shorter."""
    waiting = bytearray()
    for piece in pieces:
        waiting += piece
        while len(waiting) >= size:
            yield bytes(waiting[:size])
            del waiting[:size]
    yield bytes(waiting)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Writes manifest.json."""
    tensors = {
        name: [info.kind.name.lower(), info.rows, info.cols, info.group] for name, info in manifest.tensors.items()
    }
    document = {"format": FORMAT, **asdict(manifest), "shape": asdict(manifest.shape), "tensors": tensors}
    path.write_text(json.dumps(document, indent=1, default=str) + "\n", "utf-8")


def is_packed(path: Path) -> bool:
    """Whether a path is a packed folder."""
    return (path / MANIFEST).is_file() and (path / WEIGHTS).is_file()


def open_packed(folder: Path) -> PackedModel:
    """Maps a packed folder. Raises ModelError `missing`, `bad_model` or `unsupported`; every length is checked
    against the file."""
    try:
        manifest = _read_manifest(folder / MANIFEST)
        with (folder / WEIGHTS).open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _ask_for_huge_pages(data)
        places, _ = read_header(data)
        _check_tensors(manifest, places)
    except FileNotFoundError as error:
        raise ModelError("missing", f"{folder} is not a packed model ({error}); pack it with `edged pack`.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError("bad_model", f"The packed model in {folder} is damaged ({error}); pack it again.") from error
    return PackedModel(folder, manifest, data, places)


def _ask_for_huge_pages(data: mmap.mmap) -> None:
    """Lets the file be read and mapped in huge pages where the kernel can: decode then walks fewer page tables."""
    with suppress(AttributeError, OSError):
        data.madvise(mmap.MADV_HUGEPAGE)


def _read_manifest(path: Path) -> Manifest:
    if path.stat().st_size > MAX_HEADER:
        raise ValueError("its manifest is far too large")
    document = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    if document["format"] not in READABLE:
        raise ModelError(
            "unsupported",
            f"{path.parent} is packed in format {document['format']}, which this version does not read; pack it again.",
        )
    figures = document["shape"]
    if figures["architecture"] not in FAMILIES:
        raise ModelError("unsupported", f"This version does not run the architecture {figures['architecture']}.")
    if "frequencies" in figures:  # formats 4 and 5
        figures["ropes"] = [{"frequencies": figures.pop("frequencies")}]
    shape = msgspec.convert(figures, Shape)
    tensors = {}
    for name, (kind, rows, cols, group) in document["tensors"].items():
        info = TensorInfo(Kind[kind.upper()], int(rows), int(cols), int(group))
        if not (1 <= rows <= 1 << 24 and 1 <= cols <= 1 << 24) or group not in info.kind.groups:
            raise ValueError(f"tensor {name} has an absurd shape")
        tensors[name] = info
    texts = [str(document[key]) for key in ("name", "quantization", "source_digest")]
    files = msgspec.convert(document["files"], dict[str, str])
    if WEIGHTS not in files or any(Path(name).name != name for name in files):
        raise ValueError("its list of files is wrong")
    return Manifest(texts[0], texts[1], texts[2], files, check_native(shape), tensors)


def read_header(data: mmap.mmap) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Offset and size of each tensor of a mapped safetensors file, all inside it, and the file's metadata.

    Raises ValueError, KeyError or TypeError where it is none.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(MAX_HEADER, len(data) - 8):
        raise ValueError("its header is longer than allowed or than the file")
    entries = msgspec.json.decode(data[8 : 8 + length], type=dict[str, Any])
    metadata = msgspec.convert(entries.pop("__metadata__", {}), dict[str, str])
    places = {}
    for name, entry in entries.items():
        begin, end = entry["data_offsets"]
        if not (isinstance(begin, int) and isinstance(end, int) and 0 <= begin <= end <= len(data) - 8 - length):
            raise ValueError(f"tensor {name} is outside the file")
        places[name] = (8 + length + begin, end - begin)
    return places, metadata


def _check_tensors(manifest: Manifest, places: Mapping[str, tuple[int, int]]) -> None:
    shape = manifest.shape
    separate = {layer for layer in range(shape.layers) if f"layers.{layer}.gate" in manifest.tensors}
    names = matrix_names(shape, "head" not in manifest.tensors, separate)
    wanted = {name: (rows, cols) for name, rows, cols in names}
    vectors = {name: (1, length) for name, length, _ in vector_names(shape)}
    required = {name for name, _, needed in vector_names(shape) if needed} | wanted.keys()
    wanted |= vectors
    for name in required - manifest.tensors.keys():
        raise ValueError(f"tensor {name} is missing")
    for name, info in manifest.tensors.items():
        if name not in wanted:
            raise ValueError(f"tensor {name} does not belong to {shape.architecture}")
        rows, cols = wanted[name]
        if (info.rows, info.cols) != (rows, cols):
            raise ValueError(f"tensor {name} is {info.rows} × {info.cols}, not {rows} × {cols}")
        offset, size = places[name]
        if size < info.size or offset % (4 if info.is_vector else LINE):
            raise ValueError(f"tensor {name} is too short or not aligned")
