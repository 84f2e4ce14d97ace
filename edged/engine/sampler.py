"""From logits to a token.

In this order: repetition penalty (Keskar et al. 2019) over the prompt and what was written, temperature, top-k, top-p
(Holtzman et al. 2020), min-p, then one draw. Everything has a fixed order (the lower id first among equals) and the
draw comes from a PCG64 stream of the sequence's own: the same seed gives the same choices, alone or in company.

A vocabulary is long (49,152 to 151,936) and a token of a small model takes a few milliseconds, so nothing here sorts or
sums all of it one by one: the best are found among those above a bound, and a draw goes by the sums of blocks.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from edged.core.prompt import Sampling

SEEDS: Final = 1 << 53
COLDEST: Final = 1e-6  # the temperature below which nothing changes any more in float32
BLOCK: Final = 256  # weights that are summed at once
NUCLEUS: Final = (256, 4096)  # as many of the best are looked at before all are, for top-p
Floats = npt.NDArray[np.float32]


class BadLogitsError(ValueError):
    """Logits that are not numbers: nothing can be chosen from them."""


class Sampler:
    """Chooses the tokens of one sequence. `seed` is the one in use, drawn where the sampling names none."""

    def __init__(self, sampling: Sampling, prompt: Iterable[int]) -> None:
        self.seed = secrets.randbelow(SEEDS) if sampling.seed is None else sampling.seed
        self._sampling = sampling
        self._seen = set(prompt)
        self._random = np.random.Generator(np.random.PCG64(self.seed))

    def pick(self, logits: npt.NDArray[np.float32]) -> int:
        """The next token from float32 [vocabulary]. Raises BadLogitsError where there is no finite best one."""
        if not np.isfinite(logits.max()):
            raise BadLogitsError("the model's logits are not finite")
        scores = logits
        if self._sampling.repetition_penalty != 1.0:
            scores = self._penalized(logits)
        token = int(scores.argmax()) if self._sampling.temperature == 0 else self._draw(scores)
        self._seen.add(token)
        return token

    def _penalized(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        scores: npt.NDArray[np.float32] = logits.copy()
        seen = np.fromiter((token for token in self._seen if token < len(scores)), np.int64)
        penalty = np.float32(self._sampling.repetition_penalty)
        scores[seen] = np.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
        return scores

    def _draw(self, logits: npt.NDArray[np.float32]) -> int:
        tokens, weights = candidates(logits, self._sampling)
        at = draw(weights, self._random.random())
        return at if tokens is None else int(tokens[at])


def logprob(logits: npt.NDArray[np.float32], token: int) -> float:
    """The log of the softmax at `token`, in nats."""
    best = logits.max()
    return float(logits[token] - best) - math.log(float(np.exp(logits - best).sum(dtype=np.float64)))


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
    found = np.flatnonzero(values >= _bound(values, count))
    order = np.argsort(-values[found], kind="stable")[:count]
    return np.sort(found[order])


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
    found = np.arange(len(weights))
    for count in NUCLEUS:
        some = np.flatnonzero(weights >= _bound(weights, min(count, len(weights))))
        if float(weights[some].sum(dtype=np.float64)) >= target:
            found = some
            break
    order = found[np.argsort(-weights[found], kind="stable")]
    before = np.cumsum(weights[order], dtype=np.float64) - weights[order]
    return np.sort(order[: max(1, int((before < target).sum()))])


def draw(weights: Floats, chance: float) -> int:
    """The index that a `chance` from 0 to 1 falls on when each takes a part of the line as long as its weight."""
    whole = len(weights) // BLOCK * BLOCK
    ends = np.append(weights[:whole].reshape(-1, BLOCK).sum(1), weights[whole:].sum()).cumsum(dtype=np.float64)
    place = chance * ends[-1]
    block = min(int(np.searchsorted(ends, place, side="right")), len(ends) - 1)
    begin = block * BLOCK
    inner = weights[begin : begin + BLOCK].cumsum(dtype=np.float64)
    within = place - (ends[block - 1] if block else 0.0)
    at = begin + min(int(np.searchsorted(inner, within, side="right")), len(inner) - 1)
    return at if weights[at] > 0 else int(weights.argmax())  # rounding led past the last that may be drawn
