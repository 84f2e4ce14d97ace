"""The shape of a decoder: what its architecture is, and its sizes. The one record for both backends and all formats."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from edged.core.errors import ModelError, NoBackend
from edged.models.formats.families import FAMILIES, Family

LayerKind = Literal["attention", "convolution", "delta_net"]
MAX_TAPS: Final = 8


@dataclass(frozen=True)
class Rope:
    """A rotary embedding: pair i of a head's values is turned by `frequencies[i]` radians a position, and becomes
    `scale` times as long (`rope.py`)."""

    frequencies: tuple[float, ...]
    scale: float = 1.0


@dataclass(frozen=True)
class DeltaNet:
    """The heads of gated delta nets (Yang et al. 2024), a linear attention. `tiled`: value head h belongs to key head
    h % `key_heads`, else to h // (`value_heads` / `key_heads`)."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    tiled: bool = False

    @property
    def keys(self) -> int:
        """The number of values of all key heads."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        """The number of values of all value heads."""
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """The number of values that are convolved: queries, keys and values."""
        return 2 * self.keys + self.values


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes and figures; the fields' names are part of the packed format.

    `context`: the most tokens of a sequence. `epsilon`: of the norms. `ropes`: the rotary embeddings; where a sequence
    may have more than `short_context` tokens, `long_ropes` take their places. `rope_of`, `window_of`: for each layer
    the number of its rotary embedding (−1: none), and the tokens that a token sees, itself the last (0: all); empty: 0
    for all layers. `attention_scale`: of query · key, 0: 1 / √head_dim. `attention_cap`, `logit_cap`: x becomes
    cap · tanh(x / cap), 0: not. `growth`: a query at position p is multiplied by
    1 + growth · ln(1 + ⌊p / growth_tokens⌋). `experts`: of a mixture in each layer, 0: none; `ffn` is then that of one
    expert. `experts_used`: for each token; their weights add up to 1 where `normalize_experts`. `kind_of`: what mixes
    the tokens in each layer; empty: attention in all. `taps`: how many tokens a convolution sees, itself the last.
    `delta_net`: the heads of layers of this kind.
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
    ropes: tuple[Rope, ...]
    long_ropes: tuple[Rope, ...] = ()
    short_context: int = 0
    rope_of: tuple[int, ...] = ()
    window_of: tuple[int, ...] = ()
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    attention_scale: float = 0.0
    attention_cap: float = 0.0
    logit_cap: float = 0.0
    growth: float = 0.0
    growth_tokens: int = 0
    experts: int = 0
    experts_used: int = 0
    normalize_experts: bool = True
    kind_of: tuple[LayerKind, ...] = ()
    taps: int = 0
    delta_net: DeltaNet | None = None

    @property
    def family(self) -> Family:
        """The architecture's record."""
        return FAMILIES[self.architecture]

    @property
    def attention(self) -> tuple[tuple[int, int], ...]:
        """The number of the rotary embedding and the window of each layer."""
        none = (0,) * self.layers
        return tuple(zip(self.rope_of or none, self.window_of or none, strict=True))

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """What mixes the tokens in each layer."""
        attention: tuple[LayerKind, ...] = ("attention",)
        return self.kind_of or attention * self.layers

    @property
    def window(self) -> int:
        """The tokens that a token sees in layers with a sliding window; 0: there are none."""
        return max(self.window_of, default=0)

    @property
    def cache_windows(self) -> tuple[int, ...]:
        """The window of each layer that has keys and values in the cache."""
        layers = zip(self.kinds, self.attention, strict=True)
        return tuple(window for kind, (_, window) in layers if kind == "attention")

    @property
    def rotated(self) -> int:
        """How many of a head's values are turned."""
        return 2 * len(self.ropes[0].frequencies) if self.ropes else self.head_dim

    def ropes_for(self, context: int) -> tuple[Rope, ...]:
        """The rotary embeddings for sequences of at most so many tokens."""
        return self.long_ropes if self.long_ropes and context > self.short_context else self.ropes

    @property
    def default_context(self) -> int:
        """The most tokens where nothing else is asked for: what is computed best, within the context."""
        return self.short_context if self.long_ropes else self.context

    @property
    def cache_values(self) -> int:
        """The number of values that one token has in the key/value cache, over all layers."""
        return 2 * self.kinds.count("attention") * self.kv_heads * self.head_dim

    @property
    def state_values(self) -> int:
        """The number of values of a sequence's recurrent state, over all layers; 0: the model has none."""
        if net := self.delta_net:
            matrices = net.values * net.key_dim
            return self.kinds.count("delta_net") * ((self.taps - 1) * net.channels + matrices)
        return self.kinds.count("convolution") * (self.taps - 1) * self.width


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
    if shape.heads % shape.kv_heads:
        raise ModelError("bad_model", "The model's heads do not fit together; fetch it again.")
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
    _check_experts(shape)
    _check_figures(shape)
    _check_kinds(shape)
    return shape


