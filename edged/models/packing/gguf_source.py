"""GGUF files as something to pack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from edged.core.errors import ModelError, NoBackend
from edged.models.formats.gguf import GgufFile, GgufTensor
from edged.models.formats.gguf_metadata import write_metadata
from edged.models.formats.gguf_shape import native_shape_from_gguf
from edged.models.formats.names import file_type
from edged.models.formats.packed import GGUF_TOKENIZER, matrix_names, vector_names
from edged.models.formats.shape import Shape
from edged.models.formats.tiles import Codes, Kind
from edged.models.packing.gguf_blocks import read_blocks
from edged.models.packing.source import Array, fused_part, halves, row_order, slabs, stored_rows, taps_first

_FLOATS: Final = {"F32": Kind.F32, "F16": Kind.F16, "BF16": Kind.BF16}
QUANTIZED: Final = {  # the GGUF types that are packed without rounding
    "Q4_0": Kind.Q4, "Q4_1": Kind.Q4_MIN, "Q5_0": Kind.Q5, "Q5_1": Kind.Q5_MIN, "Q8_0": Kind.Q8, "Q2_K": Kind.Q2_K,
    "Q3_K": Kind.Q3_K, "Q4_K": Kind.Q4_K, "Q5_K": Kind.Q5_K, "Q6_K": Kind.Q6_K, "IQ4_NL": Kind.IQ4_NL,
    "IQ4_XS": Kind.IQ4_XS, "MXFP4": Kind.MXFP4,
}  # fmt: skip
_GGUF_NAMES: Final = {
    "query": "attn_q", "key": "attn_k", "value": "attn_v", "out": "attn_output", "gate": "ffn_gate", "up": "ffn_up",
    "down": "ffn_down", "attention_norm": "attn_norm", "ffn_norm": "ffn_norm", "query_norm": "attn_q_norm",
    "key_norm": "attn_k_norm", "post_attention_norm": "post_attention_norm", "post_ffn_norm": "post_ffw_norm",
    "qkv": "attn_qkv", "gate_up": "ffn_up", "conv_in": "shortconv.in_proj", "conv_out": "shortconv.out_proj",
    "taps": "shortconv.conv", "embedding": "token_embd", "head": "output", "final_norm": "output_norm",
    "attention_gate": "attn_q", "delta_in": "attn_qkv", "delta_gate": "attn_gate", "delta_beta": "ssm_beta",
    "delta_alpha": "ssm_alpha", "delta_out": "ssm_out", "delta_step": "ssm_dt", "delta_norm": "ssm_norm",
}  # fmt: skip
_EXPERT_NAMES: Final = {
    "router": "ffn_gate_inp", "gate": "ffn_gate_exps", "up": "ffn_up_exps", "down": "ffn_down_exps",
}  # fmt: skip
_ROPE_TENSORS: Final = frozenset({"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})


class GgufSource:
    """A GGUF file. Raises NoBackend for tensors that the forward pass does not use."""

    def __init__(self, file: GgufFile, shape: Shape | None = None) -> None:
        self.name = file.path.name
        self.file_type = file_type(file.metadata)
        self.shape = shape or native_shape_from_gguf(file)
        self.tied = "output.weight" not in file.tensors
        self._file = file
        check_gguf_tensors(file, self.shape)
        if shape is None and self.shape.family.qkv_bias and "blk.0.attn_q.bias" not in file.tensors:
            raise ModelError(
                "unsupported", f"{self.name} lacks the attention biases of its architecture; use the torch backend."
            )

    def has(self, name: str) -> bool:
        return all(_place(self.shape, part)[0] in self._file.tensors for part in halves(name))

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
        _, rows = _place(self.shape, name)
        values = self._file.dequantize(self._tensor(name).name).reshape(-1)[rows]
        values = taps_first(values, name, self.shape)
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

    def dequantized(self, name: str, rows: int, cols: int) -> Array:
        """A matrix as float32 [rows, cols], of any type."""
        tensor, (_, part), order = self._tensor(name), _place(self.shape, name), self._order(name, rows)
        values = self._file.dequantize(tensor.name).reshape(self._flat(tensor))[part]
        if values.shape != (rows, cols):
            raise self._misfit(tensor, (rows, cols))
        return values if order is None else values[order]

    def write_tokenizer(self, folder: Path) -> None:
        write_metadata(folder / GGUF_TOKENIZER, self._file.metadata)

    def _tensor(self, name: str) -> GgufTensor:
        stored, _ = _place(self.shape, name)
        tensor = self._file.tensors.get(stored)
        if tensor is None:
            raise ModelError("bad_model", f"{self.name} has no tensor {stored}; fetch or convert the model again.")
        return tensor

    def _rows(self, name: str, rows: int, cols: int) -> Array:
        tensor, (_, part) = self._tensor(name), _place(self.shape, name)
        # Several matrices may lie in one tensor.
        whole = tensor.shape[0] if part.stop is not None else stored_rows(name, rows, self.shape)
        if self._flat(tensor) != (whole, cols) or (part.stop is not None and tensor.shape[0] < part.stop):
            raise self._misfit(tensor, (rows, cols))
        return self._file.raw(tensor.name).reshape(whole, -1)[part]

    def _flat(self, tensor: GgufTensor) -> tuple[int, ...]:
        """The tensor's shape; of the matrices of all experts as one matrix."""
        if self.shape.experts and len(tensor.shape) == 3 and tensor.shape[0] == self.shape.experts:
            return (tensor.shape[0] * tensor.shape[1], tensor.shape[2])
        return tensor.shape

    def _misfit(self, tensor: GgufTensor, wanted: tuple[int, ...]) -> ModelError:
        return ModelError(
            "bad_model", f"Tensor {tensor.name} of {self.name} is {tensor.shape}, not {wanted}; fetch it again."
        )

    def _order(self, name: str, rows: int) -> Array | None:
        """Row indices that undo the converter's reordering of a head's rows."""
        return row_order(name, rows, self.shape, pairs=self.shape.family.gguf_pairs)


