"""The native backend: the engine's slots over a NativeModel, all slices of a run computed together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from edged.engine.backends.base import MAX_SLICE, ComputeError, Logits, Slice
from edged.engine.backends.native_model import BLOCK, NativeModel, Part
from edged.engine.blocks import BlockPool, Table
from edged.engine.kernels.library import KernelError

LOGITS_ROWS: Final = 64  # rows of logits that one call may give, so that they stay small beside the weights
Piece = tuple[int, int, int]  # index of a slice, begin and end within its tokens


class _Slot:
    """A sequence's tokens that are in the cache, and its blocks."""

    def __init__(self) -> None:
        self.table = Table()
        self.tokens: list[int] = []


class NativeBackend:
    """Slots are tables of blocks from one pool, which keeps blocks of ended sequences for those that begin alike."""

    name = "native"

    def __init__(self, model: NativeModel, slots: int) -> None:
        self.model = model
        self.vocabulary = model.vocabulary
        self.context = model.context
        self.slots = slots
        self.quantization = model.packed.manifest.quantization
        self.weights_bytes = model.packed.weights_bytes
        self.pool = BlockPool(model.blocks, BLOCK, model.copy_block)
        self._slots: dict[int, _Slot] = {}
        self._next = 0

    def open(self) -> int:
        """A new empty cache; its number."""
        self._next += 1
        self._slots[self._next] = _Slot()
        return self._next

    def close(self, slot: int) -> None:
        """Gives a cache's blocks back to the pool, which remembers what they hold."""
        kept = self._slots.pop(slot)
        self.pool.release(kept.table, kept.tokens)

    def reuse(self, slot: int, tokens: Sequence[int]) -> int:
        """As the protocol says. Goes on where the slot holds full blocks: another may have computed more meanwhile."""
        kept = self._slots[slot]
        if len(kept.tokens) % BLOCK or len(kept.table.blocks) * BLOCK != len(kept.tokens):
            return len(kept.tokens)
        count = self.pool.reuse(kept.table, tokens)
        kept.tokens = list(tokens[:count])
        return count

    def run(self, slices: Sequence[Slice], every: bool = False) -> list[Logits | ComputeError]:
        """As the protocol says. Slices are computed together, in steps of up to the model's rows."""
        outcome: list[Logits | ComputeError] = []
        rows: list[list[Logits]] = [[] for _ in slices]
        refused: dict[int, ComputeError] = {}
        for index, item in enumerate(slices):
            try:
                self._admit(item)
            except (ComputeError, MemoryError) as error:
                refused[index] = ComputeError(str(error))
        for step in self._steps(slices, refused, every):
            self._compute(slices, step, every, rows, refused)
        for index, item in enumerate(slices):
            if index in refused:
                outcome.append(refused[index])
                continue
            slot = self._slots[item.slot]
            slot.tokens += item.tokens
            self.pool.register(slot.table, slot.tokens)
            outcome.append(rows[index][0] if len(rows[index]) == 1 else np.concatenate(rows[index]))
        return outcome

    def _compute(
        self,
        slices: Sequence[Slice],
        step: Sequence[Piece],
        every: bool,
        rows: list[list[Logits]],
        refused: dict[int, ComputeError],
    ) -> None:
        """Computes the pieces of one step; where it is refused, each alone, so that one's fault does not fall on the
        others."""
        parts = []
        for index, begin, end in step:
            item = slices[index]
            blocks = self._slots[item.slot].table.blocks
            parts.append(
                Part(item.tokens[begin:end], item.start + begin, blocks, every, not every and end < len(item.tokens))
            )
        try:
            logits = self.model.step(parts)
        except KernelError as error:
            if len(step) == 1:
                refused[step[0][0]] = ComputeError(str(error))
                return
            for piece in step:
                if piece[0] not in refused:
                    self._compute(slices, [piece], every, rows, refused)
            return
        at = 0
        for (index, begin, end), part in zip(step, parts, strict=True):
            count = end - begin if every else 0 if part.silent else 1
            if count:
                rows[index].append(logits[at : at + count])
            at += count

    def _steps(self, slices: Sequence[Slice], refused: dict[int, ComputeError], every: bool) -> list[list[Piece]]:
        """Which part of which slice each step computes."""
        budget = min(self.model.max_rows, LOGITS_ROWS) if every else self.model.max_rows
        steps: list[list[Piece]] = []
        left = 0
        for index, item in enumerate(slices):
            begin = 0 if index not in refused else len(item.tokens)
            while begin < len(item.tokens):
                if left == 0:
                    steps.append([])
                    left = budget
                end = min(len(item.tokens), begin + left)
                steps[-1].append((index, begin, end))
                left -= end - begin
                begin = end
        return steps

    def _admit(self, item: Slice) -> None:
        """Checks a slice and makes its slot long enough."""
        slot, count = self._slots[item.slot], len(item.tokens)
        if not 1 <= count <= MAX_SLICE or item.start != len(slot.tokens) or item.start + count > self.context:
            raise ComputeError(
                f"{count} tokens at {item.start} do not follow {len(slot.tokens)} in a context of {self.context}"
            )
        if min(item.tokens) < 0 or max(item.tokens) >= self.vocabulary:
            raise ComputeError(f"a token id is outside 0…{self.vocabulary - 1}")
        self.pool.extend(slot.table, item.start + count)
