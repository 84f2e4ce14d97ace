"""The decoder families: how each differs from Llama. The one forward pass reads these records.

A model's figures (scales, windows, frequencies) are in its Shape. Sources: transformers' `modeling_*.py` for the
computation, llama.cpp's converter for the layout of GGUF files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal


@dataclass(frozen=True)
class Family:
    """How an architecture differs from Llama.

    `qkv_bias`: attention's projections always have biases (any family may have them). `qk_norm`: queries and keys are
    normalized, each head by itself, all heads together (`wide`), or each head after the rotary embedding. `pre_norm`:
    the input of attention and ffn is normalized; `post_norm`: their output is. `layer_norm`: norms subtract the mean
    and have biases. `gelu`: GELU (tanh form) in place of SiLU. `norm_offset`: what a checkpoint's norm weights lack;
    GGUF files have it. `gguf_pairs`, `hub_pairs`: GGUF files, or checkpoints, hold the rows of a query or key head in
    the order 0, R/2, 1, R/2 + 1, … (R: the rotated values of a head). `fused`: what lies in one tensor with its
    neighbours: query, key and value, or gate and up. `experts`: in place of gate, up and down, layers have a mixture of
    experts. `hub`, `gguf`: a checkpoint's or GGUF file's names that differ from Llama's; `{}` in a checkpoint's is the
    number of an expert, names of experts without it are those of tensors that hold all. `hybrid`: some layers have a
    recurrent state in place of keys and values (`Shape.kind_of`). `gated`: attention's result is multiplied by the
    sigmoid of a gate, whose rows follow those of each query head in files. `ignored`: beginnings of the names of
    tensors beside the language model.
    """

    qkv_bias: bool = False
    qk_norm: Literal["", "heads", "wide", "after_rope"] = ""
    pre_norm: bool = True
    post_norm: bool = False
    layer_norm: bool = False
    gelu: bool = False
    norm_offset: float = 0.0
    gguf_pairs: bool = False
    hub_pairs: bool = False
    fused: frozenset[str] = frozenset()
    experts: bool = False
    hub: Mapping[str, str] = field(default_factory=dict)
    gguf: Mapping[str, str] = field(default_factory=dict)
    hybrid: bool = False
    gated: bool = False
    ignored: tuple[str, ...] = ()


_SANDWICH: Final = {
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffn_norm": "post_feedforward_layernorm",
}  # fmt: skip
_QKV, _GATE_UP = frozenset({"query", "key", "value"}), frozenset({"gate", "up"})

FAMILIES: Final[Mapping[str, Family]] = {
    "llama": Family(gguf_pairs=True),
    "mistral": Family(gguf_pairs=True),
    "mistral3": Family(gguf_pairs=True),
    "granite": Family(gguf_pairs=True),
    "smollm3": Family(gguf_pairs=True),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm="heads"),
    "qwen3moe": Family(
        qk_norm="heads", experts=True,
        hub={"router": "mlp.gate", **{part: f"mlp.experts.{{}}.{part}_proj" for part in ("gate", "up", "down")}},
    ),
    "granitemoe": Family(
        gguf_pairs=True, experts=True,
        hub={
            "router": "block_sparse_moe.router.layer", "gate_up": "block_sparse_moe.input_linear",
            "down": "block_sparse_moe.output_linear",
        },
    ),
    "gemma": Family(gelu=True, norm_offset=1.0),
    "gemma2": Family(post_norm=True, gelu=True, norm_offset=1.0, hub=_SANDWICH),
    "gemma3": Family(qk_norm="heads", post_norm=True, gelu=True, norm_offset=1.0, hub=_SANDWICH),
    "olmo2": Family(qk_norm="wide", pre_norm=False, post_norm=True, hub=_SANDWICH),
    "exaone4": Family(qk_norm="heads", pre_norm=False, post_norm=True, hub=_SANDWICH),
    "ernie4_5": Family(gguf_pairs=True, hub_pairs=True),
    "hunyuan-dense": Family(
        qk_norm="after_rope",
        hub={"query_norm": "self_attn.query_layernorm", "key_norm": "self_attn.key_layernorm"},
    ),
    "phi3": Family(fused=_QKV | _GATE_UP),
    "stablelm": Family(layer_norm=True),
    "glm4": Family(
        post_norm=True, gguf_pairs=True, hub_pairs=True, fused=_GATE_UP,
        hub={
            "post_attention_norm": "post_self_attn_layernorm", "ffn_norm": "post_attention_layernorm",
            "post_ffn_norm": "post_mlp_layernorm",
        },
    ),
    "lfm2": Family(
        qk_norm="heads", hybrid=True,
        hub={
            "final_norm": "model.embedding_norm", "attention_norm": "operator_norm", "ffn_norm": "ffn_norm",
            "query_norm": "self_attn.q_layernorm", "key_norm": "self_attn.k_layernorm", "out": "self_attn.out_proj",
            "gate": "feed_forward.w1", "up": "feed_forward.w3", "down": "feed_forward.w2",
        },
        gguf={"final_norm": "token_embd_norm"},
    ),
    "qwen35": Family(
        qk_norm="heads", norm_offset=1.0, hybrid=True, gated=True,
        hub={"taps": "linear_attn.conv1d"},
        gguf={"taps": "ssm_conv1d", "ffn_norm": "post_attention_norm"},
        ignored=("model.visual.", "mtp."),
    ),
}  # fmt: skip
# Other architectures whose GGUF files transformers reads, and so the torch backend.
TORCH_GGUF: Final = frozenset({
    "bloom", "deci", "falcon", "gpt2", "gpt-oss", "minimax-m2", "nemotron", "qwen2moe", "starcoder2",
})  # fmt: skip
# Architectures of checkpoints that neither backend runs: their state is no key/value cache, or their parts change when
# they are rounded.
NO_BACKEND: Final = frozenset({
    "bamba", "falcon_mamba", "gemma4_text", "jamba", "mamba", "mamba2", "phimoe", "recurrent_gemma", "rwkv", "xlstm",
    "zamba", "zamba2",
})  # fmt: skip
# A checkpoint's `model_type` → the family, where the names differ.
HUB_TYPES: Final[Mapping[str, str]] = {
    "gemma3_text": "gemma3", "ministral3": "mistral3", "hunyuan_v1_dense": "hunyuan-dense", "olmo3": "olmo2",
    "qwen3_moe": "qwen3moe", "qwen3_5_text": "qwen35", "qwen3_5": "qwen35",
    **{name: name for name in FAMILIES if name not in {"gemma3", "mistral3", "hunyuan-dense", "qwen3moe", "qwen35"}},
}  # fmt: skip
