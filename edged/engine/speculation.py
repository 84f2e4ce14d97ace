"""Speculative decoding: a text often continues as it did before, and several tokens cost little more than one.

What followed the last tokens earlier in the same text (prompt lookup decoding, Saxena 2023) is computed together with
the newest token: drafts. Each token is still chosen from the logits after all tokens before it, with the same uniform
draw, so drafts change how many tokens a step gives, never which (the native engine's logits do not depend on the
batch). Whether drafts pay is estimated from measurements: the share of a sequence's drafts that was accepted, and what
steps of so many tokens took on this machine.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

DRAFT_COUNTS: Final = (1, 3, 7)  # drafts of a sequence that are weighed against none
MAX_ROWS: Final = 8  # tokens of a step with drafts
MATCH_LENGTHS: Final = (3, 4)  # two tokens must match; where as many do, that place is preferred
DECAY: Final = 0.9  # what a draft counts for, one draft later
PRIOR: Final = (0.5, 2.0)  # drafts that were accepted, of how many, before any was seen
MARGIN: Final = 1.05  # drafts must promise that much more than none
SMOOTHING: Final = 0.3  # the newest step's share of the estimate of what such a step takes
STALE_AFTER: Final = 256  # steps after which an estimate that was not measured since is dropped, to be measured again
MIN_SECONDS: Final = 1e-9  # what a step takes at least, where the clock did not advance


class PromptLookup:
    """The tokens of one sequence, what may follow them, and how often that was right."""

    def __init__(self, prompt: Iterable[int]) -> None:
        self.tokens = array("i", prompt)
        self._expected: list[int] = []
        self._accepted, self._proposed = PRIOR

    @property
    def acceptance(self) -> float:
        """The estimated probability that a draft is right, where those before it are."""
        return self._accepted / self._proposed

    def append(self, token: int) -> None:
        """Appends a chosen token, and counts whether the newest drafts foresaw it, computed or not."""
        self.tokens.append(token)
        if not self._expected:
            return
        right = self._expected.pop(0) == token
        self._accepted = (self._accepted - PRIOR[0]) * DECAY + PRIOR[0] + right
        self._proposed = (self._proposed - PRIOR[1]) * DECAY + PRIOR[1] + 1
        if not right:
            self._expected = []

    def propose(self, most: int) -> list[int]:
        """At most `most` drafts; [] where the last two tokens never stood together before."""
        self._expected = self._following(most) if most > 0 and len(self.tokens) >= max(MATCH_LENGTHS) else []
        return list(self._expected)

    def _following(self, most: int) -> list[int]:
        seen = np.frombuffer(self.tokens, np.int32)
        places = np.flatnonzero((seen[1:-1] == seen[-1]) & (seen[:-2] == seen[-2])) + 2
        if not places.size:
            return []
        for length in MATCH_LENGTHS:
            longer = places[places >= length]
            longer = longer[seen[longer - length] == seen[-length]]
            if not longer.size:
                break
            places = longer
        start = int(places[-1])
        drafts: list[int] = seen[start : start + most].tolist()
        period = len(seen) - start
        while len(drafts) < most:  # past its end the text is assumed to repeat
            drafts.append(drafts[len(drafts) - period])
        return drafts


@dataclass(frozen=True)
class Proposal:
    """A sequence's drafts, and the probability that one is accepted."""

    drafts: Sequence[int]
    acceptance: float

    def expected_tokens(self, count: int) -> float:
        """How many tokens a step with `count` of the drafts is expected to give."""
        return sum(self.acceptance**number for number in range(min(count, len(self.drafts)) + 1))


class Speculation:
    """Decides how many drafts are computed. Owned by an engine."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}  # of a step, by its tokens
        self._age: dict[int, int] = {}  # steps since that was measured

    def draft_count(self, proposals: Sequence[Proposal]) -> int:
        """How many drafts of each sequence give the most tokens a second; 0 until a step without any was measured."""
        plain = len(proposals)
        if plain not in self._seconds:
            return 0
        best, best_count = MARGIN * plain / self._seconds[plain], 0
        for count in DRAFT_COUNTS:
            rows = plain + sum(min(count, len(proposal.drafts)) for proposal in proposals)
            if rows > MAX_ROWS:
                break
            # Never measured: assumed to cost nothing more, so that it is tried once.
            seconds = self._seconds.get(rows, self._seconds[plain])
            speed = sum(proposal.expected_tokens(count) for proposal in proposals) / seconds
            if speed > best:
                best, best_count = speed, count
        return best_count

    def seconds(self, rows: int) -> float | None:
        """What a step of so many tokens takes; None where none was measured lately."""
        return self._seconds.get(rows)

    def observe(self, rows: int, seconds: float, steps: int = 1) -> None:
        """Records that `steps` steps of `rows` tokens, each of a sequence that decodes or a draft, took so long in
        all."""
        seconds /= steps
        for other in list(self._age):
            self._age[other] += steps
            if self._age[other] > STALE_AFTER:
                del self._age[other], self._seconds[other]
        self._age[rows] = 0
        seconds = max(seconds, MIN_SECONDS)
        known = self._seconds.get(rows, seconds)
        outlier_free = min(seconds, 2 * known)  # a step that the system interrupted counts for little
        self._seconds[rows] = known + SMOOTHING * (outlier_free - known)
