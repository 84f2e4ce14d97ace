"""From logits to a token.

In this order: repetition penalty (Keskar et al. 2019) over the prompt and what was written, temperature, top-k, top-p
(Holtzman et al. 2020), min-p, then one draw. Computed in float64 with a fixed order among equals (the lower id first),
from a PCG64 stream of the sequence's own: the same seed gives the same choices, alone or in company.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from edged.core.prompt import Sampling

SEEDS: Final = 1 << 53
Floats = npt.NDArray[np.float64]


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
        best = logits.max()
        if not np.isfinite(best):
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
        bounds = weights.cumsum()
        at = int(np.searchsorted(bounds, self._random.random() * bounds[-1], side="right"))
        return int(tokens[min(at, len(tokens) - 1)])


def candidates(logits: npt.NDArray[np.float32], sampling: Sampling) -> tuple[npt.NDArray[np.int64], Floats]:
    """The tokens that may be drawn and their weights (not normalized; the best has 1), temperature above 0."""
    shifted: Floats = (logits.astype(np.float64) - float(logits.max())) / sampling.temperature
    weights: Floats = np.exp(shifted)
    tokens = np.arange(len(weights))
    if 0 < sampling.top_k < len(weights):
        least = np.partition(weights, -sampling.top_k)[-sampling.top_k]
        tokens = _ordered(np.flatnonzero(weights >= least), weights)[: sampling.top_k]
    if sampling.top_p < 1.0:
        total = weights[tokens].sum()
        # Tokens below this share of the total sum to less than 1 - top_p, so none of them is in the nucleus.
        floor = (1.0 - sampling.top_p) * total / len(weights)
        tokens = _ordered(tokens[weights[tokens] >= floor], weights)
        before = weights[tokens].cumsum() - weights[tokens]
        tokens = tokens[: max(1, int((before < sampling.top_p * total).sum()))]
    if sampling.min_p > 0.0:
        tokens = tokens[weights[tokens] >= sampling.min_p]
    return tokens, weights[tokens]


def _ordered(tokens: npt.NDArray[np.int64], weights: Floats) -> npt.NDArray[np.int64]:
    """Tokens by falling weight, the lower id first among equals."""
    tokens = np.sort(tokens)
    return tokens[np.argsort(-weights[tokens], kind="stable")]
