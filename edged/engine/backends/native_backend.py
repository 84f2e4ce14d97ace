"""The native backend: the engine's slots over a NativeModel, all slices of a run computed together."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import partial
from typing import Final

import numpy as np

from edged.engine.backends.base import MAX_SLICE, ComputeError, Decoding, Logits, Slice
from edged.engine.backends.native_model import BLOCK, NativeModel, Part
from edged.engine.block_cache import BlockCache, Tables
from edged.engine.blocks import BlockPool
from edged.engine.kernels.library import KernelError
from edged.engine.states import NO_STATE, StatePool

LOGITS_ROWS: Final = 64  # rows of logits that one call may give, so that they stay small compared with the weights
MAX_DRAFTS: Final = 7  # with the token before them two times the rows that the kernels stream weights for at once


class _Slot:
    """A sequence's tokens that are in the cache, its blocks, and the recurrent state after these tokens, where the
    model has one. `drafts` follow the tokens, until kept or replaced."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.tokens: list[int] = []
        self.drafts: list[int] = []
        self.state = NO_STATE


class _Job:
    """A slice on its way through a run. `wanted`: how many of the last `tokens` logits are wanted after."""

    def __init__(self, item: Slice, slot: _Slot, every: bool) -> None:
        self.item = item
        self.slot = slot
        self.tokens = [*item.tokens, *item.drafts]
        self.wanted = len(self.tokens) if every else 1 + len(item.drafts)
        self.rows: list[Logits] = []
        self.error: ComputeError | None = None

    def part(self, begin: int, end: int, next_state: int) -> Part:
        """The tokens from `begin` to `end` as part of a step, which writes the state after them."""
        unwanted = len(self.tokens) - self.wanted
        wanted = max(0, end - max(begin, unwanted))
        tables, state = self.slot.tables, self.slot.state
        start = self.item.start + begin
        return Part(self.tokens[begin:end], start, tables.full, wanted, state, next_state, tables.windowed)

    def shorten(self, drafts: int) -> None:
        """Keeps at most so many drafts."""
        left = min(len(self.tokens), len(self.item.tokens) + drafts)
        self.wanted -= len(self.tokens) - left
        del self.tokens[left:]


_Piece = tuple[_Job, int, int]  # begin and end within the job's tokens


