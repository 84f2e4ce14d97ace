"""The shape of a decoder: what its architecture is, and its sizes. The one record for both backends and all formats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from edged.core.errors import ModelError


@dataclass(frozen=True)
class Family:
    """How an architecture differs from Llama.

    `qkv_bias`: attention's projections have biases. `qk_norm`: queries and keys are normalized. `permuted`: the GGUF
    converter stores the rows of a query or key head in the order 0, E/2, 1, E/2 + 1, … (E: the head dimension).
    """

    qkv_bias: bool = False
    qk_norm: bool = False
    permuted: bool = False


FAMILIES: Final[Mapping[str, Family]] = {
    "llama": Family(permuted=True),
    "mistral": Family(permuted=True),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm=True),
}


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes; the fields' names are part of the packed format.

    `context`: the most tokens of a sequence. `epsilon`: of the RMS norms. `frequencies`: of the rotary embedding, in
    radians a position, one for each pair of a head's values that is rotated (`rope.py`).
    """

    architecture: str
    layers: int
    width: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    epsilon: float
    frequencies: tuple[float, ...]

    @property
    def family(self) -> Family:
        """The architecture's record."""
        return FAMILIES[self.architecture]

    @property
    def cache_values(self) -> int:
        """The number of values that one token has in the key/value cache, over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim


def check_native(shape: Shape) -> Shape:
    """The shape itself, which the native engine can run.

    Raises ModelError `bad_model` for sizes that no model has, `unsupported` for those that the kernels cannot run.
    """
    limits = {
        "layers": (shape.layers, 1024),
        "width": (shape.width, 65_536),
        "ffn": (shape.ffn, 262_144),
        "heads": (shape.heads, 1024),
        "kv_heads": (shape.kv_heads, 1024),
        "vocabulary": (shape.vocabulary, 1 << 21),
        "context": (shape.context, 1 << 24),
    }
    for name, (value, limit) in limits.items():
        if not 1 <= value <= limit:
            raise ModelError(
                "bad_model", f"The model's {name} is {value}, not 1 to {limit}; fetch or convert it again."
            )
    if shape.heads % shape.kv_heads or not all(math.isfinite(value) for value in shape.frequencies):
        raise ModelError("bad_model", "The model's heads or rotary frequencies do not fit together; fetch it again.")
    if shape.head_dim % 8 or not 8 <= shape.head_dim <= 256:
        raise ModelError(
            "unsupported",
            f"The native engine runs head dimensions 8 to 256 in steps of 8, not {shape.head_dim}; use torch.",
        )
    if shape.width % 8 or shape.heads // shape.kv_heads > 48:
        raise ModelError(
            "unsupported",
            "The native engine runs widths that are multiples of 8 and at most 48 query heads for each key head, not "
            f"a width of {shape.width} and {shape.heads} heads for {shape.kv_heads}; use torch.",
        )
    if len(shape.frequencies) != shape.head_dim // 2 or not 0 <= shape.epsilon < 1:
        raise ModelError("bad_model", "The model's rotary frequencies or epsilon are wrong; fetch it again.")
    return shape


def not_native(what: str) -> ModelError:
    """The error for a model with a part that the native engine does not compute."""
    return ModelError("unsupported", f"The native engine does not run {what}; the torch backend may.")
