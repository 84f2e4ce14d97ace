"""`edged eval`: how well a model predicts a text, and how far it is from a reference on the same tokens.

The text is cut into windows, each computed with an empty cache; every token but a window's first is predicted. In nats,
with p the reference's probabilities and q the model's, over all predicted tokens:

    perplexity = exp(mean −log q(token))         KL = mean Σ p (log p − log q)         top-1 = share of equal argmax

Intervals are 95 %, from the spread between windows (mean ± t s / √windows, Student's t).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from edged.core.errors import EdgedError

MIN_WINDOWS: Final = 2
# Student's t for 95 % by degrees of freedom from 1; above them the normal distribution's 1.96 is near enough.
_T: Final = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11,
             2.10, 2.09, 2.09, 2.08, 2.07, 2.07, 2.06, 2.06, 2.06, 2.05, 2.05, 2.05)  # fmt: skip
Logits = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]


class Predictor(Protocol):
    """Something that gives logits after each of a window's tokens, float32 [tokens, vocabulary]."""

    def logits(self, tokens: Sequence[int]) -> Logits: ...


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Quality:
    """One predictor's figures. The last three compare it with the reference and are None without one.

    `ratio` is its perplexity over the reference's.
    """

    name: str
    perplexity: Estimate
    ratio: Estimate | None = None
    kl: Estimate | None = None
    top1: Estimate | None = None

    def document(self) -> dict[str, Any]:
        """As plain data."""
        parts = {name: getattr(self, name) for name in ("perplexity", "ratio", "kl", "top1")}
        figures = {name: vars(value) for name, value in parts.items() if value is not None}
        return {"name": self.name, **figures}


def windows(tokens: Sequence[int], size: int, most: int | None) -> list[list[int]]:
    """Whole windows of a text, at most `most`. Raises EdgedError where the text is too short."""
    cut = [list(tokens[at : at + size]) for at in range(0, len(tokens) - size + 1, size)][:most]
    if len(cut) < MIN_WINDOWS:
        raise EdgedError(
            f"the text has {len(tokens)} tokens, less than {MIN_WINDOWS} windows of {size}; "
            "give a longer one, or a smaller --window"
        )
    return cut


def evaluate(
    cut: Sequence[Sequence[int]],
    named: dict[str, Predictor],
    reference: tuple[str, Predictor] | None,
    progress: Callable[[str], None],
) -> list[Quality]:
    """The reference's figures first (where there is one), then the others' in their order."""
    losses: dict[str, list[float]] = {name: [] for name in named}
    base: list[float] = []
    differences: dict[str, list[tuple[float, float]]] = {name: [] for name in named}
    for number, tokens in enumerate(cut):
        progress(f"window {number + 1} of {len(cut)}")
        truth = None
        if reference is not None:
            truth = _log_probabilities(reference[1], tokens)
            base.append(_loss(truth, tokens))
        for name, predictor in named.items():
            predicted = _log_probabilities(predictor, tokens)
            losses[name].append(_loss(predicted, tokens))
            if truth is not None:
                differences[name].append(
                    (_divergence(truth, predicted), float((truth.argmax(1) == predicted.argmax(1)).mean()))
                )
    first = [Quality(reference[0], _exp(estimate(base)))] if reference else []
    return first + [_quality(name, losses[name], base, differences[name]) for name in named]


def _quality(name: str, losses: list[float], base: list[float], differences: list[tuple[float, float]]) -> Quality:
    perplexity = _exp(estimate(losses))
    if not base:
        return Quality(name, perplexity)
    ratio = _exp(estimate([one - other for one, other in zip(losses, base, strict=True)]))
    kls, hits = zip(*differences, strict=True)
    return Quality(name, perplexity, ratio, estimate(kls), estimate(hits))


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of at least two values and its interval."""
    mean, count = float(np.mean(values)), len(values)
    student = _T[count - 2] if count - 2 < len(_T) else 1.96
    wide = student * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Estimate(mean, mean - wide, mean + wide)


def _exp(estimated: Estimate) -> Estimate:
    return Estimate(*(math.exp(min(value, 700.0)) for value in (estimated.value, estimated.low, estimated.high)))


def _loss(predicted: Floats, tokens: Sequence[int]) -> float:
    return float(-predicted[np.arange(len(tokens) - 1), np.asarray(tokens[1:])].mean())


def _log_probabilities(predictor: Predictor, tokens: Sequence[int]) -> Floats:
    """Log probabilities of each token after the first, float64 [tokens - 1, vocabulary], in nats."""
    logits = predictor.logits(tokens)[:-1].astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(1, keepdims=True)))


def _divergence(truth: Floats, predicted: Floats) -> float:
    width = min(truth.shape[1], predicted.shape[1])
    return float((np.exp(truth[:, :width]) * (truth[:, :width] - predicted[:, :width])).sum(1).mean())
