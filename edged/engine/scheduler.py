"""Who is computed next.

- Only the best priority class that has sequences is served.
- Within it, a step computes one token for each sequence that decodes and beside them a chunk of one prompt, which is
  shorter then; prompts take turns chunk by chunk. So a reply is never held up by more than a chunk.
- Where no prompt is to be computed, drafts (`speculation.py`) may follow each token; else a few tokens of each come
  from one call where a step is short, because what runs between two calls takes a noticeable part of it then.
- A chunk takes SLICE_SECONDS at most, as far as the last one tells: on a slow board the agent must see that the worker
  lives, and a cancel be heard. Not where numbers depend on a chunk's length (`Backend.drafts` 0): greedy answers would
  depend on the minute.
- What the cache has of a prompt's beginning is taken from there just before each chunk: of several prompts that begin
  alike and arrive together, each computes a part for all.
- A cache (slot) is given in order of arrival. Where none is free, a sequence of a worse class gives its own up at once,
  one of the same class after its quantum; it goes to the end of the line and is computed again later from its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from typing import Final

from edged.engine.backends.base import MAX_SLICE, SLICE_BESIDE, Backend
from edged.engine.sequence import Sequence
from edged.engine.speculation import INSTANT, MAX_ROWS, Offer, Speculation

AHEAD: Final = 0.04  # seconds that steps computed in one call may take: a reply's text goes out every 50 ms at most
MAX_STEPS: Final = 8
SLICE_SECONDS: Final = 5.0  # a chunk may take, a quarter of the agent's patience (`supervisor.HANG_DEADLINE`)
BESIDE_SECONDS: Final = 1.0  # the same where replies wait for it
FIRST_SLICE: Final = 32  # tokens of the first chunk of all, which shows how fast this board is
LEAST_SLICE: Final = 8  # tokens of any, as reading the weights alone may take longer than a chunk should,
PATIENCE: Final = 15.0  # unless they take so many seconds
QUANTUM: Final = 32  # tokens chosen before a sequence may lose its slot to one of its own class


@dataclass(frozen=True)
class Work:
    """The next `tokens` tokens of a sequence, to be computed in this step, and drafts of what follows them.

    `steps`, the same for all of a batch: how many decode steps may be computed at once, with `watch` as far as drafts
    of this sequence could follow; 0: only logits are wanted.
    """

    sequence: Sequence
    tokens: int
    drafts: Tokens[int] = ()
    steps: int = 0
    watch: bool = False


class Scheduler:
    """The sequences and their slots in a backend, at most `backend.slots` at once."""

    def __init__(self, backend: Backend, speculation: Speculation) -> None:
        self._backend = backend
        self._speculation = speculation
        self._pace: float | None = None  # seconds a token that is prefilled takes
        self._line: list[Sequence] = []  # all sequences; those without a slot wait in this order

    def add(self, sequence: Sequence) -> None:
        """Puts a sequence at the end of the line."""
        self._line.append(sequence)

    def retire(self, sequence: Sequence) -> None:
        """Forgets a sequence and drops its cache."""
        self._line.remove(sequence)
        self._release(sequence)

    def schedule(self) -> list[Work]:
        """What to compute next: all of the best class that decode and one of it that prefills; [] without any."""
        if not self._line:
            return []
        best = min(sequence.request.priority for sequence in self._line)
        members = [sequence for sequence in self._line if sequence.request.priority == best]
        self._give_slots([sequence for sequence in members if sequence.slot is None])
        running = [sequence for sequence in members if sequence.slot is not None]
        prefilling = [sequence for sequence in running if sequence.prefilling]
        if not prefilling:
            return self._decode(running)
        work = [Work(sequence, 1) for sequence in running if not sequence.prefilling]
        work.append(self._prefill(prefilling[0], self._most(beside=bool(work))))
        return work

    def prefilled(self, tokens: int, seconds: float) -> None:
        """A chunk of so many tokens took so long, without what the replies beside it took."""
        self._pace = max(seconds, INSTANT) / tokens

    def _most(self, *, beside: bool) -> int:
        """Tokens that the next chunk may have."""
        most, seconds = (SLICE_BESIDE, BESIDE_SECONDS) if beside else (MAX_SLICE, SLICE_SECONDS)
        if not self._backend.drafts:
            return most
        if self._pace is None:
            return FIRST_SLICE
        least = LEAST_SLICE if LEAST_SLICE * self._pace <= PATIENCE else 1
        return max(least, int(min(most, seconds / self._pace)))

    def _decode(self, running: list[Sequence]) -> list[Work]:
        most = self._backend.drafts if len(running) < MAX_ROWS else 0
        offers = [sequence.offer(min(most, self._backend.context - len(sequence.tokens) - 1)) for sequence in running]
        if count := self._speculation.count(offers):
            return [Work(sequence, 1, offer.drafts[:count]) for sequence, offer in zip(running, offers, strict=True)]
        steps = self._steps(running)
        return [
            Work(sequence, 1, steps=steps, watch=self._awaits(offers, index, most))
            for index, sequence in enumerate(running)
        ]

    def _awaits(self, offers: Tokens[Offer], index: int, most: int) -> bool:
        """Whether drafts would be computed if that sequence alone came to have some."""
        nothing = [Offer((), offer.chance) for offer in offers]
        nothing[index] = Offer(range(most), offers[index].chance)
        return self._speculation.count(nothing) > 0

    def _steps(self, running: list[Sequence]) -> int:
        """How many decode steps at once: what takes AHEAD seconds, and none past the end of any."""
        if not all(sequence.streams for sequence in running):
            return 0
        room = min(min(sequence.left, self._backend.context - len(sequence.tokens)) for sequence in running)
        return min(room, steps_at_once(self._speculation.seconds(len(running))))

    def _prefill(self, sequence: Sequence, most: int) -> Work:
        assert sequence.slot is not None  # noqa: S101 only those with a slot run
        found = self._backend.reuse(sequence.slot, sequence.tokens)
        known = max(sequence.computed, sequence.reached)  # what it computed itself before it lost its slot is no gain
        if sequence.completion == 0:
            sequence.cached += max(0, found - known)
        sequence.computed = max(sequence.computed, found)
        self._to_the_end(sequence)
        return Work(sequence, min(most, len(sequence.tokens) - sequence.computed))

    def _give_slots(self, waiting: list[Sequence]) -> None:
        for sequence in waiting:
            if self._open_slots() >= self._backend.slots:
                loser = self._loser(sequence.request.priority)
                if loser is None:
                    return
                self._release(loser)
                self._to_the_end(loser)
            sequence.slot = self._backend.open()
            sequence.served = 0

    def _loser(self, priority: int) -> Sequence | None:
        """Who gives up a slot for a sequence of that priority: the worst class first, then who was served longest."""
        holders = [
            sequence
            for sequence in self._line
            if sequence.slot is not None
            and (sequence.request.priority > priority or sequence.served >= quantum(sequence.computed))
        ]
        return max(holders, key=lambda sequence: (sequence.request.priority, sequence.served), default=None)

    def _release(self, sequence: Sequence) -> None:
        if sequence.slot is not None:
            self._backend.close(sequence.slot)
            sequence.slot = None
            sequence.reached = max(sequence.reached, sequence.computed)
            sequence.computed = 0

    def _open_slots(self) -> int:
        return sum(sequence.slot is not None for sequence in self._line)

    def _to_the_end(self, sequence: Sequence) -> None:
        self._line.remove(sequence)
        self._line.append(sequence)


def steps_at_once(seconds: float | None) -> int:
    """How many decode steps one call may compute where each takes so long; 1 where that is not known."""
    return 1 if seconds is None else max(1, min(MAX_STEPS, int(AHEAD / seconds)))


def quantum(computed: int) -> int:
    """Tokens that a sequence may choose before it gives way: more for a long one, which costs more to compute again."""
    return max(QUANTUM, computed // 4)
