"""How the decoders that the native engine runs differ: one record for each architecture, and the shape of one model.

A shape is read from a GGUF file's metadata (keys as in ggml's `docs/gguf.md`) or from a checkpoint's `config.json`
(keys as in transformers). What a record cannot say is refused as `unsupported`, so that the torch backend can take it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from edged.core.errors import ModelError
from edged.models.gguf_file import GgufFile


@dataclass(frozen=True)
class Family:
    """`qkv_bias`, `qk_norm`: extra vectors of attention. `turned`: the GGUF converter reorders query and key rows."""

    qkv_bias: bool = False
    qk_norm: bool = False
    turned: bool = False


FAMILIES: Final[Mapping[str, Family]] = {
    "llama": Family(turned=True),
    "mistral": Family(turned=True),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm=True),
}


@dataclass(frozen=True)
class Shape:
    """A decoder's figures. `frequencies`: the rotary embedding's, radians a position for each of head_dim / 2 pairs."""

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


def check_shape(shape: Shape) -> Shape:
    """The shape itself. Raises ModelError `bad_model` for absurd figures, `unsupported` for those the kernels cannot
    run."""
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
    if shape.head_dim % 8 or not 8 <= shape.head_dim <= 256 or shape.width % 8 or shape.heads // shape.kv_heads > 48:
        raise ModelError(
            "unsupported",
            f"The native engine runs head dimensions 8 to 256 in steps of 8, not {shape.head_dim}; use torch.",
        )
    if len(shape.frequencies) != shape.head_dim // 2 or not 0 <= shape.epsilon < 1:
        raise ModelError("bad_model", "The model's rotary frequencies or epsilon are wrong; fetch it again.")
    return shape


def shape_from_gguf(file: GgufFile) -> Shape:
    """The shape that a GGUF file describes. Raises ModelError."""
    architecture = file.get("general.architecture")
    if architecture not in FAMILIES:
        raise _unsupported(f"the architecture {architecture!r}")

    def figure(key: str, default: int | None = None) -> int:
        value = file.get(f"{architecture}.{key}", default)
        if not isinstance(value, int) or not 1 <= value <= 10_000_000:
            raise ModelError("bad_model", f"{file.path.name} gives {value!r} for {architecture}.{key}; fetch it again.")
        return value

    width, heads = figure("embedding_length"), figure("attention.head_count")
    head_dim = figure("attention.key_length", width // heads)
    context = figure("context_length")
    scaling = file.get(f"{architecture}.rope.scaling.type", "none")
    if file.get(f"{architecture}.expert_count"):
        raise _unsupported("a mixture of experts")
    if scaling not in {"none", "linear"} or figure("rope.dimension_count", head_dim) != head_dim:
        raise _unsupported(f"rotary embedding of the kind {scaling!r} or over a part of the head")
    if figure("attention.value_length", head_dim) != head_dim:
        raise _unsupported("values of another size than keys")
    factors = [float(file.get(f"{architecture}.rope.scaling.factor", 1.0)) if scaling == "linear" else 1.0] * (
        head_dim // 2
    )
    if "rope_freqs.weight" in file.tensors:
        factors = [float(value) for value in file.dequantize("rope_freqs.weight")]
    if len(factors) != head_dim // 2 or not all(factor > 0 for factor in factors):
        raise ModelError("bad_model", f"The rotary factors in {file.path.name} do not fit its heads; fetch it again.")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError("bad_model", f"{file.path.name} has no token embedding; fetch or convert it again.")
    window = file.get(f"{architecture}.attention.sliding_window")
    base = float(file.get(f"{architecture}.rope.freq_base", 10_000.0))
    return check_shape(
        Shape(
            architecture=str(architecture),
            layers=figure("block_count"),
            width=width,
            ffn=figure("feed_forward_length"),
            heads=heads,
            kv_heads=figure("attention.head_count_kv", heads),
            head_dim=head_dim,
            vocabulary=embedding.shape[0],
            context=min(context, window) if isinstance(window, int) and window > 0 else context,
            epsilon=float(file.get(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)),
            frequencies=tuple(plain / factor for plain, factor in zip(_plain(base, head_dim), factors, strict=True)),
        )
    )


def shape_from_config(config: Mapping[str, Any]) -> Shape:
    """The shape that a checkpoint's `config.json` describes. Raises ModelError."""
    architecture = config.get("model_type")
    if architecture not in FAMILIES:
        raise _unsupported(f"the architecture {architecture!r}")
    try:
        width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        head_dim = int(config.get("head_dim") or width // heads)
        context = int(config["max_position_embeddings"])
        window = config.get("sliding_window")
        if config.get("use_sliding_window", architecture == "mistral") and window:
            context = min(context, int(window))
        if config.get("hidden_act", "silu") != "silu" or config.get("mlp_bias"):
            raise _unsupported("another activation than SiLU, or biases in the feed-forward layers")
        return check_shape(
            Shape(
                architecture=str(architecture),
                layers=int(config["num_hidden_layers"]),
                width=width,
                ffn=int(config["intermediate_size"]),
                heads=heads,
                kv_heads=int(config.get("num_key_value_heads") or heads),
                head_dim=head_dim,
                vocabulary=int(config["vocab_size"]),
                context=context,
                epsilon=float(config.get("rms_norm_eps", 1e-6)),
                frequencies=_frequencies(config, head_dim),
            )
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise ModelError(
            "bad_model", f"config.json lacks or spoils a figure ({error!r}); fetch the model again."
        ) from error


def _plain(base: float, head_dim: int) -> list[float]:
    if not base > 0:
        raise ModelError("bad_model", f"The rotary base {base} is not positive; fetch the model again.")
    return [base ** (-2 * pair / head_dim) for pair in range(head_dim // 2)]


def _frequencies(config: Mapping[str, Any], head_dim: int) -> tuple[float, ...]:
    """Rotary frequencies, scaled as the config says (transformers 5: `rope_parameters`; before: `rope_theta`,
    `rope_scaling`)."""
    scaling = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    plain = _plain(float(scaling.get("rope_theta", config.get("rope_theta", 10_000.0))), head_dim)
    if scaling.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) not in {None, 1.0}:
        raise _unsupported("rotary embedding over a part of the head")
    if kind == "default":
        return tuple(plain)
    if kind == "linear":
        return tuple(value / float(scaling["factor"]) for value in plain)
    if kind == "llama3":
        low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
        factor, trained = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])
        return tuple(_llama3(value, factor, low, high, trained) for value in plain)
    raise _unsupported(f"rotary scaling of the kind {kind!r}")


def _llama3(frequency: float, factor: float, low: float, high: float, trained: float) -> float:
    """Llama 3.1's scaling: slow pairs are stretched by `factor`, fast ones kept, those between blended."""
    turns = trained * frequency / (2 * math.pi)  # within the context the model was first trained for
    if turns < low:
        return frequency / factor
    if turns > high:
        return frequency
    kept = (turns - low) / (high - low)
    return (1 - kept) * frequency / factor + kept * frequency


def _unsupported(what: str) -> ModelError:
    return ModelError("unsupported", f"The native engine does not run {what}; the torch backend may.")
