"""Frequencies of the rotary embedding (RoPE, Su et al. 2021), scaled for longer contexts as a model says.

A pair i of a head's values is rotated by position · frequency(i) radians; unscaled, frequency(i) = base^(−2i / E) with
E rotated values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edged.core.errors import ModelError
from edged.models.formats.shape import not_native


def base_frequencies(base: float, rotated: int) -> list[float]:
    """The frequencies without scaling, [rotated / 2]. Raises ModelError `bad_model`."""
    if not base > 0:
        raise ModelError("bad_model", f"The rotary base {base} is not positive; fetch the model again.")
    return [base ** (-2 * pair / rotated) for pair in range(rotated // 2)]


def config_frequencies(config: Mapping[str, Any], head_dim: int) -> tuple[float, ...]:
    """The frequencies that a checkpoint's `config.json` describes, [head_dim / 2].

    Keys as in transformers (5: `rope_parameters`; before: `rope_theta`, `rope_scaling`). Raises ModelError
    `unsupported` or `bad_model`; KeyError, TypeError or ValueError for figures that are missing or no numbers.
    """
    scaling = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    plain = base_frequencies(float(scaling.get("rope_theta", config.get("rope_theta", 10_000.0))), head_dim)
    if scaling.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) not in {None, 1.0}:
        raise not_native("rotary embedding over a part of the head")
    if kind == "default":
        return tuple(plain)
    if kind == "linear":
        return tuple(value / float(scaling["factor"]) for value in plain)
    if kind == "llama3":
        low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
        factor, trained = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])
        return tuple(llama3(value, factor, low, high, trained) for value in plain)
    raise not_native(f"rotary scaling of the kind {kind!r}")


def llama3(frequency: float, factor: float, low: float, high: float, trained: float) -> float:
    """One frequency scaled as in Llama 3.1 (transformers, `modeling_rope_utils.py`, rope type `llama3`).

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
