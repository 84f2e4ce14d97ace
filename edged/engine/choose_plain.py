"""From logits to a token, in numpy: the reference of `kernels/ops/choose.cpp`, and used without a compiler.

In this order: repetition penalty (Keskar et al. 2019) over the prompt and what was written, temperature, top-k, top-p
(Holtzman et al. 2020), min-p, then one draw. Everything has a fixed order: the lower id first among equals.

A vocabulary is long (49,152 to 151,936) and a token of a small model takes a few milliseconds, so nothing here sorts or
sums all of it one by one: the best are found among those above a bound, and a draw goes by the sums of blocks.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from edged.core.prompt import Sampling

COLDEST: Final = 1e-6  # the temperature below which nothing changes any more in float32
BLOCK: Final = 256  # weights that are summed at once
NUCLEUS: Final = (256, 4096)  # as many of the best are looked at before all are, for top-p
Floats = npt.NDArray[np.float32]


def choose(logits: Floats, sampling: Sampling, seen: npt.NDArray[np.int32], uniform: float) -> int:
    """The token that the draw `uniform` from [0, 1) selects; -1 where the best logit is no finite number.

    `seen` are the tokens that the repetition penalty is for, each once.
    """
    if sampling.repetition_penalty != 1.0:
        logits = penalized(logits, seen, np.float32(sampling.repetition_penalty))
    if not np.isfinite(logits.max()):
        return -1
    if sampling.temperature == 0:
        return int(logits.argmax())
    tokens, weights = candidates(logits, sampling)
    at = draw(weights, uniform)
    return at if tokens is None else int(tokens[at])


def penalized(logits: Floats, seen: npt.NDArray[np.int32], penalty: np.float32) -> Floats:
    """A copy with the scores of what was seen made less likely."""
    scores: Floats = logits.copy()
    seen = seen[seen < len(scores)]
    scores[seen] = np.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
    return scores


def candidates(logits: npt.NDArray[np.float32], sampling: Sampling) -> tuple[npt.NDArray[np.int64] | None, Floats]:
    """The tokens that may be drawn, by rising id (None: all), and their float32 weights; temperature above 0.

    Weights are not normalized; the best has 1.
    """
    tokens = None
    if 0 < sampling.top_k < len(logits):
        tokens = best(logits, sampling.top_k)
        logits = logits[tokens]
    weights: Floats = np.exp((logits - logits.max()) * np.float32(1 / max(sampling.temperature, COLDEST)))
    if sampling.top_p < 1.0:
        tokens, weights = _only(_nucleus(weights, sampling.top_p), tokens, weights)
    if sampling.min_p > 0.0:
        tokens, weights = _only(np.flatnonzero(weights >= sampling.min_p), tokens, weights)
    return tokens, weights


def _only(
    kept: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64] | None, weights: Floats
) -> tuple[npt.NDArray[np.int64], Floats]:
    return kept if tokens is None else tokens[kept], weights[kept]


def best(values: Floats, count: int) -> npt.NDArray[np.int64]:
    """The indices of the `count` largest, rising; of equals the lower ones."""
    some = np.flatnonzero(values >= _bound(values, count))
    order = np.argsort(-values[some], kind="stable")[:count]
    return np.sort(some[order])


def _bound(values: Floats, count: int) -> float:
    """A value that at least `count` of them reach, and not many more: the count-th largest of the maxima of blocks."""
    size = len(values) // (4 * count)
    if size < 2:
        return float(np.partition(values, -count)[-count]) if count < len(values) else float(values.min())
    maxima = values[: len(values) // size * size].reshape(-1, size).max(1)
    return float(np.partition(maxima, -count)[-count])


def _nucleus(weights: Floats, share: float) -> npt.NDArray[np.int64]:
    """The fewest of the largest that make up `share` of the sum, at least one; indices, rising."""
    target = share * float(weights.sum(dtype=np.float64))
    largest = np.arange(len(weights))
    for count in NUCLEUS:
        some = np.flatnonzero(weights >= _bound(weights, min(count, len(weights))))
        if float(weights[some].sum(dtype=np.float64)) >= target:
            largest = some
            break
    order = largest[np.argsort(-weights[largest], kind="stable")]
    before = np.cumsum(weights[order], dtype=np.float64) - weights[order]
    return np.sort(order[: max(1, int((before < target).sum()))])


def draw(weights: Floats, uniform: float) -> int:
    """The index that the draw `uniform` from [0, 1) selects, each with a probability in proportion to its weight."""
    whole = len(weights) // BLOCK * BLOCK
    ends = np.append(weights[:whole].reshape(-1, BLOCK).sum(1), weights[whole:].sum()).cumsum(dtype=np.float64)
    place = uniform * ends[-1]
    block = min(int(np.searchsorted(ends, place, side="right")), len(ends) - 1)
    begin = block * BLOCK
    inner = weights[begin : begin + BLOCK].cumsum(dtype=np.float64)
    within = place - (ends[block - 1] if block else 0.0)
    at = begin + min(int(np.searchsorted(inner, within, side="right")), len(inner) - 1)
    return at if weights[at] > 0 else int(weights.argmax())  # rounding led past the last that may be drawn
