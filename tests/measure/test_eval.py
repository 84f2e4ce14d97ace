"""Perplexity, KL divergence and top-1 against figures worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from edged.core.errors import EdgedError
from edged.measure.eval import estimate, evaluate, windows


class Fixed:
    """Gives every token the same probabilities."""

    def __init__(self, *probabilities: float) -> None:
        self._row = np.log(np.asarray(probabilities, np.float32)) + 3  # logits may be shifted

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        return np.tile(self._row, (len(tokens), 1)).astype(np.float32)


def test_known_figures() -> None:
    reference, other = Fixed(0.5, 0.25, 0.25), Fixed(0.25, 0.5, 0.25)
    cut = [[0, 0, 0, 1], [0, 1, 0, 0]]  # of six predicted tokens four are 0, two are 1
    first, second = evaluate(cut, {"other": other}, ("reference", reference), lambda _: None)
    assert ("reference", "other") == (first.name, second.name)
    assert first.perplexity.value == pytest.approx(math.exp((4 * math.log(2) + 2 * math.log(4)) / 6), rel=1e-6)
    assert pytest.approx(math.exp((4 * math.log(4) + 2 * math.log(2)) / 6), rel=1e-6) == second.perplexity.value
    assert second.ratio is not None
    assert pytest.approx(second.perplexity.value / first.perplexity.value, rel=1e-6) == second.ratio.value
    assert second.kl is not None
    assert pytest.approx(0.5 * math.log(2) + 0.25 * math.log(0.5), rel=1e-5) == second.kl.value
    assert second.top1 is not None
    assert 0.0 == second.top1.value
    assert first.kl is None


def test_the_same_model_is_its_own_reference() -> None:
    model = Fixed(0.7, 0.2, 0.1)
    _, same = evaluate([[0, 1, 2], [2, 1, 0]], {"same": model}, ("reference", model), lambda _: None)
    assert same.kl is not None
    assert same.top1 is not None
    assert same.ratio is not None
    assert (0.0, 1.0, 1.0) == (same.kl.value, same.top1.value, same.ratio.value)


def test_intervals_hold_the_mean_about_95_times_of_100() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        found = estimate(random.normal(2.0, 1.0, 8).tolist())
        hits += found.low <= 2.0 <= found.high
    assert 930 <= hits <= 970


def test_windows() -> None:
    assert [[0, 1, 2], [3, 4, 5], [6, 7, 8]] == windows(list(range(10)), 3, None)
    assert [[0, 1, 2], [3, 4, 5]] == windows(list(range(10)), 3, 2)
    with pytest.raises(EdgedError, match="less than 2 windows"):
        windows([1, 2, 3], 2, None)
