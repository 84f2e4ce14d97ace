"""The pool of cache blocks: shared beginnings, eviction inside the budget, nothing lost."""

from __future__ import annotations

import numpy as np
import pytest

from edged.engine.block_cache import BlockCache, Tables
from edged.engine.blocks import NO_BLOCK, BlockPool, Table


def reuse(pool: BlockPool, table: Table, tokens: list[int]) -> int:
    """As a cache of this one pool."""
    return BlockCache([pool]).reuse(Tables((table,)), tokens)


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
        assert 8 == reuse(pool, second, [*tokens[:8], 99])
        pool.release(second)
        assert 4 == reuse(pool, second, tokens[:8])
        pool.release(second)
        assert 0 == reuse(pool, second, [5, *tokens])
    assert 8 == pool.free


class Contents:
    """What each block would hold: the copies that a pool asks for are made here."""

    def __init__(self, count: int, size: int) -> None:
        self.blocks: list[list[int]] = [[] for _ in range(count)]
        self.copies: list[tuple[int, int]] = []
        self.size = size

    def copy(self, source: int, target: int) -> None:
        """As the model copies a block."""
        assert source != target
        self.copies.append((source, target))
        self.blocks[target] = list(self.blocks[source])

    def write(self, table: Table, tokens: list[int], start: int) -> None:
        """As computing writes the tokens from `start` on."""
        for at in range(start, len(tokens)):
            block = self.blocks[table.blocks[at // self.size]]
            del block[at % self.size :]
            block.append(tokens[at])

    def read(self, table: Table, count: int) -> list[int]:
        """The first `count` tokens of a table."""
        return [self.blocks[table.blocks[at // self.size]][at % self.size] for at in range(count)]


def test_a_beginning_is_shared_to_the_token() -> None:
    """Where two sequences part within a block, the block is copied; of several, the one with the most in common."""
    contents = Contents(12, 4)
    pool, first, other = BlockPool(12, 4, contents.copy), Table(), Table()
    for table, tokens in ((first, [1, 2, 3, 4, 5, 6, 7, 8]), (other, [1, 2, 3, 4, 5, 9, 9, 9])):
        assert reuse(pool, table, tokens) == (0 if table is first else 5)
        pool.extend(table, 8)
        pool.register(table, tokens)
    assert contents.copies == [(first.blocks[1], other.blocks[1])]
    second = Table()
    assert 7 == reuse(pool, second, [1, 2, 3, 4, 5, 6, 7, 0, 0])
    assert contents.copies[-1] == (first.blocks[1], second.blocks[1])
    pool.release(second)
    assert 2 == reuse(pool, second, [1, 2, 0])
    pool.release(second)
    assert 7 == reuse(pool, second, [1, 2, 3, 4, 5, 6, 7, 8])  # the last token is computed
    pool.release(second)
    assert 0 == reuse(pool, second, [2, 2])
    assert [] == second.blocks
    pool.release(first)
    pool.release(other)
    assert 12 == pool.free


def test_a_conversation_goes_on_from_its_last_token() -> None:
    """The partly filled last block of an ended sequence is known; it is not kept twice."""
    contents = Contents(8, 4)
    pool, table, tokens = BlockPool(8, 4, contents.copy), Table(), [1, 2, 3, 4, 5, 6]
    for _ in range(3):
        reuse(pool, table, tokens)
        pool.extend(table, 6)
        pool.register(table, tokens)
        pool.release(table, tokens)
        assert 2 == len(pool._idle)
    assert 6 == reuse(pool, table, [*tokens, 7, 8, 9])
    pool.extend(table, 9)
    pool.register(table, [*tokens, 7, 8])
    assert 8 - 3 == pool.free
    pool.release(table)
    assert 8 == pool.free


def test_what_is_copied_is_not_evicted_for_the_copy() -> None:
    """With one free block, and that the one to copy, whole blocks alone are shared; the pool stays whole."""
    contents = Contents(2, 4)
    pool, table, other = BlockPool(2, 4, contents.copy), Table(), Table()
    pool.extend(table, 4)
    pool.register(table, [1, 2, 3, 4])
    pool.release(table)
    pool.extend(other, 4)
    assert 0 == reuse(pool, table, [1, 2, 9])
    assert ([], [], 1) == (table.blocks, contents.copies, pool.free)
    pool.release(other)
    assert 2 == reuse(pool, table, [1, 2, 9])


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
    assert 2 == reuse(pool, probe, [1, 2, 3, 4, 0])
    pool.release(probe)
    assert 4 == reuse(pool, probe, [5, 6, 7, 8, 0])


def test_a_full_pool_refuses_and_changes_nothing() -> None:
    """MemoryError; what is held by others is never taken."""
    pool, table, other = BlockPool(3, 4), Table(), Table()
    pool.extend(table, 8)
    with pytest.raises(MemoryError, match="2 cache blocks are needed and 1 of 3"):
        pool.extend(other, 8)
    assert [] == other.blocks
    pool.release(table)
    pool.extend(other, 12)
    assert [0, 1, 2] == sorted(other.blocks)


@pytest.mark.parametrize("size", [2, 3])
def test_random_use_never_loses_or_shares_a_block_wrongly(size: int) -> None:
    """After thousands of operations every block is held, idle or empty, and a found block holds what was asked."""
    random, contents = np.random.default_rng(size), Contents(12, size)
    pool = BlockPool(12, size, contents.copy)
    live: list[tuple[Table, list[int]]] = []
    for _ in range(5000):
        if live and random.random() < 0.45:
            table, tokens = live.pop(int(random.integers(len(live))))
            assert contents.read(table, len(tokens)) == tokens
            pool.release(table, tokens if random.random() < 0.5 else ())
            continue
        tokens, table = random.integers(0, 2, int(random.integers(1, 9))).tolist(), Table()
        kept = reuse(pool, table, tokens)
        assert kept < len(tokens)
        assert contents.read(table, kept) == tokens[:kept]
        try:
            pool.extend(table, len(tokens))
        except MemoryError:
            pool.release(table, tokens[:kept])
            continue
        held = {block for other, _ in live for block in other.blocks}
        assert held.isdisjoint(table.blocks[kept // size :])
        contents.write(table, tokens, kept)
        pool.register(table, tokens)
        live.append((table, tokens))
        assert pool.free == 12 - len({block for other, _ in live for block in other.blocks})
    assert len(contents.copies) > 500


def test_blocks_behind_the_window_are_released() -> None:
    """Those that a later token sees are held, and all that were passed can be used again; others stay known."""
    pool = BlockPool(4, 4, window=6)
    cache = BlockCache([pool])
    tables, tokens = cache.open(), list(range(40))
    for count in range(1, 41):
        cache.extend(tables, count)
        cache.register(tables, tokens[:count])
        seen = [at // 4 for at in range(max(0, count - 5), count)]
        assert seen == [at // 4 for at in range(max(0, count - 5), count) if tables.windowed[at // 4] != NO_BLOCK]
        assert 4 - pool.free <= 3
    assert [NO_BLOCK] * 8 == tables.windowed[:8]
    cache.release(tables)
    assert 4 == pool.free


def test_a_beginning_is_reused_as_far_as_both_pools_have_it() -> None:
    """All blocks of layers that see everything, and those within the window of the others."""
    full, windowed = BlockPool(16, 4), BlockPool(5, 4, window=6)
    cache = BlockCache([full, windowed])
    tokens = list(range(32))
    first = cache.open()
    for count in range(4, 33, 4):
        cache.extend(first, count)
        cache.register(first, tokens[:count])
    cache.release(first, tokens)
    second = cache.open()
    assert 28 == cache.reuse(second, tokens)
    assert [NO_BLOCK] * 5 == second.windowed[:5]
    assert NO_BLOCK not in second.windowed[5:] + second.full
    cache.release(second)
    probe = cache.open()
    assert 0 == cache.reuse(probe, tokens[:9])  # the windowed blocks of the beginning were evicted
    assert [] == probe.full
    cache.extend(probe, 20)  # evicts all that the window pool knew
    cache.release(probe)
    assert 0 == cache.reuse(probe, tokens)


def test_random_use_of_two_pools_never_loses_or_shares_a_block_wrongly() -> None:
    """What a table covers is in the blocks of both pools, as far as later tokens see it."""
    random, contents = np.random.default_rng(5), [Contents(14, 2), Contents(9, 2)]
    pools = [BlockPool(14, 2, contents[0].copy), BlockPool(9, 2, contents[1].copy, window=3)]
    cache = BlockCache(pools)
    live: list[tuple[Tables, list[int]]] = []
    reused = 0
    for _ in range(4000):
        if live and random.random() < 0.45:
            tables, tokens = live.pop(int(random.integers(len(live))))
            cache.release(tables, tokens if random.random() < 0.5 else ())
            continue
        tokens, tables = random.integers(0, 2, int(random.integers(1, 13))).tolist(), cache.open()
        kept = cache.reuse(tables, tokens)
        reused += kept > 2
        assert kept < len(tokens)
        for at in range(kept, len(tokens)):
            try:
                cache.extend(tables, at + 1)
            except MemoryError:
                cache.release(tables, tokens[:at])
                break
            for pool, table, held in zip(pools, tables.each, contents, strict=True):
                seen = range(max(0, at + 1 - pool.window) if pool.window else 0, at)
                assert [held.blocks[table.blocks[i // 2]][i % 2] for i in seen] == [tokens[i] for i in seen]
                held.write(table, tokens[: at + 1], at)
            cache.register(tables, tokens[: at + 1])
        else:
            live.append((tables, tokens))
        for index, pool in enumerate(pools):
            used = {block for other, _ in live for block in other.each[index].blocks} - {NO_BLOCK}
            assert pool.free == pool.count - len(used)
    assert reused > 200
