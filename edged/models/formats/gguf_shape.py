"""The shape that a GGUF file's metadata describes. Keys are those of ggml's `docs/gguf.md`.

What a file leaves out is as in llama.cpp, whose loader knows some figures of a family by heart: the base of Gemma 3's
local rotary embedding, which layers have a window, which have no rotary embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from edged.core.errors import ModelError
from edged.models.formats.families import FAMILIES, TORCH_GGUF, Family
from edged.models.formats.gguf import GgufFile
from edged.models.formats.gguf_figures import Figures
from edged.models.formats.rope import base_frequencies, divided, longrope, yarn, yarn_scale
from edged.models.formats.shape import DeltaNet, Rope, Shape, check_native, no_backend, not_native

# Each n-th layer sees all tokens, the others a window; 0: all layers have it.
_PATTERNS: Final[Mapping[str, int]] = {"gemma2": 2, "gemma3": 6, "olmo2": 4, "exaone4": 4, "mistral": 0, "phi3": 0}
# Layers of the sizes whose attention is scaled by the width of a head's share of the model in place of the head's.
_WIDE_HEADS: Final = {"gemma2": 46, "gemma3": 62}
_EXAONE4_LAYERS: Final = 64  # of the size that has windows; smaller ones have none, whatever the file says
_NO_ROPE_EACH: Final = 4  # SmolLM3


def shape_from_gguf(file: GgufFile) -> Shape:
    """The shape of a decoder of a known family; its context is the one of its training.

    Raises ModelError `unsupported` for another architecture, another mixture of experts, or metadata that is not
    applied; `bad_model` where figures are missing or do not fit the tensors.
    """
    architecture = file.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in FAMILIES:
        unknown = not_native if isinstance(architecture, str) and architecture in TORCH_GGUF else no_backend
        raise unknown(f"GGUF files of the architecture {str(architecture)[:60]!r}")
    figures = Figures(file, architecture)
    if not FAMILIES[architecture].experts and figures.count("expert_count"):
        raise no_backend(f"a mixture of experts in {architecture}")
    layers, width, heads = (figures.whole(key) for key in ("block_count", "embedding_length", "attention.head_count"))
    layers -= figures.count("nextn_predict_layers") if architecture == "qwen35" else 0  # they only propose tokens
    if architecture == "stablelm" and "blk.0.ffn_norm.weight" not in file.tensors:
        raise no_backend("StableLM with parallel layers")
    hybrid: dict[str, Any] = {}
    if FAMILIES[architecture].hybrid:
        kv_heads, hybrid = (_delta_nets if architecture == "qwen35" else _convolutions)(figures, layers)
    else:
        kv_heads = figures.whole("attention.head_count_kv", heads)
    head_dim = figures.whole("attention.key_length", width // heads)
    if figures.whole("attention.value_length", head_dim) != head_dim:
        raise no_backend("values of another size than keys")
    embedding = file.tensors.get("token_embd.weight")
    rotated = figures.whole("rope.dimension_count", head_dim)
    fits = embedding is not None and embedding.shape[1:] == (width,) and heads % kv_heads == 0
    if embedding is None or not fits or rotated > head_dim or rotated % 2:
        raise ModelError("bad_model", f"The sizes in {file.path.name} do not fit together; fetch the model again.")
    family = FAMILIES[architecture]
    windows = _windows(figures, architecture, layers)
    epsilon = "attention.layer_norm_epsilon" if family.layer_norm else "attention.layer_norm_rms_epsilon"
    wide = _WIDE_HEADS.get(architecture) == layers
    shape = Shape(
        architecture=architecture,
        layers=layers,
        width=width,
        ffn=_ffn(figures, family),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=embedding.shape[0],
        context=figures.whole("context_length"),
        epsilon=figures.number(epsilon, 1e-5),
        **_ropes(file, figures, architecture, rotated, windows),
        window_of=tuple(windows) if any(windows) else (),
        embedding_scale=width**0.5 if family.gelu else figures.number("embedding_scale", 0.0) or 1.0,
        residual_scale=figures.number("residual_scale", 0.0) or 1.0,
        logit_scale=1 / (figures.number("logit_scale", 0.0) or 1.0),
        attention_scale=(width / heads) ** -0.5 if wide else figures.number("attention.scale", 0.0),
        **_caps(figures, architecture),
        **_experts(figures, family),
        **hybrid,
    )
    figures.check_all_read()
    return shape


def native_shape_from_gguf(file: GgufFile) -> Shape:
    """The shape as the native engine runs it. Raises ModelError."""
    return check_native(shape_from_gguf(file))


def _convolutions(figures: Figures, layers: int) -> tuple[int, dict[str, Any]]:
    """The key/value heads, and the fields of Shape about kinds of layers: LFM2's convolutions have no such heads."""
    heads = figures.each("attention.head_count_kv", layers)
    if len(set(heads) - {0}) != 1:
        raise no_backend("layers with different numbers of key/value heads")
    kinds = tuple("attention" if count else "convolution" for count in heads)
    return max(heads), {"kind_of": kinds, "taps": figures.whole("shortconv.l_cache")}


