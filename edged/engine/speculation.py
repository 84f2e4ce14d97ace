"""Speculation: a text often goes on as it went on before, and several tokens cost little more than one.

What followed the last tokens earlier in the same text (prompt lookup decoding, Saxena 2023) is computed together with
the newest token: drafts. Each token is still chosen from the logits after all tokens before it, with the same
draw, so drafts change how many tokens a step gives, never which (the native engine's numbers do not depend on company).
Whether they pay is known: how often a sequence's drafts were right, and what steps of so many tokens took here.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

COUNTS: Final = (1, 3, 7)  # drafts of a sequence that are weighed against none
MAX_ROWS: Final = 8  # tokens of a step with drafts
MATCH: Final = (3, 4)  # two tokens must be the same; where as many are, that place is taken
FORGET: Final = 0.9  # what a draft counts for, one draft later
PRIOR: Final = (0.5, 2.0)  # drafts that were right, of how many, before any was seen
MARGIN: Final = 1.05  # drafts must promise that much more than none
SMOOTH: Final = 0.3  # the newest step's share of what such a step is said to take
AGAIN: Final = 256  # steps after which a cost that was not measured since is forgotten, and so is tried again
INSTANT: Final = 1e-9  # seconds; what a clock that stood still gave


class Lookup:
    """The tokens of one sequence, what may follow them, and how often that was right."""

    def __init__(self, prompt: Iterable[int]) -> None:
        self.tokens = array("i", prompt)
        self._expected: list[int] = []
        self._right, self._tried = PRIOR

    @property
    def chance(self) -> float:
        """How likely a draft is right, where those before it are."""
        return self._right / self._tried

    def append(self, token: int) -> None:
        """Takes a chosen token, and learns from it whether the drafts offered last were right, computed or not."""
        self.tokens.append(token)
        if not self._expected:
            return
        right = self._expected.pop(0) == token
        self._right = (self._right - PRIOR[0]) * FORGET + PRIOR[0] + right
        self._tried = (self._tried - PRIOR[1]) * FORGET + PRIOR[1] + 1
        if not right:
            self._expected = []

    def offer(self, most: int) -> list[int]:
        """At most `most` drafts; [] where the last two tokens are new together."""
        self._expected = self._following(most) if most > 0 and len(self.tokens) >= max(MATCH) else []
        return list(self._expected)

    def _following(self, most: int) -> list[int]:
        seen = np.frombuffer(self.tokens, np.int32)
        places = np.flatnonzero((seen[1:-1] == seen[-1]) & (seen[:-2] == seen[-2])) + 2
        if not places.size:
            return []
        for length in MATCH:
            longer = places[places >= length]
            longer = longer[seen[longer - length] == seen[-length]]
            if not longer.size:
                break
            places = longer
        start = int(places[-1])
        found: list[int] = seen[start : start + most].tolist()
        period = len(seen) - start
        while len(found) < most:  # past the end the text is taken to repeat itself
            found.append(found[len(found) - period])
        return found


@dataclass(frozen=True)
class Offer:
    """A sequence's drafts, and how likely one is right."""

    drafts: Sequence[int]
    chance: float

    def tokens(self, count: int) -> float:
        """How many tokens a step with `count` of the drafts is expected to give."""
        return sum(self.chance**number for number in range(min(count, len(self.drafts)) + 1))


class Speculation:
    """Decides how many drafts are computed. Owned by an engine."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}  # of a step, by its tokens
        self._age: dict[int, int] = {}  # steps since that was measured

    def count(self, offers: Sequence[Offer]) -> int:
        """How many drafts of each sequence make the most tokens a second; 0 until a step without any was measured."""
        alone = len(offers)
        if alone not in self._seconds:
            return 0
        best, found = MARGIN * alone / self._seconds[alone], 0
        for count in COUNTS:
            rows = alone + sum(min(count, len(offer.drafts)) for offer in offers)
            if rows > MAX_ROWS:
                break
            # Never measured: taken to cost nothing, so that it is tried once.
            seconds = self._seconds.get(rows, self._seconds[alone])
            speed = sum(offer.tokens(count) for offer in offers) / seconds
            if speed > best:
                best, found = speed, count
        return found

    def seconds(self, rows: int) -> float | None:
        """What a step of so many tokens takes; None where none was measured lately."""
        return self._seconds.get(rows)

    def measured(self, rows: int, seconds: float, steps: int = 1) -> None:
        """So many steps of `rows` tokens, each of a sequence that decodes or a draft, took so long together."""
        seconds /= steps
        for other in list(self._age):
            self._age[other] += steps
            if self._age[other] > AGAIN:
                del self._age[other], self._seconds[other]
        self._age[rows] = 0
        seconds = max(seconds, INSTANT)
        known = self._seconds.get(rows, seconds)
        self._seconds[rows] = known + SMOOTH * (min(seconds, 2 * known) - known)  # an interruption counts for little
