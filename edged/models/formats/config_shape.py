"""The shape that a checkpoint's `config.json` describes. Keys are those of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edged.core.errors import ModelError
from edged.models.formats.rope import config_frequencies
from edged.models.formats.shape import FAMILIES, Shape, check_native, not_native


def native_shape_from_config(config: Mapping[str, Any]) -> Shape:
    """The shape as the native engine runs it: within the sliding window, where there is one. Raises ModelError."""
    architecture = config.get("model_type")
    if architecture not in FAMILIES:
        raise not_native(f"the architecture {architecture!r}")
    try:
        return check_native(_read(config, str(architecture)))
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise ModelError(
            "bad_model", f"A figure in config.json is missing or wrong ({error!r}); fetch the model again."
        ) from error


def _read(config: Mapping[str, Any], architecture: str) -> Shape:
    width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or width // heads)
    context = int(config["max_position_embeddings"])
    window = config.get("sliding_window")
    if config.get("use_sliding_window", architecture == "mistral") and window:
        context = min(context, int(window))
    if config.get("hidden_act", "silu") != "silu" or config.get("mlp_bias"):
        raise not_native("another activation than SiLU, or biases in the feed-forward layers")
    return Shape(
        architecture=architecture,
        layers=int(config["num_hidden_layers"]),
        width=width,
        ffn=int(config["intermediate_size"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=head_dim,
        vocabulary=int(config["vocab_size"]),
        context=context,
        epsilon=float(config.get("rms_norm_eps", 1e-6)),
        frequencies=config_frequencies(config, head_dim),
    )
