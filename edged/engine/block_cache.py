"""The blocks of sequences in a model's pools: of layers that see all tokens, and of those with a sliding window.

A beginning is reused as far as every pool has the blocks that later tokens see: all of them, or those within the
window. So a prompt continues after the end of an earlier one although the window has passed most of its blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edged.engine.blocks import BlockPool, Digest, Table, chain_digest


@dataclass(frozen=True)
class Tables:
    """A sequence's block tables, one for each pool, all of the same length."""

    each: tuple[Table, ...]

    @property
    def full(self) -> list[int]:
        """The blocks of layers that see all tokens; of a model without such layers, as `windowed`."""
        return self.each[0].blocks

    @property
    def windowed(self) -> list[int]:
        """The blocks of layers that see a window; of a model without such layers, as `full`."""
        return self.each[-1].blocks

    def __len__(self) -> int:
        return len(self.full)


class BlockCache:
    """The pools of one model; their blocks have the same size."""

    def __init__(self, pools: Sequence[BlockPool]) -> None:
        self.pools = tuple(pools)
        self.size = pools[0].size

    def open(self) -> Tables:
        """Empty tables."""
        return Tables(tuple(Table() for _ in self.pools))

    def reuse(self, tables: Tables, tokens: Sequence[int]) -> int:
        """Appends blocks that hold the beginning of `tokens` to tables; how many tokens they then cover.

        The tables are empty or hold full blocks of this same beginning. The last token is always left to be computed,
        because its logits are wanted.
        """
        held = len(tables)
        digests = self._digests(tables.each[0].digests, tokens)
        count = self._longest_known(held, digests)
        for pool, table in zip(self.pools, tables.each, strict=True):
            pool.append_known(table, digests[held:count])
        begin = count * self.size
        before = digests[count - 1] if count else b""
        covered = begin + self._reuse_partly(tables, before, tokens[begin : min(len(tokens) - 1, begin + self.size)])
        self.release_passed(tables, covered)
        return covered

    def extend(self, tables: Tables, tokens: int) -> None:
        """Makes tables long enough for `tokens`. Raises MemoryError, with the tables unchanged, where a pool is used
        up."""
        for pool in self.pools:
            pool.check_free(-(-tokens // self.size) - len(tables))
        for pool, table in zip(self.pools, tables.each, strict=True):
            pool.extend(table, tokens)

    def register(self, tables: Tables, tokens: Sequence[int]) -> None:
        """Records that the tables' blocks hold `tokens`; `reuse` finds those that are full from now on."""
        for pool, table in zip(self.pools, tables.each, strict=True):
            pool.register(table, tokens)

    def release_passed(self, tables: Tables, position: int) -> None:
        """Releases blocks of which no token from that position on sees anything."""
        for pool, table in zip(self.pools, tables.each, strict=True):
            pool.release_passed(table, position)

    def release(self, tables: Tables, tokens: Sequence[int] = ()) -> None:
        """Empties tables that held `tokens`."""
        for pool, table in zip(self.pools, tables.each, strict=True):
            pool.release(table, tokens)

    def _digests(self, known: Sequence[Digest], tokens: Sequence[int]) -> list[Digest]:
        """Those of all full blocks of `tokens` but the last token's, as far as a pool that needs all blocks has them.
        `known`: the first of them."""
        digests = list(known)
        need_all = [pool for pool in self.pools if not pool.window]
        for begin in range(len(digests) * self.size, (len(tokens) - 1) // self.size * self.size, self.size):
            digest = chain_digest(digests[-1] if digests else b"", tokens[begin : begin + self.size])
            if not all(pool.knows(digest) for pool in need_all):
                break
            digests.append(digest)
        return digests

    def _longest_known(self, held: int, digests: Sequence[Digest]) -> int:
        """The most blocks after which every pool has those that later tokens see. The tables hold the first `held`."""
        best = held
        begins = [0] * len(self.pools)  # of the unbroken run of known blocks that ends here, in each pool
        for index in range(held, len(digests)):
            begins = [
                begin if pool.knows(digests[index]) else index + 1
                for pool, begin in zip(self.pools, begins, strict=True)
            ]
            position = (index + 1) * self.size
            if all(begin <= pool.first_seen(position) for pool, begin in zip(self.pools, begins, strict=True)):
                best = index + 1
        return best

    def _reuse_partly(self, tables: Tables, before: Digest, rest: Sequence[int]) -> int:
        """Appends a copy of the block after `before` that begins with the most of `rest`; how many that is."""
        found = [pool.longest_match(before, rest) for pool in self.pools]
        count = min(shared for _, shared in found)
        if not count or any(pool.copy is None for pool in self.pools):
            return 0
        for pool, (source, _) in zip(self.pools, found, strict=True):
            pool.acquire(source)  # so that the copy does not evict it
        if all(pool.free for pool in self.pools):
            for pool, table, (source, _) in zip(self.pools, tables.each, found, strict=True):
                pool.append_copy(table, source)
        else:
            count = 0
        for pool, (source, _) in zip(self.pools, found, strict=True):
            pool.drop(source)
        return count
