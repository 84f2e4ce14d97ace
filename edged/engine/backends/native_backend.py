"""The native backend: the engine's slots over a NativeModel, all slices of a run computed together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from edged.engine.backends.base import MAX_SLICE, ComputeError, Logits, Slice
from edged.engine.backends.native_model import BLOCK, NativeModel, Part
from edged.engine.kernels.library import KernelError

LOGITS_ROWS: Final = 64  # rows of logits that one call may give, so that they stay small beside the weights


class NativeBackend:
    """Slots are tables of blocks, taken from the model's pool as they grow and given back when a slot is cut or closed."""

    name = "native"

    def __init__(self, model: NativeModel, slots: int) -> None:
        self.model = model
        self.vocabulary = model.vocabulary
        self.context = model.context
        self.slots = slots
        self.quantization = model.packed.manifest.quantization
        self.weights_bytes = model.packed.weights_bytes
        self._tables: dict[int, list[int]] = {}
        self._free = list(range(model.blocks - 1, -1, -1))
        self._next = 0

    def open(self) -> int:
        """A new empty cache; its number."""
        self._next += 1
        self._tables[self._next] = []
        return self._next

    def close(self, slot: int) -> None:
        """Gives a cache's blocks back."""
        self._free += self._tables.pop(slot)

    def run(self, slices: Sequence[Slice], every: bool = False) -> list[Logits]:
        """As the protocol says. Slices are computed together, in steps of up to the model's rows."""
        for item in slices:
            self._check(item)
        for item in slices:
            self._fit(item.slot, item.start, item.start + len(item.tokens))
        results: list[list[Logits]] = [[] for _ in slices]
        for group in self._steps(slices, every):
            parts = [
                Part(item.tokens[begin:end], item.start + begin, self._tables[item.slot], every, end < len(item.tokens))
                for item, begin, end in ((slices[index], begin, end) for index, begin, end in group)
            ]
            try:
                logits = self.model.step(parts)
            except KernelError as error:
                raise ComputeError(str(error)) from error
            at = 0
            for (index, begin, end), part in zip(group, parts, strict=True):
                rows = end - begin if every else 0 if part.silent else 1
                if rows:
                    results[index].append(logits[at : at + rows])
                at += rows
        return [rows[0] if len(rows) == 1 else np.concatenate(rows) for rows in results]

    def _steps(self, slices: Sequence[Slice], every: bool) -> list[list[tuple[int, int, int]]]:
        """Which part of which slice (index, begin, end) each step computes."""
        budget = min(self.model.max_rows, LOGITS_ROWS) if every else self.model.max_rows
        steps: list[list[tuple[int, int, int]]] = [[]]
        left = budget
        for index, item in enumerate(slices):
            begin = 0
            while begin < len(item.tokens):
                if left == 0:
                    steps.append([])
                    left = budget
                end = min(len(item.tokens), begin + left)
                steps[-1].append((index, begin, end))
                left -= end - begin
                begin = end
        return steps

    def _check(self, item: Slice) -> None:
        held = len(self._tables[item.slot]) * BLOCK
        if (
            not 1 <= len(item.tokens) <= MAX_SLICE
            or not 0 <= item.start <= self.context - len(item.tokens)
            or item.start > held
        ):
            raise ComputeError(f"{len(item.tokens)} tokens at {item.start} do not fit a context of {self.context}")
        if min(item.tokens) < 0 or max(item.tokens) >= self.vocabulary:
            raise ComputeError(f"a token id is outside 0…{self.vocabulary - 1}")

    def _fit(self, slot: int, start: int, end: int) -> None:
        """Cuts a slot to `start` tokens and makes it long enough for `end`."""
        table = self._tables[slot]
        kept = -(-start // BLOCK)
        self._free += table[kept:]
        del table[kept:]
        needed = -(-end // BLOCK) - len(table)
        if needed > len(self._free):
            raise MemoryError(f"{needed} cache blocks are needed and {len(self._free)} are free")
        for _ in range(needed):
            table.append(self._free.pop())