class NativeBackend:
    """Slots are tables of blocks from the pools of one cache, which keep blocks of ended sequences for those that begin
    alike.

    Of a model with recurrent states each slot has one, too: drafts would change it before they are known to be right,
    and blocks of another sequence come without one. So such a model computes no drafts and keeps no blocks.
    """

    name = "native"
    embeds = True
    exact = True

    def __init__(self, model: NativeModel, slots: int) -> None:
        self.model = model
        self.vocabulary = model.vocabulary
        self.context = model.context
        self.slots = slots
        self.drafts = 0 if model.states else MAX_DRAFTS
        self.max_steps = BLOCK
        self.quantization = model.packed.manifest.quantization
        self.weights_bytes = model.packed.weights_bytes
        self.cache = BlockCache(_pools(model))
        self.states = StatePool(model.states)
        self._slots: dict[int, _Slot] = {}
        self._next = 0

    def open(self) -> int:
        """A new empty cache; its number."""
        self._next += 1
        self._slots[self._next] = _Slot(self.cache.open())
        return self._next

    def close(self, slot: int) -> None:
        """Releases a cache's blocks to the pool, which remembers what they hold."""
        held = self._slots.pop(slot)
        self.states.release(held.state)
        self.cache.release(held.tables, () if self.model.states else held.tokens)

    def reuse(self, slot: int, tokens: Sequence[int]) -> int:
        """As the protocol says, also for a slot that holds full blocks: another may have computed more meanwhile."""
        held = self._slots[slot]
        if self.model.states or len(held.tokens) % BLOCK or len(held.tables) * BLOCK != len(held.tokens):
            return len(held.tokens)
        count = self.cache.reuse(held.tables, tokens)
        held.tokens = list(tokens[:count])
        return count

    def keep(self, slot: int, token: int) -> None:
        """As the protocol says. Raises ComputeError for a token that is not the next draft."""
        held = self._slots[slot]
        if held.drafts[:1] != [token]:
            raise ComputeError(f"token {token} is not the next draft")
        self._append(held, [held.drafts.pop(0)])

    def decode(
        self, sequences: Sequence[Decoding], steps: int, stops: array[int], interrupt: array[int]
    ) -> list[list[int]]:
        """As the protocol says. As many steps as the last block of every sequence has space for."""
        slots = [self._slots[one.slot] for one in sequences]
        for slot, one in zip(slots, sequences, strict=True):
            if len(slot.tokens) != one.start:
                raise ComputeError(f"a token at {one.start} does not follow {len(slot.tokens)}")
        next_states: list[int] = []
        try:
            for slot in slots:
                self.cache.extend(slot.tables, len(slot.tokens) + 1)
                next_states.append(self.states.allocate())
            space = [min(len(slot.tables) * BLOCK, self.context) - len(slot.tokens) for slot in slots]
            states = [(slot.state, state) for slot, state in zip(slots, next_states, strict=True)]
            chosen = self.model.decode(
                sequences,
                [slot.tables.full for slot in slots],
                min(steps, *space),
                stops,
                interrupt,
                [slot.tables.windowed for slot in slots],
                states,
            )
            if not chosen[0]:
                raise ComputeError("no next token can be chosen")
        except (MemoryError, KernelError, ComputeError) as error:
            for state in next_states:
                self.states.release(state)
            raise ComputeError(str(error)) from error
        for slot, one, tokens, state in zip(slots, sequences, chosen, next_states, strict=True):
            slot.drafts = []
            slot.state, unused = (state, slot.state) if len(tokens) % 2 else (slot.state, state)
            self.states.release(unused)
            self._append(slot, [one.token, *tokens][: len(tokens)])
        return chosen

    def run(self, slices: Sequence[Slice], every: bool = False) -> list[Logits | ComputeError]:
        """As the protocol says. Slices are computed together, in steps of up to the model's rows."""
        jobs = [_Job(item, self._slots[item.slot], every) for item in slices]
        for job in jobs:
            try:
                self._admit(job)
            except (ComputeError, MemoryError) as error:
                job.error = ComputeError(str(error))
        for step in self._steps([job for job in jobs if not job.error], every):
            self._compute(step)
        outcome: list[Logits | ComputeError] = []
        for job in jobs:
            if job.error:
                outcome.append(job.error)
                continue
            self._append(job.slot, job.item.tokens)
            job.slot.drafts = job.tokens[len(job.item.tokens) :]
            rows = job.rows[0] if len(job.rows) == 1 else np.concatenate(job.rows)
            outcome.append(rows[: job.wanted])
        return outcome

    def hidden(self, slot: int, start: int, tokens: Sequence[int]) -> Logits | ComputeError:
        """As the protocol says."""
        cache = self._slots[slot]
        job = _Job(Slice(slot, start, tokens), cache, every=True)
        state = NO_STATE
        try:
            self._admit(job)
            state = self.states.allocate()
            rows = self.model.hidden(job.part(0, len(tokens), state))
        except (ComputeError, MemoryError, KernelError) as error:
            self.states.release(state)
            return ComputeError(str(error))
        self.states.release(cache.state)
        cache.state = state
        self._append(cache, tokens)
        return rows

    def _append(self, slot: _Slot, tokens: Sequence[int]) -> None:
        slot.tokens += tokens
        if self.model.states:
            self.cache.release_passed(slot.tables, len(slot.tokens))
        else:
            self.cache.register(slot.tables, slot.tokens)

    def _compute(self, step: Sequence[_Piece]) -> None:
        """Computes the pieces of one step; where the kernels refuse it, each alone, so that only the one with the error
        fails, and without drafts, which may have been the cause."""
        states = [self.states.allocate() for _ in step]
        parts = [job.part(begin, end, state) for (job, begin, end), state in zip(step, states, strict=True)]
        try:
            logits = self.model.step(parts)
        except KernelError as error:
            for state in states:
                self.states.release(state)
            self._compute_alone(step, error)
            return
        for (job, _, _), state in zip(step, states, strict=True):
            self.states.release(job.slot.state)
            job.slot.state = state
        at = 0
        for (job, _, _), part in zip(step, parts, strict=True):
            if part.wanted:
                job.rows.append(logits[at : at + part.wanted])
            at += part.wanted

    def _compute_alone(self, step: Sequence[_Piece], error: KernelError) -> None:
        drafted = False
        for job, _, _ in step:
            if len(job.tokens) > len(job.item.tokens):
                job.shorten(0)
                drafted = True
        if len(step) == 1 and not drafted:
            step[0][0].error = ComputeError(str(error))
            return
        for job, begin, end in step:
            if not job.error and begin < len(job.tokens):
                self._compute([(job, begin, min(end, len(job.tokens)))])

    def _steps(self, jobs: Sequence[_Job], every: bool) -> list[list[_Piece]]:
        """Which part of which job each step computes."""
        budget = min(self.model.max_rows, LOGITS_ROWS) if every else self.model.max_rows
        steps: list[list[_Piece]] = []
        left = 0
        for job in jobs:
            begin = 0
            while begin < len(job.tokens):
                if left == 0:
                    steps.append([])
                    left = budget
                end = min(len(job.tokens), begin + left)
                steps[-1].append((job, begin, end))
                left -= end - begin
                begin = end
        return steps

    def _admit(self, job: _Job) -> None:
        """Checks a slice and makes its slot long enough for its tokens; drafts take what is left of the last block.

        A block of their own might cost another sequence's beginning, for tokens that are perhaps never chosen.
        """
        held, item = len(job.slot.tokens), job.item
        count = len(item.tokens)
        if not 1 <= count <= MAX_SLICE or item.start != held or item.start + count > self.context:
            raise ComputeError(f"{count} tokens at {item.start} do not follow {held} in a context of {self.context}")
        if min(job.tokens) < 0 or max(job.tokens) >= self.vocabulary:
            raise ComputeError(f"a token id is outside 0…{self.vocabulary - 1}")
        tables = job.slot.tables
        self.cache.extend(tables, item.start + count)
        job.shorten(min(len(tables) * BLOCK, self.context) - item.start - count)


def _pools(model: NativeModel) -> list[BlockPool]:
    """Those of the layers that see all tokens and of those that see a window, where the model has such layers."""
    counts = {model.window: model.window_blocks, 0: model.blocks}  # in this order: a model may have no window
    return [
        BlockPool(counts[window], BLOCK, partial(model.copy_block, windowed=window > 0), window)
        for window in sorted(set(model.packed.manifest.shape.cache_windows))
    ]
