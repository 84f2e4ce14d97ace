"""Sets of chunk numbers and their ranges."""

from __future__ import annotations

import random

import pytest

from edged.core.chunk_set import ChunkSet


@pytest.mark.parametrize("seed", range(20))
def test_it_agrees_with_a_plain_set(seed: int) -> None:
    draw = random.Random(seed)
    count = draw.randint(1, 60)
    chunks, plain = ChunkSet(count), set[int]()
    for _ in range(60):
        first, end = draw.randint(-5, count + 5), draw.randint(-5, count + 5)
        number = draw.randrange(count)
        match draw.randrange(3):
            case 0:
                chunks.add_ranges([(first, end)])
                plain |= {n for n in range(first, end) if 0 <= n < count}
            case 1:
                chunks.add(number)
                plain.add(number)
            case _:
                chunks.discard(number)
                plain.discard(number)
        assert (len(plain), len(plain) == count) == (chunks.size, chunks.full)
        assert plain == {n for first, end in chunks.ranges() for n in range(first, end)}
        assert set(range(count)) - plain == {n for first, end in chunks.gaps() for n in range(first, end)}
        assert (min((n for n in plain if n >= number), default=min(plain, default=None))) == chunks.next(number)
        covered = all(any(lo <= a and b <= hi for lo, hi in [(0, 9), (20, 40)]) for a, b in chunks.gaps(3))
        assert covered == chunks.gaps_within([(20, 40), (0, 9)], 3)


def test_ranges_are_bounded_and_numbers_outside_are_in_no_set() -> None:
    chunks = ChunkSet(10, [(0, 1), (2, 3), (4, 5)])
    assert [(0, 1), (2, 3)] == chunks.ranges(2)
    assert [(1, 2)] == chunks.gaps(1)
    assert [True, False, False] == [number in chunks for number in (4, -1, 10)]
