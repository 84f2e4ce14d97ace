"""GGUF files as something to pack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from edged.core.errors import ModelError
from edged.models.formats.gguf import GgufFile
from edged.models.formats.gguf_metadata import write_metadata
from edged.models.formats.gguf_shape import native_shape_from_gguf
from edged.models.formats.names import file_type
from edged.models.formats.packed import GGUF_TOKENIZER, matrix_names, vector_names
from edged.models.formats.tiles import Codes, Kind
from edged.models.packing.gguf_blocks import read_blocks
from edged.models.packing.source import Array, slabs

_FLOATS: Final = {"F32": Kind.F32, "F16": Kind.F16, "BF16": Kind.BF16}
QUANTIZED: Final = {  # the GGUF types that are packed without rounding
    "Q4_0": Kind.Q4, "Q4_1": Kind.Q4_MIN, "Q5_0": Kind.Q5, "Q5_1": Kind.Q5_MIN, "Q8_0": Kind.Q8, "Q2_K": Kind.Q2_K,
    "Q3_K": Kind.Q3_K, "Q4_K": Kind.Q4_K, "Q5_K": Kind.Q5_K, "Q6_K": Kind.Q6_K, "IQ4_NL": Kind.IQ4_NL,
    "IQ4_XS": Kind.IQ4_XS, "MXFP4": Kind.MXFP4,
}  # fmt: skip
_GGUF_NAMES: Final = {
    "query": "attn_q", "key": "attn_k", "value": "attn_v", "out": "attn_output", "gate": "ffn_gate", "up": "ffn_up",
    "down": "ffn_down", "attention_norm": "attn_norm", "ffn_norm": "ffn_norm", "query_norm": "attn_q_norm",
    "key_norm": "attn_k_norm",
    "query_bias": "attn_q", "key_bias": "attn_k", "value_bias": "attn_v",
}  # fmt: skip


class GgufSource:
    """A GGUF file."""

    def __init__(self, file: GgufFile) -> None:
        self.name = file.path.name
        self.file_type = file_type(file.metadata)
        self.shape = native_shape_from_gguf(file)
        self.tied = "output.weight" not in file.tensors
        self._file = file
        self._check_names()

    def _check_names(self) -> None:
        """Refuses tensors that the forward pass does not use: without them it would compute another model."""
        packed = [name for name, _, _ in matrix_names(self.shape, self.tied)]
        packed += [name for name, _ in vector_names(self.shape)]
        both = [part for name in packed for part in _halves(name)]
        wanted = {_gguf_name(name) for name in both} | {"rope_freqs.weight"}
        if extra := sorted(self._file.tensors.keys() - wanted):
            raise ModelError(
                "unsupported",
                f"The native engine does not use the tensor {extra[0]} of {self.name}; use the torch backend.",
            )
        if self.shape.family.qkv_bias and "blk.0.attn_q.bias" not in self._file.tensors:
            raise ModelError(
                "unsupported", f"{self.name} lacks the attention biases of its architecture; use the torch backend."
            )

    def kind(self, name: str) -> Kind:
        stored = self._tensor(name)
        kind = {**_FLOATS, **QUANTIZED}.get(stored.type)
        if kind is None:
            raise ModelError(
                "unsupported",
                f"Tensor {stored.name} of {self.name} is stored as {stored.type}, which the native engine does not "
                f"read; take a file quantized as {_instead_of(stored.type)}.",
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
            self._file.drop_pages()

    def codes(self, name: str, rows: int, cols: int) -> Iterator[Codes]:
        kind, stored, order = self.kind(name), self._rows(name, rows, cols), self._order(name, rows)
        block = kind.groups[0]
        for part in slabs(rows, cols):
            rows_read = stored[part] if order is None else stored[order[part]]
            yield read_blocks(rows_read.reshape(rows_read.shape[0], cols // block, -1), kind)
            self._file.drop_pages()

    def write_tokenizer(self, folder: Path) -> None:
        write_metadata(folder / GGUF_TOKENIZER, self._file.metadata)

    def _tensor(self, name: str) -> Any:
        stored = _gguf_name(name)
        tensor = self._file.tensors.get(stored)
        if tensor is None:
            raise ModelError("bad_model", f"{self.name} has no tensor {stored}; fetch or convert the model again.")
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


def _instead_of(kind: str) -> str:
    """A quantization of about the same size that the kernels compute."""
    if kind.startswith(("IQ1", "IQ2", "TQ")):
        return "Q2_K"
    return "Q3_K_M" if kind.startswith("IQ3") else "Q4_K_M, Q5_K_M, Q6_K or Q8_0"
