"""Frequencies of the rotary embedding (RoPE, Su et al. 2021), scaled for longer contexts as a model says.

A pair i of a head's values is rotated by position · frequency(i) radians; unscaled, frequency(i) = base^(−2i / R) with
R rotated values. The kinds of scaling are those of transformers' `modeling_rope_utils.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edged.core.errors import ModelError
from edged.models.formats.shape import Rope, not_native


def base_frequencies(base: float, rotated: int) -> list[float]:
    """The frequencies without scaling, [rotated / 2]. Raises ModelError `bad_model`."""
    if not base > 0:
        raise ModelError("bad_model", f"The rotary base {base} is not positive; fetch the model again.")
    return [base ** (-2 * pair / rotated) for pair in range(rotated // 2)]


def config_rope(figures: Mapping[str, Any], rotated: int, context: int) -> tuple[Rope, Rope | None]:
    """The rotary embedding that `rope_parameters` of a checkpoint's `config.json` describe, and that for sequences
    beyond `original_max_position_embeddings` where it is another.

    `context`: the most tokens of the model. Raises ModelError `unsupported` or `bad_model`; KeyError, TypeError or
    ValueError for figures that are missing or no numbers.
    """
    kind = figures.get("rope_type", figures.get("type", "default"))
    base = float(figures["rope_theta"])
    if kind == "dynamic" and figures.get("alpha"):  # Hunyuan's: a larger base, whatever the sequence's length
        base *= float(figures["alpha"]) ** (rotated / (rotated - 2))
        kind = "default"
    plain = base_frequencies(base, rotated)
    if kind in {"default", "dynamic"}:  # dynamic scaling begins beyond the model's own context
        return Rope(tuple(plain)), None
    if kind == "longrope":
        return longrope(figures, plain, context)
    factor = float(figures["factor"])
    if kind == "linear":
        return Rope(tuple(value / factor for value in plain)), None
    trained = float(figures["original_max_position_embeddings"])
    if kind == "llama3":
        low, high = float(figures["low_freq_factor"]), float(figures["high_freq_factor"])
        return Rope(tuple(llama3(value, factor, low, high, trained) for value in plain)), None
    if kind == "yarn":
        fast, slow = float(figures.get("beta_fast") or 32), float(figures.get("beta_slow") or 1)
        whole = bool(figures.get("truncate", True))
        return Rope(tuple(yarn(base, rotated, factor, trained, fast, slow, whole)), _yarn_scale(figures, factor)), None
    raise not_native(f"rotary scaling of the kind {kind!r}")


def llama3(frequency: float, factor: float, low: float, high: float, trained: float) -> float:
    """One frequency scaled as in Llama 3.1.

    Low frequencies are divided by `factor`, high ones kept, those between blended; `low` and `high` are numbers of
    turns within `trained`, the context of the first training.
    """
    turns = trained * frequency / (2 * math.pi)
    if turns < low:
        return frequency / factor
    if turns > high:
        return frequency
    kept = (turns - low) / (high - low)
    return (1 - kept) * frequency / factor + kept * frequency


def yarn(
    base: float, rotated: int, factor: float, trained: float, fast: float, slow: float, whole: bool = True
) -> list[float]:
    """The frequencies as YaRN scales them (Peng et al. 2023): pairs that turn more than `fast` times within `trained`
    tokens are kept, those that turn less than `slow` times divided by `factor`, those between blended pair by pair.
    `whole`: the two bounds are rounded to whole pairs."""

    def pair_of(turns: float) -> float:
        return rotated * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = pair_of(fast), pair_of(slow)
    if whole:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotated - 1)
    span = high - low if high != low else 0.001
    scaled = []
    for pair, value in enumerate(base_frequencies(base, rotated)):
        divided = min(max((pair - low) / span, 0.0), 1.0)
        scaled.append(value / factor * divided + value * (1 - divided))
    return scaled


def yarn_scale(factor: float, multiplier: float = 1.0) -> float:
    """The length that YaRN gives to queries and keys, each."""
    return 0.1 * multiplier * math.log(factor) + 1 if factor > 1 else 1.0


def _yarn_scale(figures: Mapping[str, Any], factor: float) -> float:
    if figures.get("attention_factor") is not None:
        return float(figures["attention_factor"])
    one, all_dims = figures.get("mscale"), figures.get("mscale_all_dim")
    if one and all_dims:
        return yarn_scale(factor, float(one)) / yarn_scale(factor, float(all_dims))
    return yarn_scale(factor)


def longrope(figures: Mapping[str, Any], plain: Sequence[float], context: int) -> tuple[Rope, Rope]:
    """LongRoPE's two embeddings (Ding et al. 2024): each frequency divided by a factor of its own."""
    trained = float(figures["original_max_position_embeddings"])
    factor = float(figures.get("factor") or context / trained)
    scale = figures.get("attention_factor")
    if scale is None:
        scale = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
    short, long = (divided(plain, figures[key]) for key in ("short_factor", "long_factor"))
    return Rope(short, float(scale)), Rope(long, float(scale))


def divided(plain: Sequence[float], factors: Sequence[float]) -> tuple[float, ...]:
    """Each frequency divided by its factor. Raises ModelError `bad_model`."""
    if len(factors) != len(plain) or not all(float(factor) > 0 for factor in factors):
        raise ModelError("bad_model", "The model's rotary factors do not fit its heads; fetch it again.")
    return tuple(value / float(factor) for value, factor in zip(plain, factors, strict=True))