def _check_experts(shape: Shape) -> None:
    """Raises ModelError `bad_model` for numbers of experts that no model has, `unsupported` for an odd ffn."""
    fits = 1 <= shape.experts_used <= shape.experts <= 1024 if shape.family.experts else shape.experts == 0
    if not fits or shape.experts * max(2 * shape.ffn, shape.width) > 1 << 24:
        raise ModelError("bad_model", "The model's numbers of experts do not fit together; fetch it again.")
    if shape.experts and shape.ffn % 32:
        raise not_native(f"experts with an ffn of {shape.ffn}, which is no multiple of 32")


def _check_figures(shape: Shape) -> None:
    """Raises ModelError `bad_model` for figures that no model has, `unsupported` for windows that differ."""
    ropes = (*shape.ropes, *shape.long_ropes)
    figures = [value for rope in ropes for value in (*rope.frequencies, rope.scale)]
    figures += [shape.embedding_scale, shape.residual_scale, shape.logit_scale]
    caps = (shape.attention_scale, shape.attention_cap, shape.logit_cap, shape.growth)
    fits = (
        len(shape.ropes) <= 8
        and {len(rope.frequencies) for rope in ropes} == {shape.rotated // 2}
        and 2 <= shape.rotated <= shape.head_dim
        and len(shape.long_ropes) in {0, len(shape.ropes)}
        and all(math.isfinite(value) for value in figures)
        and all(math.isfinite(value) and value >= 0 for value in caps)
        and (shape.growth == 0 or shape.growth_tokens > 0)
        and 0 <= shape.epsilon < 1
        and all(len(numbers) in {0, shape.layers} for numbers in (shape.rope_of, shape.window_of))
        and all(-1 <= rope < len(shape.ropes) and 0 <= window <= 1 << 24 for rope, window in shape.attention)
    )
    if not fits:
        raise ModelError("bad_model", "The model's rotary frequencies or other figures are wrong; fetch it again.")
    if len(set(shape.window_of) - {0}) > 1:
        raise not_native("layers with different sliding windows")


def _check_kinds(shape: Shape) -> None:
    """Raises ModelError `bad_model` for kinds of layers that do not fit the family or the other figures."""
    recurrent = shape.layers - shape.kinds.count("attention")
    fits = len(shape.kinds) == shape.layers and recurrent < shape.layers and (shape.family.hybrid or not recurrent)
    fits = fits and all(
        kind == "attention" or not window for kind, (_, window) in zip(shape.kinds, shape.attention, strict=True)
    )
    if not fits or (recurrent and not 2 <= shape.taps <= MAX_TAPS) or not _heads_fit(shape):
        raise ModelError("bad_model", "The kinds of the model's layers are wrong; fetch it again.")


def _heads_fit(shape: Shape) -> bool:
    """Whether the heads of delta nets are what the kernels compute, where there are such layers."""
    net = shape.delta_net
    if net is None:
        return "delta_net" not in shape.kinds
    dims = (net.key_dim, net.value_dim)
    return (
        "convolution" not in shape.kinds
        and 1 <= net.key_heads <= net.value_heads <= 1024
        and net.value_heads % net.key_heads == 0
        and all(8 <= dim <= 256 and dim % 8 == 0 for dim in dims)
    )


def no_backend(what: str) -> NoBackend:
    """The error for a model with a part that neither backend computes."""
    return NoBackend(f"edged does not run {what}; use another model.")


def not_native(what: str) -> ModelError:
    """The error for a model with a part that the native engine does not compute."""
    return ModelError("unsupported", f"The native engine does not run {what}; the torch backend may.")
