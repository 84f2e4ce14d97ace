"""The shape that a checkpoint's `config.json` describes. Keys are those of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from edged.core.errors import ModelError
from edged.models.formats.families import FAMILIES, HUB_TYPES, NO_BACKEND
from edged.models.formats.rope import config_rope
from edged.models.formats.shape import DeltaNet, Rope, Shape, check_native, no_backend, not_native

_SLIDING, _FULL, _LINEAR = "sliding_attention", "full_attention", "linear_attention"
_GELU: Final = frozenset({"gelu_pytorch_tanh"})
# Each n-th layer sees all tokens, where the file does not list the layers.
_PATTERNS: Final = {"gemma2": 2, "gemma3": 6, "olmo3": 4}
# What transformers assumes where config.json leaves a key out (old files do).
_DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "gemma2": {"head_dim": 256, "query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0,
               "final_logit_softcapping": 30.0, "sliding_window": 4096},
    "gemma3_text": {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096,
                    "num_attention_heads": 8, "num_key_value_heads": 4, "rope_theta": 1e6, "vocab_size": 262_208,
                    "max_position_embeddings": 131_072},
    "gemma": {"head_dim": 256},
    "stablelm": {"partial_rotary_factor": 0.25, "num_key_value_heads": 32},
    "glm4": {"partial_rotary_factor": 0.5, "head_dim": 128},
    "ernie4_5": {"head_dim": 128},
    "smollm3": {"rope_theta": 2e6},
    "exaone4": {"sliding_window_pattern": 4},
    "qwen35": {"head_dim": 256, "partial_rotary_factor": 0.25, "linear_conv_kernel_dim": 4,
               "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16,
               "linear_num_value_heads": 32, "full_attention_interval": 4},
    "lfm2": {"norm_eps": 1e-5, "rope_theta": 1e6, "conv_L_cache": 3, "intermediate_size": 12_288},
    "qwen3_moe": {"num_experts_per_tok": 8, "moe_intermediate_size": 768},
    "granitemoe": {"num_local_experts": 8, "num_experts_per_tok": 2},
}  # fmt: skip


def native_shape_from_config(config: Mapping[str, Any]) -> Shape:
    """The shape as the native engine runs it. Raises ModelError."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in HUB_TYPES:
        unknown = no_backend if isinstance(kind, str) and kind in NO_BACKEND else not_native
        raise unknown(f"checkpoints of the architecture {str(kind)[:60]!r}")
    try:
        if kind == "qwen3_5":  # with its encoder of images beside it
            config, kind = {**config["text_config"], "model_type": "qwen3_5_text"}, "qwen3_5_text"
        given = {key: value for key, value in config.items() if value is not None}
        defaults = _DEFAULTS.get(kind, _DEFAULTS.get(HUB_TYPES[kind], {}))
        return check_native(_read({**defaults, **given}, kind))
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise ModelError(
            "bad_model", f"A figure in config.json is missing or wrong ({error!r}); fetch the model again."
        ) from error


