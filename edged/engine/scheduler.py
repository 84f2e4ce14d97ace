"""Decides which sequences are computed next, and how many tokens of each.

- Each sequence has a level, 0 is the most urgent. Only sequences of the most urgent level and of the next level are
  computed. A priority is two levels, so sequences of a better priority are computed alone. Requesters that get about
  the same share of the device are computed in one batch (the agent sets the levels).
- A step computes one token for each of these sequences that decodes, and in addition a chunk of one prompt. The chunk
  is shorter if sequences decode in the same step. Prompts are prefilled in turns, chunk by chunk, so a reply is never
  delayed by more than one chunk.
- If no prompt has to be prefilled, drafts (`speculation.py`) may follow each token. If no drafts are computed and a
  step is short, one call computes several decode steps, because the time between two calls is then a noticeable part
  of a step.
- A chunk takes at most MAX_CHUNK_SECONDS, estimated from the chunk before. On a slow board the agent must see that the
  worker makes progress, and a cancel must take effect. Chunks are not limited by time if logits depend on a chunk's
  length (not `Backend.exact`), because greedy answers would then depend on the board's current speed.
- Before each chunk, the part of the prompt that is in the cache is reused. If several prompts with the same beginning
  arrive together, each of them computes a part of it for all.
- Cache slots are assigned in order of arrival. If no slot is free, a sequence that is more than SHARED_LEVELS less
  urgent is preempted at once, and any other one after its quantum. The preempted sequence moves to the end of the queue
  and is computed again later from its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from typing import Final

from edged.engine.backends.base import MAX_SLICE, MIXED_SLICE, Backend
from edged.engine.sequence import Sequence
from edged.engine.speculation import MAX_ROWS, MIN_SECONDS, Proposal, Speculation

# The decode steps of one call may take so long in total: a reply's text is published every 50 ms at most.
MULTI_STEP_SECONDS: Final = 0.04
MAX_STEPS: Final = 8  # One call computes at most so many decode steps.
# A chunk may take so long: a quarter of the time that the agent waits for progress (`supervisor.HANG_DEADLINE`).
MAX_CHUNK_SECONDS: Final = 5.0
MIXED_CHUNK_SECONDS: Final = 1.0  # A chunk may take so long if sequences decode in the same step.
FIRST_CHUNK: Final = 32  # The first chunk after a load has so many tokens; it measures the board's speed.
# A chunk has at least so many tokens, because reading the weights alone may take longer than a chunk should.
MIN_CHUNK: Final = 8
MIN_CHUNK_SECONDS: Final = 15.0  # If MIN_CHUNK tokens take longer than this, a chunk may have a single token.
SHARED_LEVELS: Final = 1  # Sequences that are so many levels less urgent are computed with the most urgent one.
QUANTUM: Final = 32  # A sequence chooses at least so many tokens before one as urgent may get its slot.


@dataclass(frozen=True)
class Work:
    """The next `tokens` tokens of a sequence, and drafts of what follows them.

    `prefill`: the tokens are a chunk of a prompt. `watch`: a call of several decode steps ends as soon as drafts of
    this sequence could follow.
    """

    sequence: Sequence
    tokens: int
    drafts: Tokens[int] = ()
    prefill: bool = False
    watch: bool = False


@dataclass(frozen=True)
class Batch:
    """What one step computes. `steps`: how many decode steps one call may compute for all; 0: it returns logits."""

    work: tuple[Work, ...] = ()
    steps: int = 0


class Scheduler:
    """Owns the sequences and their slots in a backend; at most `backend.slots` sequences have one at a time."""

    def __init__(self, backend: Backend, speculation: Speculation) -> None:
        self._backend = backend
        self._speculation = speculation
        self._token_seconds: float | None = None  # the seconds that one prefilled token took in the last chunk
        self._queue: list[Sequence] = []  # all sequences; those without a slot wait in this order

    def add(self, sequence: Sequence) -> None:
        """Appends a sequence to the queue."""
        self._queue.append(sequence)

    def retire(self, sequence: Sequence) -> None:
        """Removes a sequence and its cache."""
        self._queue.remove(sequence)
        self._free_slot(sequence)

    def schedule(self) -> Batch:
        """Returns what to compute next: all urgent sequences that decode, and the most urgent one that prefills."""
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
        """Records how long a chunk of `tokens` took, without the time of the replies in the same step."""
        self._token_seconds = max(seconds, MIN_SECONDS) / tokens

    def _max_chunk(self, *, mixed: bool) -> int:
        """Returns how many tokens the next chunk may have; `mixed`: sequences decode in the same step."""
        most, seconds = (MIXED_SLICE, MIXED_CHUNK_SECONDS) if mixed else (MAX_SLICE, MAX_CHUNK_SECONDS)
        if not self._backend.exact:
            return most
        if self._token_seconds is None:
            return FIRST_CHUNK
        least = MIN_CHUNK if MIN_CHUNK * self._token_seconds <= MIN_CHUNK_SECONDS else 1
        return max(least, int(min(most, seconds / self._token_seconds)))

    def _prefill(self, sequence: Sequence, most: int) -> Work:
        assert sequence.slot is not None  # noqa: S101 only sequences with a slot run
        cached = self._backend.reuse(sequence.slot, sequence.tokens)
        known = max(
            sequence.computed, sequence.most_computed
        )  # tokens computed before a preemption do not count as cached
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
        """Whether drafts would be computed if only that sequence had some."""
        nothing = [Proposal((), proposal.acceptance) for proposal in proposals]
        nothing[index] = Proposal(range(most), proposals[index].acceptance)
        return self._speculation.draft_count(nothing) > 0

    def _steps(self, running: list[Sequence]) -> int:
        """Returns how many decode steps one call computes: as many as fit into MULTI_STEP_SECONDS.

        No sequence is computed past its end. The result is 0 if the engine samples from logits.
        """
        if self._backend.max_steps == 1 or not all(sequence.sampled_by_backend for sequence in running):
            return 0
        remaining = min(min(sequence.remaining, self._backend.context - len(sequence.tokens)) for sequence in running)
        return min(remaining, self._backend.max_steps, steps_per_call(self._speculation.seconds(len(running))))

    def _admit(self, waiting: list[Sequence]) -> None:
        """Assigns slots to waiting sequences in their order, while a slot is free or a sequence can be preempted."""
        for sequence in waiting:
            if self._open_slots() >= self._backend.slots:
                victim = self._victim(sequence.level)
                if victim is None:
                    return
                self._preempt(victim)
            sequence.slot = self._backend.open()
            sequence.slot_tokens = 0

    def _victim(self, level: int) -> Sequence | None:
        """Returns the sequence to preempt for one of `level`, or None: a least urgent one that had its slot longest."""
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
    """Returns how many decode steps one call may compute if each takes `seconds`; 1 if that is not known."""
    return 1 if seconds is None else max(1, min(MAX_STEPS, int(MULTI_STEP_SECONDS / seconds)))


def quantum(computed: int) -> int:
    """Returns how many tokens a sequence may choose before it may be preempted.

    A long sequence may choose more, because it takes longer to compute it again.
    """
    return max(QUANTUM, computed // 4)
