"""Log probabilities of the tokens of one answer, by the model's own distribution.

They are the log of the softmax over the model's logits, before repetition penalty, temperature, top-k, top-p, min-p and
the mask of a format.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from edged.core.prompt import ChosenLogprob, TokenLogprob
from edged.engine.choose_plain import best

LEAST: Final = -9999.0  # in place of what JSON cannot express: a token that the model rules out

Logits = npt.NDArray[np.float32]


class _Entry(NamedTuple):
    """`position`: characters of the output before the token. `top`: ids and their log probabilities, best first."""

    position: int
    token: int
    logprob: float
    top: list[tuple[int, float]]


class LogprobRecord:
    """Grows by a token at a time; `top` is how many of the most likely tokens are kept of each."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._entries: list[_Entry] = []

    def add(self, position: int, logits: Logits, token: int) -> None:
        """A token was chosen from float32 [vocabulary]."""
        log_sum = _log_sum(logits)
        top = best(logits, min(self._top, len(logits))).tolist() if self._top else []
        top.sort(key=lambda one: (-logits[one], one))
        logs = [(one, _logprob(logits, one, log_sum)) for one in top]
        self._entries.append(_Entry(position, token, _logprob(logits, token, log_sum), logs))

    def of_text(self, is_text: Callable[[int, int], bool], name: Callable[[int], str]) -> tuple[ChosenLogprob, ...]:
        """Those for which `is_text(position, token)` holds. `name` gives the text of a token."""
        return tuple(
            ChosenLogprob(name(one.token), one.logprob, tuple(TokenLogprob(name(token), log) for token, log in one.top))
            for one in self._entries
            if is_text(one.position, one.token)
        )


def _log_sum(logits: Logits) -> float:
    best_logit = float(logits.max())
    return best_logit + math.log(float(np.exp(logits - np.float32(best_logit)).sum(dtype=np.float64)))


def _logprob(logits: Logits, token: int, log_sum: float) -> float:
    found = float(logits[token]) - log_sum
    return max(found, LEAST) if math.isfinite(found) else LEAST
