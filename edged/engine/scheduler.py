"""Which sequences are computed next, and how much of each.

- Only sequences of the most urgent level and of the next are computed. A priority is two levels, so those of a better
  priority are computed alone; requesters who get about the same share a batch (the agent sets levels).
- Within it, a step computes one token for each sequence that decodes and beside them a chunk of one prompt, which is
  shorter then; prompts are prefilled in turns, chunk by chunk. So a reply is never delayed by more than a chunk.
- Where no prompt is to be prefilled, drafts (`speculation.py`) may follow each token; else a few tokens of each come
  from one call where a step is short, because what runs between two calls takes a noticeable part of it then.
- A chunk takes MAX_CHUNK_SECONDS at most, estimated from the last one: on a slow board the agent must see that the
  worker makes progress, and a cancel must take effect. Not where logits depend on a chunk's length (`Backend.drafts`
  0): greedy answers would depend on the board's speed of the moment.
- What the cache has of a prompt's beginning is taken from there just before each chunk: of several prompts that begin
  alike and arrive together, each computes a part for all.
- Cache slots are given in order of arrival. Where none is free, a sequence of a worse class is preempted at once, one
  of the same class after its quantum; it goes to the end of the queue and is computed again later from its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from typing import Final

from edged.engine.backends.base import MAX_SLICE, MIXED_SLICE, Backend
from edged.engine.sequence import Sequence
from edged.engine.speculation import MAX_ROWS, MIN_SECONDS, Proposal, Speculation

MULTI_STEP_SECONDS: Final = 0.04  # that steps in one call may take: a reply's text goes out every 50 ms at most
MAX_STEPS: Final = 8
MAX_CHUNK_SECONDS: Final = 5.0  # a quarter of what the agent waits for progress (`supervisor.HANG_DEADLINE`)
MIXED_CHUNK_SECONDS: Final = 1.0  # the same where replies wait for it
FIRST_CHUNK: Final = 32  # tokens of the first chunk of all, which shows how fast this board is
MIN_CHUNK: Final = 8  # tokens of any, as reading the weights alone may take longer than a chunk should,
MIN_CHUNK_SECONDS: Final = 15.0  # unless they take so many seconds
SHARED_LEVELS: Final = 1  # less urgent than the most urgent sequence, and computed with it
QUANTUM: Final = 32  # tokens chosen before a sequence may lose its slot to one of its own class


@dataclass(frozen=True)
class Work:
    """The next `tokens` tokens of a sequence, and drafts of what follows them.

    `prefill`: whether they are a chunk of a prompt. `watch`: a call of several decode steps ends where drafts of this
    sequence could follow.
    """

    sequence: Sequence
    tokens: int
    drafts: Tokens[int] = ()
    prefill: bool = False
    watch: bool = False


@dataclass(frozen=True)
class Batch:
    """What one step computes. `steps`: how many decode steps one call may compute for all; 0: logits are wanted."""

    work: tuple[Work, ...] = ()
    steps: int = 0


class Scheduler:
    """The sequences and their slots in a backend, at most `backend.slots` at once."""

    def __init__(self, backend: Backend, speculation: Speculation) -> None:
        self._backend = backend
        self._speculation = speculation
        self._token_seconds: float | None = None  # of one token that is prefilled, as last seen
        self._queue: list[Sequence] = []  # all sequences; those without a slot wait in this order

    def add(self, sequence: Sequence) -> None:
        """Appends a sequence to the queue."""
        self._queue.append(sequence)

    def retire(self, sequence: Sequence) -> None:
        """Removes a sequence and its cache."""
        self._queue.remove(sequence)
        self._free_slot(sequence)

    def schedule(self) -> Batch:
        """What to compute next: all urgent ones that decode and the most urgent that prefills; empty without any."""
        if not self._queue:
            return Batch()
        best = min(sequence.level for sequence in self._queue)
        members = [sequence for sequence in self._queue if sequence.level <= best + SHARED_LEVELS]
        self._admit([sequence for sequence in members if sequence.slot is None])
        running = [sequence for sequence in members if sequence.slot is not None]
        prefilling = [sequence for sequence in running if sequence.prefilling]
        if not prefilling:
            return self._decode(running)
        decoding = [Work(sequence, 1) for sequence in running if not sequence.prefilling]
        chunk = self._prefill(min(prefilling, key=lambda s: s.level), self._max_chunk(mixed=bool(decoding)))
        return Batch((*decoding, chunk))

    def observe_prefill(self, tokens: int, seconds: float) -> None:
        """Records that a chunk of so many tokens took so long, without what the replies beside it took."""
        self._token_seconds = max(seconds, MIN_SECONDS) / tokens

    def _max_chunk(self, *, mixed: bool) -> int:
        """The most tokens of the next chunk; `mixed`: sequences decode beside it."""
        most, seconds = (MIXED_SLICE, MIXED_CHUNK_SECONDS) if mixed else (MAX_SLICE, MAX_CHUNK_SECONDS)
        if not self._backend.drafts:
            return most
        if self._token_seconds is None:
            return FIRST_CHUNK
        least = MIN_CHUNK if MIN_CHUNK * self._token_seconds <= MIN_CHUNK_SECONDS else 1
        return max(least, int(min(most, seconds / self._token_seconds)))

    def _prefill(self, sequence: Sequence, most: int) -> Work:
        assert sequence.slot is not None  # noqa: S101 only those with a slot run
        cached = self._backend.reuse(sequence.slot, sequence.tokens)
        known = max(sequence.computed, sequence.most_computed)  # what it computed before a preemption is no gain
        if sequence.completion == 0:
            sequence.cached += max(0, cached - known)
        sequence.computed = max(sequence.computed, cached)
        self._move_to_end(sequence)
        tokens = min(most, len(sequence.tokens) - sequence.computed)
        return Work(sequence, tokens, prefill=sequence.prefilling)

    def _decode(self, running: list[Sequence]) -> Batch:
        most = self._backend.drafts if len(running) < MAX_ROWS else 0
        proposals = [
            sequence.propose(min(most, self._backend.context - len(sequence.tokens) - 1)) for sequence in running
        ]
        if count := self._speculation.draft_count(proposals):
            pairs = zip(running, proposals, strict=True)
            return Batch(tuple(Work(sequence, 1, proposal.drafts[:count]) for sequence, proposal in pairs))
        work = tuple(
            Work(sequence, 1, watch=self._worth_watching(proposals, index, most))
            for index, sequence in enumerate(running)
        )
        return Batch(work, self._steps(running))

    def _worth_watching(self, proposals: Tokens[Proposal], index: int, most: int) -> bool:
        """Whether drafts would be computed if that sequence alone came to have some."""
        nothing = [Proposal((), proposal.acceptance) for proposal in proposals]
        nothing[index] = Proposal(range(most), proposals[index].acceptance)
        return self._speculation.draft_count(nothing) > 0

    def _steps(self, running: list[Sequence]) -> int:
        """How many decode steps one call computes: as many as take MULTI_STEP_SECONDS, and none past the end of any.

        0 where the engine samples from logits.
        """
        if self._backend.max_steps == 1 or not all(sequence.sampled_by_backend for sequence in running):
            return 0
        remaining = min(min(sequence.remaining, self._backend.context - len(sequence.tokens)) for sequence in running)
        return min(remaining, self._backend.max_steps, steps_per_call(self._speculation.seconds(len(running))))

    def _admit(self, waiting: list[Sequence]) -> None:
        """Gives slots to waiting sequences, in their order, as long as there are free ones or victims."""
        for sequence in waiting:
            if self._open_slots() >= self._backend.slots:
                victim = self._victim(sequence.level)
                if victim is None:
                    return
                self._preempt(victim)
            sequence.slot = self._backend.open()
            sequence.slot_tokens = 0

    def _victim(self, level: int) -> Sequence | None:
        """The sequence to preempt for one of that level: of the least urgent the one served longest; None: nobody."""
        candidates = [
            sequence
            for sequence in self._queue
            if sequence.slot is not None
            and (sequence.level > level + SHARED_LEVELS or sequence.slot_tokens >= quantum(sequence.computed))
        ]
        return max(candidates, key=lambda sequence: (sequence.level, sequence.slot_tokens), default=None)

    def _preempt(self, victim: Sequence) -> None:
        self._free_slot(victim)
        self._move_to_end(victim)

    def _free_slot(self, sequence: Sequence) -> None:
        if sequence.slot is not None:
            self._backend.close(sequence.slot)
            sequence.slot = None
            sequence.most_computed = max(sequence.most_computed, sequence.computed)
            sequence.computed = 0

    def _open_slots(self) -> int:
        return sum(sequence.slot is not None for sequence in self._queue)

    def _move_to_end(self, sequence: Sequence) -> None:
        self._queue.remove(sequence)
        self._queue.append(sequence)


def steps_per_call(seconds: float | None) -> int:
    """How many decode steps one call may compute where each takes so long; 1 where that is not known."""
    return 1 if seconds is None else max(1, min(MAX_STEPS, int(MULTI_STEP_SECONDS / seconds)))


def quantum(computed: int) -> int:
    """Tokens that a sequence may choose before it may be preempted: more for a long one, which costs more to compute
    again."""
    return max(QUANTUM, computed // 4)