def _delta_nets(figures: Figures, layers: int) -> tuple[int, dict[str, Any]]:
    """The same of Qwen3.5. llama.cpp's converter reorders its value heads."""
    each = figures.whole("full_attention_interval", 4)
    kinds = tuple("delta_net" if (layer + 1) % each else "attention" for layer in range(layers))
    key_heads, value_heads = figures.whole("ssm.group_count"), figures.whole("ssm.time_step_rank")
    values = figures.whole("ssm.inner_size")
    if values % value_heads:
        raise ModelError("bad_model", "The sizes of the model's linear attention do not fit together; fetch it again.")
    net = DeltaNet(key_heads, value_heads, figures.whole("ssm.state_size"), values // value_heads, tiled=True)
    figures.skip("rope.dimension_sections")  # all sections of a text's positions are the same
    fields = {"kind_of": kinds, "taps": figures.whole("ssm.conv_kernel"), "delta_net": net}
    return max(figures.each("attention.head_count_kv", layers)), fields


def _caps(figures: Figures, architecture: str) -> dict[str, Any]:
    """Gemma 2's, which llama.cpp assumes where the file has none; other families have none."""
    attention, final = (50.0, 30.0) if architecture == "gemma2" else (0.0, 0.0)
    return {
        "attention_cap": figures.number("attn_logit_softcapping", attention),
        "logit_cap": figures.number("final_logit_softcapping", final),
    }


def _ffn(figures: Figures, family: Family) -> int:
    """The width of the ffn, or of one expert's; a file of experts may give that of layers without, which are none."""
    if family.experts and figures.has("expert_feed_forward_length"):
        figures.count("feed_forward_length")
        return figures.whole("expert_feed_forward_length")
    return figures.whole("feed_forward_length")


def _experts(figures: Figures, family: Family) -> dict[str, Any]:
    """The fields of Shape about a mixture of experts. llama.cpp normalizes the weights of these families always."""
    if not family.experts:
        return {}
    if figures.count("expert_gating_func") not in {0, 1}:
        raise no_backend("experts that are chosen by another function than softmax")
    return {"experts": figures.whole("expert_count"), "experts_used": figures.whole("expert_used_count")}


def _windows(figures: Figures, architecture: str, layers: int) -> list[int]:
    """How many tokens a token of each layer sees; 0: all."""
    if architecture not in _PATTERNS:
        return [0] * layers  # a window is then metadata that is not applied
    window = figures.count("attention.sliding_window")
    flags = figures.flags("attention.sliding_window_pattern")
    if architecture == "exaone4" and layers != _EXAONE4_LAYERS and flags is None:
        return [0] * layers
    if flags is not None:
        if len(flags) < layers:
            raise ModelError("bad_model", "The model's list of windows is shorter than its layers; fetch it again.")
        return [window if flag else 0 for flag in flags[:layers]]
    each = figures.count("attention.sliding_window_pattern") or _PATTERNS[architecture]
    return [0 if each and (layer + 1) % each == 0 else window for layer in range(layers)]


def _ropes(file: GgufFile, figures: Figures, architecture: str, rotated: int, windows: list[int]) -> dict[str, Any]:
    """The fields of Shape about positions."""
    rope, long = _global_rope(file, figures, rotated)
    fields: dict[str, Any] = {"ropes": (rope,)}
    if long:
        fields |= {"long_ropes": (long,), "short_context": figures.whole("rope.scaling.original_context_length")}
    of_window = tuple(1 if window else 0 for window in windows)
    base = figures.number("rope.freq_base", 10_000.0)
    if architecture in {"gemma3", "olmo2"} and any(windows):  # layers with a window: no scaling
        local = figures.number("rope.freq_base_swa", 10_000.0 if architecture == "gemma3" else base)
        fields |= {"ropes": (rope, Rope(tuple(base_frequencies(local, rotated)))), "rope_of": of_window}
    if architecture == "exaone4" and any(windows):
        fields["rope_of"] = tuple(0 if window else -1 for window in windows)
    if architecture == "smollm3":
        fields["rope_of"] = tuple(-1 if (layer + 1) % _NO_ROPE_EACH == 0 else 0 for layer in range(len(windows)))
    if growth := figures.number("attention.temperature_scale", 0.0):
        trained = figures.whole("rope.scaling.original_context_length")
        fields |= {"growth": growth, "growth_tokens": figures.whole("attention.temperature_length", trained)}
    return fields


def _global_rope(file: GgufFile, figures: Figures, rotated: int) -> tuple[Rope, Rope | None]:
    """The rotary embedding of layers that see all tokens, and that for long sequences where it is another."""
    scaling = figures.word("rope.scaling.type", "none")
    base = figures.number("rope.freq_base", 10_000.0)
    plain = base_frequencies(base, rotated)
    context = figures.whole("context_length")
    trained = figures.whole("rope.scaling.original_context_length", context)
    if "rope_factors_long.weight" in file.tensors:
        named: dict[str, Any] = {
            f"{part}_factor": file.dequantize(f"rope_factors_{part}.weight").tolist() for part in ("short", "long")
        }
        scale = figures.number("rope.scaling.attn_factor", 0.0) or None
        figures.number("rope.scaling.factor", 0.0)  # llama.cpp derives the same from the two contexts
        return longrope(
            {**named, "original_max_position_embeddings": trained, "attention_factor": scale}, plain, context
        )
    if "rope_freqs.weight" in file.tensors:
        plain = list(divided(plain, file.dequantize("rope_freqs.weight").tolist()))
    factor = figures.number("rope.scaling.factor", 1.0) or 1.0
    if scaling == "none":
        return Rope(tuple(plain)), None
    if factor < 0:
        raise ModelError("bad_model", f"The rotary scaling in {file.path.name} is wrong; fetch the model again.")
    if scaling == "linear":
        return Rope(tuple(value / factor for value in plain)), None
    if scaling == "yarn" and "rope_freqs.weight" not in file.tensors:
        return _yarn(figures, base, rotated, factor, trained), None
    raise no_backend(f"rotary embedding of the kind {scaling[:60]!r}")


def _yarn(figures: Figures, base: float, rotated: int, factor: float, trained: int) -> Rope:
    """As `yarn` in transformers; `yarn_log_multiplier` is its `mscale_all_dim`, with `mscale` 1."""
    fast, slow = figures.number("rope.scaling.yarn_beta_fast", 32.0), figures.number("rope.scaling.yarn_beta_slow", 1.0)
    if figures.number("rope.scaling.yarn_ext_factor", 1.0) != 1.0:
        raise no_backend("YaRN with another extrapolation factor than 1")
    multiplier = figures.number("rope.scaling.yarn_log_multiplier", 0.0)
    scale = yarn_scale(factor) / (yarn_scale(factor, multiplier) if multiplier else 1.0)
    scale = figures.number("rope.scaling.yarn_attn_factor", 0.0) or figures.number("rope.scaling.attn_factor", scale)
    if not (fast > 0 and slow > 0 and base > 1 and math.isfinite(scale)):
        raise ModelError("bad_model", "The model's rotary scaling is wrong; fetch the model again.")
    return Rope(tuple(yarn(base, rotated, factor, float(trained), fast, slow)), scale)
