"""The Llama family in torch, from a GGUF file: Llama, Mistral, Qwen2, Qwen3 (dense, full attention).

Written out because building transformers' classes costs 6 s of imports and 95 MB, and because weights kept in bfloat16
serve best when they are used in two ways (docs/decisions/0012): a single token multiplies them as they are, which
reads half the bytes of float32; a chunk of a prompt widens them piece by piece and multiplies in float32, since few
boards multiply bfloat16 matrices fast.

Formulas: RMS norm (Zhang & Sennrich 2019), rotary embedding (Su et al. 2021), SwiGLU (Shazeer 2020), grouped-query
attention (Ainslie et al. 2023). Shapes: T tokens, D width, H heads, G key/value heads, E head dimension, F ffn width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.nn import functional as F  # noqa: N812 torch's own name for it

from edged.models.formats.shape import Shape

PIECE: Final = 1 << 22  # weights widened to float32 at a time: 16 MB, which caches still hold in part
EXACT: Final = 256  # best logits that are computed again in float32, since bfloat16 has ties among them


@dataclass(frozen=True)
class Layer:
    """Weights of one layer: qkv ((H+2G)·E, D), out (D, H·E), gate_up (2F, D), down (D, F); norms float32."""

    attention_norm: Any
    qkv: Any
    qkv_bias: Any | None
    query_norm: Any | None
    key_norm: Any | None
    out: Any
    ffn_norm: Any
    gate_up: Any
    down: Any


@dataclass(frozen=True)
class Weights:
    """All weights. `head` is `embedding` itself where the two are tied; both (V, D)."""

    embedding: Any
    layers: tuple[Layer, ...]
    norm: Any
    head: Any


class LlamaNetwork:
    """Weights and the forward pass. A cache is one tensor [layers, 2, G, context, E] in the weights' type."""

    def __init__(self, shape: Shape, weights: Weights, context: int) -> None:
        self.shape = shape
        self.weights = weights
        self.context = context
        self.device = weights.embedding.device
        self.dtype = weights.embedding.dtype
        angles = torch.outer(torch.arange(context, dtype=torch.float32), torch.tensor(shape.frequencies))
        self._cos = angles.cos().to(self.device)  # [context, E/2]
        self._sin = angles.sin().to(self.device)

    def new_cache(self) -> Any:
        """An empty cache; on the CPU its pages take memory only as tokens arrive."""
        shape = self.shape
        size = (shape.layers, 2, shape.kv_heads, self.context, shape.head_dim)
        return torch.empty(size, dtype=self.dtype, device=self.device)

    def forward(self, cache: Any, tokens: Any, start: int, every: bool) -> Any:
        """tokens int64 [T] at positions start… → logits float32 [T or 1, V]."""
        shape, weights = self.shape, self.weights
        count = len(tokens)
        x = F.embedding(tokens, weights.embedding).float()  # [T, D]
        cos, sin = self._cos[start : start + count, None], self._sin[start : start + count, None]
        mask = _causal(count, start, self.device)
        for layer, keys_values in zip(weights.layers, cache, strict=True):
            h = self._norm(x, layer.attention_norm)
            qkv = linear(h, layer.qkv)
            if layer.qkv_bias is not None:
                qkv = qkv + layer.qkv_bias
            q, k, v = qkv.view(count, -1, shape.head_dim).split([shape.heads, shape.kv_heads, shape.kv_heads], 1)
            if layer.query_norm is not None:
                q, k = self._norm(q, layer.query_norm), self._norm(k, layer.key_norm)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            keys_values[:, :, start : start + count] = torch.stack((k, v)).transpose(1, 2)
            x = x + linear(attend(q, keys_values[:, :, : start + count], mask), layer.out)
            h = self._norm(x, layer.ffn_norm)
            gate, up = linear(h, layer.gate_up).chunk(2, -1)
            x = x + linear(F.silu(gate) * up, layer.down)
        x = self._norm(x if every else x[-1:], weights.norm)
        return head(x, weights.head)

    def _norm(self, x: Any, weight: Any) -> Any:
        return F.rms_norm(x, (x.shape[-1],), weight, self.shape.epsilon)


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


def attend(q: Any, keys_values: Any, mask: Any | None) -> Any:
    """q (T, H, E) float32 over keys and values (2, G, N, E) → (T, H·E) float32."""
    count, heads, size = q.shape
    groups = keys_values.shape[1]
    if count == 1:  # the heads of a group are rows of one query, so that nothing is copied or widened
        rows = q.view(groups, heads // groups, size).to(keys_values.dtype)
        mixed = F.scaled_dot_product_attention(rows[None], keys_values[None, 0], keys_values[None, 1])
        return mixed.reshape(1, heads * size).float()
    keys, values = keys_values.float()
    mixed = F.scaled_dot_product_attention(q.transpose(0, 1)[None], keys[None], values[None], mask, enable_gqa=True)
    return mixed[0].transpose(0, 1).reshape(count, heads * size)


def _causal(count: int, start: int, device: Any) -> Any | None:
    """True where query i (position start + i) may look at key j; (T, start + T). None for one token: it sees all."""
    if count == 1:
        return None
    return torch.ones(count, start + count, dtype=torch.bool, device=device).tril(start)
