"""What can be packed: GGUF files, checkpoint folders, random weights of a known shape. Each gives its tensors by the
packed names.

A source reads a matrix some rows at a time, so that memory does not grow with the model.
"""

from __future__ import annotations

import json
import mmap
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from edged.core.errors import ModelError
from edged.models.formats.config_shape import native_shape_from_config
from edged.models.formats.gguf import GgufFile
from edged.models.formats.gguf_shape import native_shape_from_gguf
from edged.models.formats.packed import GGUF_TOKENIZER, matrix_names, vector_names
from edged.models.formats.shape import Shape
from edged.models.formats.tiles import Codes, Kind

Array = npt.NDArray[Any]
SLAB: Final = 4_000_000  # weights handled at once
_GGUF_KINDS: Final = {
    "Q4_0": Kind.Q4, "Q4_1": Kind.Q4_MIN, "Q8_0": Kind.Q8, "F32": Kind.F32, "F16": Kind.F16, "BF16": Kind.BF16,
}  # fmt: skip
_GGUF_NAMES: Final = {
    "query": "attn_q", "key": "attn_k", "value": "attn_v", "out": "attn_output", "gate": "ffn_gate", "up": "ffn_up",
    "down": "ffn_down", "attention_norm": "attn_norm", "ffn_norm": "ffn_norm", "query_norm": "attn_q_norm",
    "key_norm": "attn_k_norm",
    "query_bias": "attn_q", "key_bias": "attn_k", "value_bias": "attn_v",
}  # fmt: skip
_HUB_NAMES: Final = {
    "query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj", "out": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj", "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm", "query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm",
    "query_bias": "self_attn.q_proj", "key_bias": "self_attn.k_proj", "value_bias": "self_attn.v_proj",
}  # fmt: skip
_HUB_FILES: Final = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "chat_template.jinja",
)  # fmt: skip
_DTYPES: Final = {"F32": (Kind.F32, np.float32), "F16": (Kind.F16, np.float16), "BF16": (Kind.BF16, np.uint16)}


class Source(Protocol):
    """Tensors of one model. Names are those of the packed folder."""

    name: str
    shape: Shape
    tied: bool

    def kind(self, name: str) -> Kind:
        """How the matrix is stored in the source."""

    def vector(self, name: str) -> Array:
        """A norm's weight or a bias, float32 [n]."""

    def floats(self, name: str, rows: int, cols: int) -> Iterator[Array]:
        """A matrix as slabs of rows: float32, float16, or bfloat16 as uint16 (`kind` says which)."""

    def codes(self, name: str, rows: int, cols: int) -> Iterator[Codes]:
        """A matrix that is stored in groups of 32, as slabs of rows with its codes and scales."""

    def write_tokenizer(self, folder: Path) -> None:
        """Writes what the tokenizer and the chat template need into a packed folder."""


