"""The pool of cache blocks: shared beginnings, eviction inside the budget, nothing lost."""

from __future__ import annotations

import numpy as np
import pytest

from edged.engine.blocks import BlockPool, Table


def test_a_shared_beginning_is_found_and_shared() -> None:
    """Full blocks alone, never the last token, while held and after."""
    pool, first = BlockPool(8, 4), Table()
    tokens = list(range(10))
    pool.extend(first, 10)
    pool.register(first, tokens)
    for held in (True, False):
        if not held:
            pool.release(first)
        second = Table()
        assert pool.reuse(second, [*tokens[:8], 99]) == 8
        pool.release(second)
        assert pool.reuse(second, tokens[:8]) == 4
        pool.release(second)
        assert pool.reuse(second, [5, *tokens]) == 0
    assert pool.free == 8


def test_the_least_recently_used_goes_first() -> None:
    """With the pool full of kept blocks, the oldest end is overwritten first."""
    pool, tables = BlockPool(4, 2), [Table(), Table()]
    for table, tokens in zip(tables, ([1, 2, 3, 4], [5, 6, 7, 8]), strict=True):
        pool.extend(table, 4)
        pool.register(table, tokens)
    pool.release(tables[0])
    pool.release(tables[1])
    new = Table()
    pool.extend(new, 2)
    probe = Table()
    assert pool.reuse(probe, [1, 2, 3, 4, 0]) == 2
    pool.release(probe)
    assert pool.reuse(probe, [5, 6, 7, 8, 0]) == 4


def test_a_full_pool_refuses_and_changes_nothing() -> None:
    """MemoryError; what is held by others is never taken."""
    pool, table, other = BlockPool(3, 4), Table(), Table()
    pool.extend(table, 8)
    with pytest.raises(MemoryError, match="2 cache blocks are needed and 1 of 3"):
        pool.extend(other, 8)
    assert other.blocks == []
    pool.release(table)
    pool.extend(other, 12)
    assert sorted(other.blocks) == [0, 1, 2]


def test_random_use_never_loses_or_shares_a_block_wrongly() -> None:
    """After thousands of operations every block is held, idle or empty, and a found block holds what was asked."""
    random, pool = np.random.default_rng(0), BlockPool(12, 2)
    contents: dict[int, list[int]] = {}
    live: list[tuple[Table, list[int]]] = []
    for _ in range(5000):
        if live and random.random() < 0.45:
            table, tokens = live.pop(int(random.integers(len(live))))
            pool.release(table)
            continue
        tokens, table = random.integers(0, 2, int(random.integers(1, 9))).tolist(), Table()
        kept = pool.reuse(table, tokens)
        for index, block in enumerate(table.blocks):
            assert contents[block] == tokens[: (index + 1) * 2]
        try:
            pool.extend(table, len(tokens))
        except MemoryError:
            pool.release(table)
            continue
        held = {block for other, _ in live for block in other.blocks}
        assert held.isdisjoint(table.blocks[kept // 2 :])
        for index, block in enumerate(table.blocks):
            contents[block] = tokens[: (index + 1) * 2]
        pool.register(table, tokens)
        live.append((table, tokens))
        assert pool.free == 12 - len({block for other, _ in live for block in other.blocks})
