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
from edged.models.formats.gguf import GgufFile


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


ROTARY_SCALINGS: Final = frozenset({"none", "linear"})  # of those that GGUF files name


class GgufFigures:
    """Metadata of one architecture in a GGUF file, each value of the kind that is wanted. Raises ModelError."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self._file = file
        self._architecture = architecture

    def whole(self, key: str, default: int | None = None) -> int:
        """A number from 1 to 10,000,000."""
        value = self._get(key, default)
        if not isinstance(value, int) or not 1 <= value <= 10_000_000:
            raise self._wrong(key, value)
        return value

    def number(self, key: str, default: float) -> float:
        """A finite number."""
        value = self._get(key, default)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self._wrong(key, value)
        return float(value)

    def word(self, key: str, default: str) -> str:
        """A text."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value)
        return value

    def _get(self, key: str, default: Any) -> Any:
        return self._file.get(f"{self._architecture}.{key}", default)

    def _wrong(self, key: str, value: Any) -> ModelError:
        shown = repr(value)[:60]
        name = self._file.path.name
        return ModelError("bad_model", f"{name} gives {shown} for {self._architecture}.{key}; fetch it again.")


def shape_from_gguf(file: GgufFile) -> Shape:
    """The shape that a GGUF file describes. Raises ModelError."""
    architecture = file.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in FAMILIES:
        raise _unsupported(f"the architecture {str(architecture)[:60]!r}")
    figures = GgufFigures(file, architecture)
    width, heads = figures.whole("embedding_length"), figures.whole("attention.head_count")
    head_dim = figures.whole("attention.key_length", width // heads)
    context, window = figures.whole("context_length"), figures.number("attention.sliding_window", 0)
    if figures.number("expert_count", 0):
        raise _unsupported("a mixture of experts")
    if figures.whole("rope.dimension_count", head_dim) != head_dim:
        raise _unsupported("rotary embedding over a part of the head")
    if figures.whole("attention.value_length", head_dim) != head_dim:
        raise _unsupported("values of another size than keys")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError("bad_model", f"{file.path.name} has no token embedding; fetch or convert it again.")
    plain = _plain(figures.number("rope.freq_base", 10_000.0), head_dim)
    return check_shape(
        Shape(
            architecture=architecture,
            layers=figures.whole("block_count"),
            width=width,
            ffn=figures.whole("feed_forward_length"),
            heads=heads,
            kv_heads=figures.whole("attention.head_count_kv", heads),
            head_dim=head_dim,
            vocabulary=embedding.shape[0],
            context=min(context, int(window)) if window > 0 else context,
            epsilon=figures.number("attention.layer_norm_rms_epsilon", 1e-5),
            frequencies=tuple(
                value / factor for value, factor in zip(plain, _native_factors(file, figures, head_dim), strict=True)
            ),
        )
    )


def _native_factors(file: GgufFile, figures: GgufFigures, head_dim: int) -> list[float]:
    scaling = figures.word("rope.scaling.type", "none")
    if scaling not in ROTARY_SCALINGS:
        raise _unsupported(f"rotary embedding of the kind {scaling[:60]!r}")
    return rotary_factors(file, figures, head_dim // 2)


def rotary_factors(file: GgufFile, figures: GgufFigures, pairs: int) -> list[float]:
    """What each pair's rotary frequency is divided by: linear scaling times the factors that the file lists.

    Raises ModelError `bad_model`.
    """
    linear = figures.word("rope.scaling.type", "none") == "linear"
    all_of_them = figures.number("rope.scaling.factor", 1.0) if linear else 1.0
    listed = file.dequantize("rope_freqs.weight") if "rope_freqs.weight" in file.tensors else [1.0] * pairs
    factors = [all_of_them * float(value) for value in listed]
    if len(factors) != pairs or not all(factor > 0 for factor in factors):
        raise ModelError("bad_model", f"The rotary factors in {file.path.name} do not fit its heads; fetch it again.")
    return factors


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
