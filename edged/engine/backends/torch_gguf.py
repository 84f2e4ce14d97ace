"""GGUF files of the Llama family as a LlamaNetwork, read one tensor after the other.

Memory peaks at the weights plus one tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch

from edged.core.errors import ModelError
from edged.engine.backends.torch_backend import TorchBackend
from edged.engine.backends.torch_llama import Layer, LlamaNetwork, Weights
from edged.engine.memory import admit
from edged.models.formats.gguf import GgufFile
from edged.models.formats.gguf_shape import shape_from_gguf, sliding_window
from edged.models.formats.shape import Shape

SMALL: Final = 64_000_000  # bytes of float32 weights that caches hold: bfloat16 would gain nothing there


def written_out(file: GgufFile, context: int | None) -> Shape | None:
    """The shape of a model that `torch_llama` computes; None where transformers' classes are needed.

    Raises ModelError `bad_model`.
    """
    try:
        shape = shape_from_gguf(file)
    except ModelError as error:
        if error.code != "unsupported":
            raise
        return None
    window = sliding_window(file, shape.architecture)
    return None if 0 < window < min(shape.context, context or shape.context) else shape


def open_llama(
    file: GgufFile,
    shape: Shape,
    context: int | None,
    device: str,
    progress: Callable[[str], None],
    available: Callable[[], int],
    exact: bool,
) -> TorchBackend:
    """Loads a model whose shape is `written_out`. Weights are bfloat16, or float32 where they are small or `exact`.

    Raises ModelError `bad_model` or `no_memory` (before anything large is read).
    """
    context = min(context or shape.context, shape.context)
    count = file.weight_count()
    dtype = torch.float32 if exact or 4 * count <= SMALL else torch.bfloat16
    width = dtype.itemsize
    budget = admit(count * width, shape.cache_values * width * context, available())
    network = read_network(file, shape, context, dtype, device, progress)
    precision = "float32" if width == 4 else "bfloat16"
    quantization = f"{precision} (from {file.quantization()})"
    return TorchBackend(network, quantization, shape.vocabulary, context, budget.slots, count * width, device)


def read_network(
    file: GgufFile, shape: Shape, context: int, dtype: Any, device: str, progress: Callable[[str], None]
) -> LlamaNetwork:
    """The network with its weights in `dtype` (norms and biases in float32). Raises ModelError `bad_model`."""
    reader = _Reader(file, shape, dtype, device)
    embedding = reader.matrix("token_embd", shape.vocabulary, shape.width)
    layers = []
    for index in range(shape.layers):
        layers.append(reader.layer(f"blk.{index}."))
        progress(f"reading layer {index + 1} of {shape.layers}")
    has_head = "output.weight" in file.tensors
    head = reader.matrix("output", shape.vocabulary, shape.width) if has_head else embedding
    return LlamaNetwork(
        shape, Weights(embedding, tuple(layers), reader.vector("output_norm", shape.width), head), context
    )


class _Reader:
    """Tensors of a file as torch wants them, checked against the shape."""

    def __init__(self, file: GgufFile, shape: Shape, dtype: Any, device: str) -> None:
        self.file = file
        self.shape = shape
        self.dtype = dtype
        self.device = device

    def layer(self, prefix: str) -> Layer:
        shape = self.shape
        query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        biased = f"{prefix}attn_q.bias" in self.file.tensors
        normed = f"{prefix}attn_q_norm.weight" in self.file.tensors
        bias = None
        if biased:
            parts = zip("qkv", (query, key, key), strict=True)
            bias = torch.cat([self.vector(f"{prefix}attn_{name}", size, "bias", name != "v") for name, size in parts])
        parts = zip("qkv", (query, key, key), strict=True)
        qkv = torch.cat([self.matrix(f"{prefix}attn_{name}", size, shape.width, name != "v") for name, size in parts])
        gate_up = torch.cat([self.matrix(f"{prefix}ffn_{name}", shape.ffn, shape.width) for name in ("gate", "up")])
        return Layer(
            attention_norm=self.vector(f"{prefix}attn_norm", shape.width),
            qkv=qkv,
            qkv_bias=bias,
            query_norm=self.vector(f"{prefix}attn_q_norm", shape.head_dim) if normed else None,
            key_norm=self.vector(f"{prefix}attn_k_norm", shape.head_dim) if normed else None,
            out=self.matrix(f"{prefix}attn_output", shape.width, query),
            ffn_norm=self.vector(f"{prefix}ffn_norm", shape.width),
            gate_up=gate_up,
            down=self.matrix(f"{prefix}ffn_down", shape.width, shape.ffn),
        )

    def matrix(self, name: str, rows: int, columns: int, permuted: bool = False) -> Any:
        values = self._values(f"{name}.weight", (rows, columns), permuted)
        return values.to(self.device, self.dtype)

    def vector(self, name: str, size: int, kind: str = "weight", permuted: bool = False) -> Any:
        return self._values(f"{name}.{kind}", (size,), permuted).to(self.device)

    def _values(self, name: str, expected: tuple[int, ...], permuted: bool) -> Any:
        values = torch.from_numpy(self.file.dequantize(name))
        if tuple(values.shape) != expected:
            raise ModelError(
                "bad_model",
                f"Tensor {name} of {self.file.path.name} has the shape {tuple(values.shape)}, "
                f"not {expected}; fetch the model again.",
            )
        if permuted and self.shape.family.permuted:  # rows of a head: (E/2, 2) in the file, (2, E/2) here
            halves = values.view(-1, self.shape.head_dim // 2, 2, *expected[1:])
            values = halves.transpose(1, 2).reshape(expected)
        return values