def copy_texts(source: Path, folder: Path) -> None:
    """Copies what a checkpoint folder says of its texts: tokenizer, chat template and the small files beside them."""
    for name in _HUB_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def slabs(rows: int, cols: int) -> Iterator[slice]:
    """Ranges of rows, each of about SLAB weights and (but for the last) a multiple of 32 rows."""
    step = max(32, SLAB // cols // 32 * 32)
    for begin in range(0, rows, step):
        yield slice(begin, min(begin + step, rows))


class GgufSource:
    """A GGUF file."""

    def __init__(self, file: GgufFile) -> None:
        self.name = file.path.name
        self.shape = native_shape_from_gguf(file)
        self.tied = "output.weight" not in file.tensors
        self._file = file
        self._check_names()

    def _check_names(self) -> None:
        """Every tensor must mean something to the forward pass: one that it would leave out makes another model."""
        packed = [name for name, _, _ in matrix_names(self.shape, self.tied)]
        packed += [name for name, _ in vector_names(self.shape)]
        both = [part for name in packed for part in _halves(name)]
        wanted = {_gguf_name(name) for name in both} | {"rope_freqs.weight"}
        if extra := sorted(self._file.tensors.keys() - wanted):
            raise ModelError(
                "unsupported", f"The native engine has no use for the tensor {extra[0]} of {self.name}; use torch."
            )
        if self.shape.family.qkv_bias and "blk.0.attn_q.bias" not in self._file.tensors:
            raise ModelError(
                "unsupported", f"{self.name} lacks the attention biases of its architecture; use the torch backend."
            )

    def kind(self, name: str) -> Kind:
        stored = self._tensor(name)
        kind = _GGUF_KINDS.get(stored.type)
        if kind is None:
            raise ModelError(
                "unsupported",
                f"Tensor {stored.name} of {self.name} is stored as {stored.type}; the native engine reads Q4_0, "
                f"Q4_1, Q8_0, "
                "F16, BF16 and F32, the torch backend more.",
            )
        return kind

    def vector(self, name: str) -> Array:
        values = self._file.dequantize(self._tensor(name).name).reshape(-1)
        order = self._order(name, len(values))
        return values if order is None else values[order]

    def floats(self, name: str, rows: int, cols: int) -> Iterator[Array]:
        dtype = {Kind.F32: np.float32, Kind.F16: np.float16, Kind.BF16: np.uint16}[self.kind(name)]
        stored = self._rows(name, rows, cols).view(dtype)
        order = self._order(name, rows)
        for part in slabs(rows, cols):
            yield stored[part] if order is None else stored[order[part]]
            self._file.give_back()

    def codes(self, name: str, rows: int, cols: int) -> Iterator[Codes]:
        kind, stored, order = self.kind(name), self._rows(name, rows, cols), self._order(name, rows)
        for part in slabs(rows, cols):
            taken = stored[part] if order is None else stored[order[part]]
            yield _read_blocks(taken.reshape(taken.shape[0], cols // 32, -1), kind)
            self._file.give_back()

    def write_tokenizer(self, folder: Path) -> None:
        write_metadata(folder / GGUF_TOKENIZER, self._file.metadata)

    def _tensor(self, name: str) -> Any:
        found = _gguf_name(name)
        tensor = self._file.tensors.get(found)
        if tensor is None:
            raise ModelError("bad_model", f"{self.name} has no tensor {found}; fetch or convert the model again.")
        return tensor

    def _rows(self, name: str, rows: int, cols: int) -> Array:
        tensor = self._tensor(name)
        if tensor.shape != (rows, cols):
            raise ModelError(
                "bad_model",
                f"Tensor {tensor.name} of {self.name} is {tensor.shape}, not {(rows, cols)}; fetch it again.",
            )
        return self._file.raw(tensor.name).reshape(rows, -1)

    def _order(self, name: str, rows: int) -> Array | None:
        """Row indices that undo the converter's reordering of a head's rows from (2, E/2) to (E/2, 2)."""
        if not self.shape.family.permuted or name.rsplit(".", 1)[-1] not in {"query", "key", "query_bias", "key_bias"}:
            return None
        pairs: Array = np.arange(rows).reshape(-1, self.shape.head_dim // 2, 2)
        return np.asarray(pairs.transpose(0, 2, 1).reshape(-1))


def _halves(name: str) -> tuple[str, ...]:
    """The source's matrices behind a packed one: gate and up are two there."""
    return tuple(name.replace("gate_up", part) for part in ("gate", "up")) if name.endswith(".gate_up") else (name,)


def _gguf_name(name: str) -> str:
    """A tensor's name in a GGUF file."""
    top = {"embedding": "token_embd.weight", "head": "output.weight", "final_norm": "output_norm.weight"}
    if name in top:
        return top[name]
    _, layer, part = name.split(".")
    return f"blk.{layer}.{_GGUF_NAMES[part]}.{'bias' if part.endswith('_bias') else 'weight'}"


def _read_blocks(blocks: Array, kind: Kind) -> Codes:
    """ggml's blocks uint8 [rows, groups, bytes]: scale, minimum where there is one, 32 codes (element i below i +
    16)."""
    rows = blocks.shape[0]
    halves = 2 if kind is Kind.Q4_MIN else 1
    head = np.ascontiguousarray(blocks[:, :, : 2 * halves]).view(np.float16)
    body = blocks[:, :, 2 * halves :]
    codes = body.view(np.int8) if kind is Kind.Q8 else np.concatenate([body & 15, body >> 4], axis=2)
    return Codes(codes.reshape(rows, -1), head[:, :, 0], head[:, :, 1] if halves == 2 else None)


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


class CheckpointSource:
    """A folder that transformers' `save_pretrained` wrote: `config.json` and safetensors files."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self._folder = folder
        try:
            config = json.loads((folder / "config.json").read_text("utf-8"))
            self._mappings: list[mmap.mmap] = []
            self._stored = dict(_read_checkpoint(folder, self._mappings))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ModelError(
                "bad_model", f"The checkpoint {folder} cannot be read ({error}); fetch it again."
            ) from error
        self.shape = native_shape_from_config(config)
        self.tied = "lm_head.weight" not in self._stored or bool(config.get("tie_word_embeddings"))
        if any(name.endswith(".o_proj.bias") for name in self._stored):
            raise ModelError(
                "unsupported", f"{self.name} has a bias after attention, which the native engine does not run."
            )
        if any(name.endswith(".q_proj.bias") for name in self._stored) != self.shape.family.qkv_bias:
            raise ModelError(
                "unsupported", f"The attention biases of {self.name} are not those of its architecture; use torch."
            )

    def kind(self, name: str) -> Kind:
        return self._tensor(name)[0]

    def vector(self, name: str) -> Array:
        kind, values = self._tensor(name)
        return widen(values.reshape(-1), kind)

    def floats(self, name: str, rows: int, cols: int) -> Iterator[Array]:
        values = self._tensor(name)[1]
        if values.shape != (rows, cols):
            raise ModelError(
                "bad_model", f"Tensor {name} of {self.name} is {values.shape}, not {(rows, cols)}; fetch it again."
            )
        for part in slabs(rows, cols):
            yield values[part]
            for mapping in self._mappings:  # see GgufFile.give_back
                mapping.madvise(mmap.MADV_DONTNEED)

    def codes(self, name: str, rows: int, cols: int) -> Iterator[Codes]:
        raise NotImplementedError("a checkpoint's tensors are floats")

    def write_tokenizer(self, folder: Path) -> None:
        copy_texts(self._folder, folder)

    def _tensor(self, name: str) -> tuple[Kind, Array]:
        top = {"embedding": "model.embed_tokens.weight", "head": "lm_head.weight", "final_norm": "model.norm.weight"}
        if name in top:
            found = top[name]
        else:
            _, layer, part = name.split(".")
            found = f"model.layers.{layer}.{_HUB_NAMES[part]}.{'bias' if part.endswith('_bias') else 'weight'}"
        if found not in self._stored:
            raise ModelError("bad_model", f"{self.name} has no tensor {found}; fetch the model again.")
        return self._stored[found]


def widen(values: Array, kind: Kind) -> Array:
    """Values of a float kind as float32."""
    if kind is Kind.BF16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(values.astype(np.float32))


def _read_checkpoint(folder: Path, mappings: list[mmap.mmap]) -> Iterator[tuple[str, tuple[Kind, Array]]]:
    """Every tensor of a folder's safetensors files, mapped and not read. `mappings` gets the files' mappings."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise ValueError("it has no safetensors file")
    for path in paths:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        mappings.append(data)
        length = int.from_bytes(data[:8], "little")
        if length > min(100_000_000, len(data) - 8):
            raise ValueError(f"the header of {path.name} is longer than the file")
        for name, entry in json.loads(data[8 : 8 + length]).items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in _DTYPES:
                raise ModelError(
                    "unsupported", f"Tensor {name} of {path.name} is stored as {entry['dtype']}; use F32, F16 or BF16."
                )
            kind, dtype = _DTYPES[entry["dtype"]]
            begin, end = entry["data_offsets"]
            shape = [int(size) for size in entry["shape"]]
            count = int(np.prod(shape, dtype=np.int64)) if shape else 1
            if not 0 <= begin <= end <= len(data) - 8 - length or end - begin != count * np.dtype(dtype).itemsize:
                raise ValueError(f"tensor {name} of {path.name} does not fit the file")
            yield name, (kind, np.frombuffer(data, dtype, count, 8 + length + begin).reshape(shape))
