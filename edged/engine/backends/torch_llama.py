"""The decoder families of `models/formats/families.py` in torch, from a GGUF file.

Written out because building transformers' classes costs 6 s of imports and 95 MB, and because weights kept in bfloat16
serve best when they are used in two ways (docs/decisions/0012): a single token multiplies them as they are, which
reads half the bytes of float32; a chunk of a prompt widens them piece by piece and multiplies in float32, since few
boards multiply bfloat16 matrices fast.

Formulas: RMS norm (Zhang & Sennrich 2019), rotary embedding (Su et al. 2021), SwiGLU (Shazeer 2020), grouped-query
attention (Ainslie et al. 2023). Shapes: T tokens, D width, H heads, G key/value heads, E head dimension, F ffn width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.nn import functional as F  # noqa: N812 torch's own name for it

from edged.models.formats.shape import Shape

PIECE: Final = 1 << 22  # weights widened to float32 at a time: 16 MB, which caches still hold in part
EXACT: Final = 256  # best logits that are computed again in float32, since bfloat16 has ties among them


@dataclass(frozen=True)
class Layer:
    """Weights of one layer: qkv ((H+2G)·E, D), out (D, H·E), gate_up (2F, D), down (D, F).

    With a mixture of N experts: gate_up (N, 2F, D), down (N, D, F), router (N, D) in float32.
    `vectors`: norms and biases by their packed names, float32; a family has some of them.
    """

    qkv: Any
    out: Any
    gate_up: Any
    down: Any
    vectors: Mapping[str, Any]
    router: Any | None = None


@dataclass(frozen=True)
class Weights:
    """All weights. `head` is `embedding` itself where the two are tied; both (V, D)."""

    embedding: Any
    layers: tuple[Layer, ...]
    norm: Any
    norm_bias: Any | None
    head: Any


class LlamaNetwork:
    """Weights and the forward pass. A cache is one tensor [layers, 2, G, context, E] in the weights' type."""

    def __init__(self, shape: Shape, weights: Weights, context: int) -> None:
        self.shape = shape
        self.weights = weights
        self.context = context
        self.device = weights.embedding.device
        self.dtype = weights.embedding.dtype
        positions = torch.arange(context, dtype=torch.float32)
        self._turns = []  # for each rotary embedding cosines and sines [context, R/2]
        for rope in shape.ropes_for(context):
            angles = torch.outer(positions, torch.tensor(rope.frequencies))
            self._turns.append([(part * rope.scale).to(self.device) for part in (angles.cos(), angles.sin())])

    def new_cache(self) -> Any:
        """An empty cache; on the CPU its pages take memory only as tokens arrive."""
        shape = self.shape
        size = (shape.layers, 2, shape.kv_heads, self.context, shape.head_dim)
        return torch.empty(size, dtype=self.dtype, device=self.device)

    def forward(self, cache: Any, tokens: Any, start: int, every: bool) -> Any:
        """tokens int64 [T] at positions start… → logits float32 [T or 1, V]."""
        shape, weights = self.shape, self.weights
        x = F.embedding(tokens, weights.embedding).float() * shape.embedding_scale  # [T, D]
        for layer, keys_values, (rope, window) in zip(weights.layers, cache, shape.attention, strict=True):
            vectors = layer.vectors
            h = self._norm(x, vectors.get("attention_norm"), vectors.get("attention_norm_bias"))
            mixed = self._attention(layer, keys_values, h, start, rope, window)
            x = x + self._addition(linear(mixed, layer.out), vectors, "out_bias", "post_attention_norm")
            h = self._norm(x, vectors.get("ffn_norm"), vectors.get("ffn_norm_bias"))
            x = x + self._addition(self._ffn(layer, h), vectors, "down_bias", "post_ffn_norm")
        x = self._norm(x if every else x[-1:], weights.norm, weights.norm_bias)
        return capped(head(x, weights.head) * shape.logit_scale, shape.logit_cap)

    def _ffn(self, layer: Layer, h: Any) -> Any:
        """The feed-forward layer of normalized rows h (T, D), without the bias of down → (T, D)."""
        if layer.router is None:
            return self._gated(h, layer.gate_up, layer.down, layer.vectors.get("gate_up_bias"))
        weights, chosen = F.linear(h, layer.router).softmax(-1).topk(self.shape.experts_used)
        if self.shape.normalize_experts:
            weights = weights / weights.sum(-1, keepdim=True)
        mixed = torch.zeros_like(h)
        for expert in chosen.unique().tolist():
            rows, rank = torch.where(chosen == expert)
            out = self._gated(h[rows], layer.gate_up[expert], layer.down[expert], None)
            mixed.index_add_(0, rows, out * weights[rows, rank, None])
        return mixed

    def _gated(self, h: Any, gate_up: Any, down: Any, bias: Any | None) -> Any:
        gate, up = biased(linear(h, gate_up), bias).chunk(2, -1)
        active = F.gelu(gate, approximate="tanh") if self.shape.family.gelu else F.silu(gate)
        return linear(active * up, down)

    def _attention(self, layer: Layer, keys_values: Any, h: Any, start: int, rope: int, window: int) -> Any:
        """Attention of normalized rows h (T, D) over the layer's cache, which gets their keys and values → (T, H·E)."""
        shape, vectors, count = self.shape, layer.vectors, len(h)
        qkv = biased(linear(h, layer.qkv), vectors.get("qkv_bias"))
        sizes = [heads * shape.head_dim for heads in (shape.heads, shape.kv_heads, shape.kv_heads)]
        q, k, v = qkv.split(sizes, -1)
        norms = vectors.get("query_norm"), vectors.get("key_norm")
        when = shape.family.qk_norm
        if when == "wide":
            q, k = (self._norm(part, norm) for part, norm in zip((q, k), norms, strict=True))
        q, k, v = (part.reshape(count, -1, shape.head_dim) for part in (q, k, v))
        if when == "heads":
            q, k = (self._norm(part, norm) for part, norm in zip((q, k), norms, strict=True))
        if rope >= 0:
            cos, sin = (part[start : start + count, None] for part in self._turns[rope])
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if when == "after_rope":
            q, k = (self._norm(part, norm) for part, norm in zip((q, k), norms, strict=True))
        keys_values[:, :, start : start + count] = torch.stack((k, v)).transpose(1, 2)
        if shape.growth:
            positions = torch.arange(start, start + count, device=self.device)
            q = q * (1 + shape.growth * torch.log1p(positions // shape.growth_tokens))[:, None, None]
        begin = max(0, start + 1 - window) if window else 0  # what no row sees before
        mask = _visible(count, start - begin, window, self.device)
        scale = shape.attention_scale or shape.head_dim**-0.5
        return attend(q, keys_values[:, :, begin : start + count], mask, scale, shape.attention_cap)

    def _addition(self, x: Any, vectors: Mapping[str, Any], bias: str, norm: str) -> Any:
        """What is added to the residual stream, from a product: with its bias, its norm and the model's scale."""
        x = biased(x, vectors.get(bias))
        if norm in vectors:
            x = F.rms_norm(x, (x.shape[-1],), vectors[norm], self.shape.epsilon)
        return x * self.shape.residual_scale

    def _norm(self, x: Any, weight: Any | None, bias: Any | None = None) -> Any:
        if weight is None:
            return x
        if self.shape.family.layer_norm:
            return F.layer_norm(x, (x.shape[-1],), weight, bias, self.shape.epsilon)
        return F.rms_norm(x, (x.shape[-1],), weight, self.shape.epsilon)


def biased(x: Any, bias: Any | None) -> Any:
    """x + bias, where there is one."""
    return x if bias is None else x + bias


def capped(x: Any, cap: float) -> Any:
    """cap · tanh(x / cap), where there is a cap."""
    return torch.tanh(x / cap) * cap if cap else x


def linear(x: Any, weight: Any) -> Any:
    """x (T, in) float32 @ weight (out, in)ᵀ → (T, out) float32."""
    if weight.dtype == torch.float32:
        return F.linear(x, weight)
    if weight.device.type != "cpu" or len(x) == 1:
        return F.linear(x.to(weight.dtype), weight).float()
    return widened(x, weight)


def widened(x: Any, weight: Any) -> Any:
    """The same in float32, a piece of the weight at a time."""
    rows = max(1, PIECE // weight.shape[1])
    return torch.cat([F.linear(x, piece.float()) for piece in weight.split(rows)], -1)


def head(x: Any, weight: Any) -> Any:
    """x (T, D) → logits (T, V), float32; for one token the best ones exact, the others as bfloat16 gives them."""
    if weight.dtype == torch.float32:
        return F.linear(x, weight)
    if weight.device.type != "cpu" or len(x) > 1 or len(weight) <= EXACT:
        return widened(x, weight)
    logits = linear(x, weight)
    best = logits[0].topk(EXACT).indices
    logits[0, best] = F.linear(x, weight[best].float())[0]
    return logits


def rotate(x: Any, cos: Any, sin: Any) -> Any:
    """Rotary embedding of x (T, heads, E): the pairs are (i, i + E/2); only the first 2 · len(cos) of E are turned."""
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)


def attend(q: Any, keys_values: Any, mask: Any | None, scale: float, cap: float) -> Any:
    """q (T, H, E) float32 over keys and values (2, G, N, E) → (T, H·E) float32."""
    count, heads, size = q.shape
    groups = keys_values.shape[1]
    if cap:
        keys, values = keys_values.float().repeat_interleave(heads // groups, 1)
        scores = capped(q.transpose(0, 1) @ keys.transpose(1, 2) * scale, cap)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return (scores.softmax(-1) @ values).transpose(0, 1).reshape(count, heads * size)
    if count == 1:  # the heads of a group are rows of one query, so that nothing is copied or widened
        rows = q.view(groups, heads // groups, size).to(keys_values.dtype)
        mixed = F.scaled_dot_product_attention(rows[None], keys_values[None, 0], keys_values[None, 1], scale=scale)
        return mixed.reshape(1, heads * size).float()
    keys, values = keys_values.float()
    mixed = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None], keys[None], values[None], mask, enable_gqa=True, scale=scale
    )
    return mixed[0].transpose(0, 1).reshape(count, heads * size)


def _visible(count: int, start: int, window: int, device: Any) -> Any | None:
    """True where query i (position start + i) may look at key j; (T, start + T). None for one token: it sees all."""
    if count == 1:
        return None
    ones = torch.ones(count, start + count, dtype=torch.bool, device=device)
    return ones.tril(start) & ones.triu(start + 1 - window) if window else ones.tril(start)
