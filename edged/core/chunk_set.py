"""A set of chunk numbers below a bound, read as ranges. One byte a number, so that ranges are found without a loop."""

from __future__ import annotations

from collections.abc import Iterable

Range = tuple[int, int]
"""The numbers from the first to before the second."""


class ChunkSet:
    """Some of the numbers 0 … `count` - 1; `size` says how many."""

    def __init__(self, count: int, ranges: Iterable[Range] = ()) -> None:
        self.count = count
        self.size = 0
        self._marks = bytearray(count)
        self.add_ranges(ranges)

    def __contains__(self, number: int) -> bool:
        return 0 <= number < self.count and self._marks[number] == 1

    @property
    def full(self) -> bool:
        """Whether all numbers are in it."""
        return self.size == self.count

    def add(self, number: int) -> None:
        """Add one number below `count`."""
        self.size += 1 - self._marks[number]
        self._marks[number] = 1

    def discard(self, number: int) -> None:
        """Remove one number below `count`, whether it is there or not."""
        self.size -= self._marks[number]
        self._marks[number] = 0

    def add_ranges(self, ranges: Iterable[Range]) -> None:
        """Add all numbers of these ranges; what is not below `count` is left out."""
        for given in ranges:
            first, end = max(0, given[0]), min(given[1], self.count)
            if first < end:
                self.size += self._marks.count(0, first, end)
                self._marks[first:end] = b"\x01" * (end - first)

    def next(self, start: int) -> int | None:
        """The first number from `start` on, else the first of all; None in an empty set."""
        found = self._marks.find(1, start)
        found = self._marks.find(1) if found < 0 else found
        return None if found < 0 else found

    def ranges(self, limit: int | None = None) -> list[Range]:
        """The numbers that are in it; at most `limit` ranges, the first ones."""
        return self._runs(1, limit)

    def gaps(self, limit: int | None = None) -> list[Range]:
        """The numbers that are not in it, likewise."""
        return self._runs(0, limit)

    def gaps_within(self, ranges: Iterable[Range], limit: int) -> bool:
        """Whether each of the first `limit` gaps lies inside one of these ranges."""
        given, at = sorted(ranges), 0
        for first, end in self.gaps(limit):
            while at < len(given) and given[at][1] <= first:
                at += 1
            if at == len(given) or given[at][0] > first or given[at][1] < end:
                return False
        return True

    def _runs(self, mark: int, limit: int | None) -> list[Range]:
        runs: list[Range] = []
        at = self._marks.find(mark)
        while at >= 0 and (limit is None or len(runs) < limit):
            end = self._marks.find(1 - mark, at)
            end = self.count if end < 0 else end
            runs.append((at, end))
            at = self._marks.find(mark, end)
        return runs