def _read(config: Mapping[str, Any], kind: str) -> Shape:
    architecture = HUB_TYPES[kind]
    family = FAMILIES[architecture]
    _check_parts(config, architecture)
    epsilon = {True: "layer_norm_eps"}.get(family.layer_norm, "norm_eps" if kind == "lfm2" else "rms_norm_eps")
    width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    layers, head_dim = int(config["num_hidden_layers"]), int(config.get("head_dim") or width // heads)
    windows = _windows(config, kind, layers)
    ropes = _ropes(config, kind, head_dim, windows)
    scale = config.get("query_pre_attn_scalar") if family.gelu else None
    return Shape(
        architecture=architecture,
        layers=layers,
        width=width,
        ffn=_ffn(config, kind),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=head_dim,
        vocabulary=int(config["vocab_size"]),
        context=int(config["max_position_embeddings"]),
        epsilon=float(config.get(epsilon, 1e-6)),
        **ropes,
        window_of=tuple(windows) if any(windows) else (),
        embedding_scale=width**0.5 if family.gelu else float(config.get("embedding_multiplier", 1.0)),
        residual_scale=float(config.get("residual_multiplier", 1.0)),
        logit_scale=1 / float(config.get("logits_scaling", 1.0)),
        attention_scale=float(scale) ** -0.5 if scale else float(config.get("attention_multiplier", 0.0)),
        attention_cap=float(config.get("attn_logit_softcapping", 0.0)),
        logit_cap=float(config.get("final_logit_softcapping", 0.0)),
        **(_lfm2_layers(config, layers) if kind == "lfm2" else {}),
        **(_delta_nets(config, layers) if architecture == "qwen35" else {}),
        **_experts(config, kind),
    )


def _ffn(config: Mapping[str, Any], kind: str) -> int:
    """The width of the feed-forward layers, or of one expert."""
    if kind == "lfm2":
        return _lfm2_ffn(config)
    return int(config["moe_intermediate_size" if kind == "qwen3_moe" else "intermediate_size"])


def _lfm2_ffn(config: Mapping[str, Any]) -> int:
    """The width of the feed-forward layers, which old files give before two thirds of it are taken."""
    given = int(config.get("block_ff_dim") or config["intermediate_size"])
    if not config.get("block_auto_adjust_ff_dim", True):
        return given
    multiple = int(config.get("block_multiple_of", 256))
    return -(-int(float(config.get("block_ffn_dim_multiplier", 1.0)) * int(2 * given / 3)) // multiple) * multiple


def _lfm2_layers(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """The fields of Shape about kinds of layers."""
    attend = config.get("full_attn_idxs", range(layers))
    types = config.get("layer_types") or [_FULL if layer in attend else "conv" for layer in range(layers)]
    if len(types) != layers or not {*types} <= {_FULL, "conv"}:
        raise not_native(f"layers of the kinds {', '.join(sorted({str(name)[:40] for name in types}))}")
    kinds = tuple("convolution" if name == "conv" else "attention" for name in types)
    return {"kind_of": kinds, "taps": int(config["conv_L_cache"])} if "convolution" in kinds else {}


def _delta_nets(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """The same of Qwen3.5."""
    each = int(config["full_attention_interval"])
    types = config.get("layer_types") or [_FULL if (layer + 1) % each == 0 else _LINEAR for layer in range(layers)]
    if len(types) != layers or not {*types} <= {_FULL, _LINEAR}:
        raise not_native(f"layers of the kinds {', '.join(sorted({str(name)[:40] for name in types}))}")
    names = ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim")
    key_heads, value_heads, key_dim, value_dim = (int(config[f"linear_{name}"]) for name in names)
    net = DeltaNet(key_heads, value_heads, key_dim, value_dim)
    kinds = tuple("delta_net" if name == _LINEAR else "attention" for name in types)
    return {"kind_of": kinds, "taps": int(config["linear_conv_kernel_dim"]), "delta_net": net}


def _experts(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The fields of Shape about a mixture of experts."""
    if not FAMILIES[HUB_TYPES[kind]].experts:
        return {}
    if config.get("mlp_only_layers") or int(config.get("decoder_sparse_step", 1)) != 1:
        raise not_native("layers without experts beside layers with them")
    return {
        "experts": int(config.get("num_local_experts", config.get("num_experts", 128))),  # two names of one figure
        "experts_used": int(config["num_experts_per_tok"]),
        "normalize_experts": kind != "qwen3_moe" or bool(config.get("norm_topk_prob", False)),
    }


def _check_parts(config: Mapping[str, Any], architecture: str) -> None:
    """Raises ModelError `unsupported` for a part that the forward pass does not have."""
    activation = config.get("hidden_activation") or config.get("hidden_act", "silu")
    wanted = "gelu_pytorch_tanh" if FAMILIES[architecture].gelu else "silu"
    if architecture == "gemma" and activation == "gelu":  # as transformers: the first Gemma's files say so
        activation = wanted
    if activation != wanted:
        raise not_native(f"the activation {str(activation)[:60]!r} in {architecture}")
    if config.get("attn_output_gate") is False:
        raise not_native("Qwen3.5 without gates of attention")
    if config.get("use_bidirectional_attention"):
        raise not_native("attention to later tokens")
    if config.get("qk_layernorm") or config.get("use_parallel_residual"):
        raise not_native("StableLM with norms of queries and keys, or with parallel layers")


def _windows(config: Mapping[str, Any], kind: str, layers: int) -> list[int]:
    """How many tokens a token of each layer sees; 0: all."""
    window = int(config.get("sliding_window") or 0)
    if kind in {"mistral", "phi3", "mistral3", "ministral3"}:
        return [window] * layers
    if kind.startswith("qwen") and not config.get("use_sliding_window"):
        return [0] * layers
    if FAMILIES[HUB_TYPES[kind]].hybrid:
        return [0] * layers
    types = config.get("layer_types")
    if types is None and kind.startswith("qwen"):
        first = int(config.get("max_window_layers", 28))
        types = [_SLIDING if layer >= first else _FULL for layer in range(layers)]
    elif types is None:
        types = _pattern(config, kind, layers)
    if len(types) != layers or not {*types} <= {_SLIDING, _FULL}:
        raise not_native(f"layers of the kinds {', '.join(sorted({str(name)[:40] for name in types}))}")
    return [window if name == _SLIDING else 0 for name in types]


def _pattern(config: Mapping[str, Any], kind: str, layers: int) -> list[str]:
    if kind == "exaone4":
        each = config.get("sliding_window_pattern") if config.get("sliding_window") else 0
        each = len(each) if isinstance(each, str) else int(each or 0)  # "LLLG" is 4
        return [_SLIDING if each and (layer + 1) % each else _FULL for layer in range(layers)]
    each = int(config.get("sliding_window_pattern", _PATTERNS.get(kind.removesuffix("_text"), 0)))
    return [_SLIDING if each and (layer + 1) % each else _FULL for layer in range(layers)]


def _ropes(config: Mapping[str, Any], kind: str, head_dim: int, windows: list[int]) -> dict[str, Any]:
    """The fields of Shape about positions."""
    context, layers = int(config["max_position_embeddings"]), len(windows)
    figures = _rope_figures(config, kind, _FULL)
    rotated = int(head_dim * float(figures.get("partial_rotary_factor") or 1.0))
    rope, long = config_rope(figures, rotated, context)
    fields: dict[str, Any] = {"ropes": (rope,)}
    if long:
        fields |= {"long_ropes": (long,), "short_context": int(figures["original_max_position_embeddings"])}
    if kind in {"gemma3_text", "olmo3"} and any(windows):
        local: Rope = config_rope(_rope_figures(config, kind, _SLIDING), rotated, context)[0]
        fields |= {"ropes": (rope, local), "rope_of": tuple(1 if window else 0 for window in windows)}
    if kind == "smollm3":
        each = int(config.get("no_rope_layer_interval", 4))
        turned = config.get("no_rope_layers") or [int((layer + 1) % each != 0) for layer in range(layers)]
        fields["rope_of"] = tuple(0 if has else -1 for has in turned)
    if kind == "exaone4" and config.get("sliding_window"):
        fields["rope_of"] = tuple(0 if window else -1 for window in windows)
    if kind in {"ministral3", "mistral3"}:
        beta = figures.get("llama_4_scaling_beta")
        fields |= {"growth": float(beta or 0.0), "growth_tokens": int(figures["original_max_position_embeddings"])}
    return fields


def _rope_figures(config: Mapping[str, Any], kind: str, layer_type: str) -> dict[str, Any]:
    """`rope_parameters` of a kind of layer, filled up from the keys of older files."""
    given: Any = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    local = layer_type == _SLIDING
    if kind in {"gemma3_text", "olmo3"}:
        nested = {key: given.pop(key) for key in (_SLIDING, _FULL) if key in given}
        given = {**({} if local else given), **(nested.get(layer_type) or {})}
    base = config.get("rope_theta", 10_000.0)
    if local and kind == "gemma3_text":
        base = config.get("rope_local_base_freq", 10_000.0)
    figures = {"rope_theta": base, "partial_rotary_factor": config.get("partial_rotary_factor", 1.0), **given}
    if figures.get("type") in {"su", "yarn"} and kind == "phi3":
        figures["rope_type"] = "longrope"
    figures.setdefault(
        "original_max_position_embeddings",
        config.get("original_max_position_embeddings", config["max_position_embeddings"]),
    )
    return figures
