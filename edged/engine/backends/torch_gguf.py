"""GGUF files of known families as a LlamaNetwork, read one tensor after the other.

Memory peaks at the weights plus one tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch

from edged.core.errors import ModelError
from edged.engine.backends.torch_backend import TorchBackend
from edged.engine.backends.torch_llama import Layer, LlamaNetwork, Weights
from edged.engine.memory import admit
from edged.models.formats.families import FAMILIES
from edged.models.formats.gguf import GgufFile
from edged.models.formats.gguf_shape import shape_from_gguf
from edged.models.formats.packed import vector_names
from edged.models.formats.shape import Shape
from edged.models.packing.gguf_source import GgufSource
from edged.models.packing.source import halves

SMALL: Final = 64_000_000  # bytes of float32 weights that caches hold: bfloat16 would gain nothing there


def written_out(file: GgufFile) -> Shape | None:
    """The shape of a model that `torch_llama` computes; None for another architecture, which transformers may run.

    Raises ModelError `bad_model`, and NoBackend for a file with figures that would not be applied.
    """
    architecture = file.get("general.architecture")
    family = FAMILIES.get(architecture) if isinstance(architecture, str) else None
    return shape_from_gguf(file) if family and not family.hybrid else None


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
    context = min(context or shape.default_context, shape.context)
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
    reader = _Reader(GgufSource(file, shape), dtype, device)
    embedding = reader.matrix("embedding", shape.vocabulary, shape.width)
    layers = []
    for index in range(shape.layers):
        layers.append(reader.layer(f"layers.{index}."))
        progress(f"reading layer {index + 1} of {shape.layers}")
    has_head = "output.weight" in file.tensors
    head = reader.matrix("head", shape.vocabulary, shape.width) if has_head else embedding
    vectors = reader.vectors("final_")
    weights = Weights(embedding, tuple(layers), vectors["norm"], vectors.get("norm_bias"), head)
    return LlamaNetwork(shape, weights, context)


class _Reader:
    """Tensors of a file as torch wants them, checked against the shape."""

    def __init__(self, source: GgufSource, dtype: Any, device: str) -> None:
        self.source = source
        self.shape = source.shape
        self.dtype = dtype
        self.device = device
        self._vectors = {name: (length, required) for name, length, required in vector_names(self.shape)}

    def layer(self, prefix: str) -> Layer:
        shape = self.shape
        query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        parts = zip(("query", "key", "value"), (query, key, key), strict=True)
        vectors = self.vectors(prefix)
        if "query_bias" in vectors:
            vectors["qkv_bias"] = torch.cat([vectors.pop(f"{name}_bias") for name in ("query", "key", "value")])
        return Layer(
            qkv=torch.cat([self.matrix(prefix + name, size, shape.width) for name, size in parts]),
            out=self.matrix(prefix + "out", shape.width, query),
            gate_up=torch.cat([self.experts(prefix + name, shape.ffn, shape.width) for name in ("gate", "up")], -2),
            down=self.experts(prefix + "down", shape.width, shape.ffn),
            vectors=vectors,
            router=self.matrix(prefix + "router", shape.experts, shape.width).float() if shape.experts else None,
        )

    def experts(self, name: str, rows: int, columns: int) -> Any:
        """A matrix [rows, columns], or those of all experts [experts, rows, columns]."""
        if not self.shape.experts:
            return self.matrix(name, rows, columns)
        return self.matrix(name, self.shape.experts * rows, columns).view(-1, rows, columns)

    def matrix(self, name: str, rows: int, columns: int) -> Any:
        return torch.from_numpy(self.source.dequantized(name, rows, columns)).to(self.device, self.dtype)

    def vectors(self, prefix: str) -> dict[str, Any]:
        """The norms and biases whose names begin so, by the rest of their names. Raises ModelError `bad_model`."""
        found: dict[str, Any] = {}
        for name, (length, required) in self._vectors.items():
            if not name.startswith(prefix) or not (self.source.has(name) or (required and "_bias" not in name)):
                continue
            values = np.concatenate([self.source.vector(part) for part in halves(name)])
            if len(values) != (2 * self.shape.ffn if ".gate_up" in name else length):
                raise ModelError(
                    "bad_model", f"{name} of {self.source.name} has {len(values)} values; fetch the model again."
                )
            found[name.removeprefix(prefix)] = torch.from_numpy(values).to(self.device)
        return found