def check_gguf_tensors(file: GgufFile, shape: Shape) -> None:
    """Raises NoBackend for a tensor that the forward pass does not use: computed without it, the file
    would be another model."""
    packed = [name for name, _, _ in matrix_names(shape, tied=False)]
    packed += [name for name, _, _ in vector_names(shape)]
    wanted = {_place(shape, part)[0] for name in packed for part in halves(name)} | _ROPE_TENSORS
    proposes = file.get(f"{shape.architecture}.nextn_predict_layers") and shape.architecture == "qwen35"
    extra = sorted(file.tensors.keys() - wanted)
    if proposes:  # the layers after the last only propose further tokens
        extra = [name for name in extra if (_layer(name) or 0) < shape.layers]
    if extra:
        raise NoBackend(f"edged does not use the tensor {extra[0]} of {file.path.name}; use another model.")


def _layer(name: str) -> int | None:
    """The number of the layer that a tensor of a file belongs to."""
    number = name.removeprefix("blk.").split(".")[0]
    return int(number) if number.isdecimal() else None


def _place(shape: Shape, name: str) -> tuple[str, slice]:
    """A tensor's name in a GGUF file, and its rows there."""
    if name.endswith(".delta_decay"):
        return f"blk.{name.split('.')[1]}.ssm_a", slice(None)
    part, kind = name.rsplit(".", 1)[-1].removesuffix("_bias"), "bias" if name.endswith("_bias") else "weight"
    if fused := fused_part(shape, part):
        whole, first, rows = fused
        return f"blk.{name.split('.')[1]}.{_GGUF_NAMES[whole]}.{kind}", slice(first, first + rows)
    experts = _EXPERT_NAMES if shape.experts else {}
    stored = {**_GGUF_NAMES, **experts, **shape.family.gguf}[part]
    return f"blk.{name.split('.')[1]}.{stored}.{kind}" if "." in name else f"{stored}.{kind}", slice(None)


def _instead_of(kind: str) -> str:
    """A quantization of about the same size that the kernels compute."""
    if kind.startswith(("IQ1", "IQ2", "TQ")):
        return "Q2_K"
    return "Q3_K_M" if kind.startswith("IQ3") else "Q4_K_M, Q5_K_M, Q6_K or Q8_0"
