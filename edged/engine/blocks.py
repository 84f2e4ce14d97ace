"""Blocks of the key/value cache: who holds which, and which full ones may be used again.

A full block is known by its tokens and all tokens before them (a chain of digests). While sequences hold it, it is
shared; when none does, it stays with its contents until its room is needed, the least recently used first. So a system
prompt that many prompts share is computed once, inside the budget fixed at load. One thread owns a pool.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

Digest = bytes


@dataclass
class Table:
    """A sequence's blocks in order, and the digests of those that are full and registered."""

    blocks: list[int] = field(default_factory=list)
    digests: list[Digest] = field(default_factory=list)


class BlockPool:
    """`count` blocks of `size` tokens."""

    def __init__(self, count: int, size: int) -> None:
        self.count = count
        self.size = size
        self._empty = list(range(count - 1, -1, -1))
        self._holders = [0] * count
        self._known: dict[Digest, int] = {}  # full blocks by what they hold
        self._digest: dict[int, Digest] = {}  # the same the other way round
        self._idle: OrderedDict[int, None] = OrderedDict()  # known blocks that nobody holds, least recently used first

    @property
    def free(self) -> int:
        """Blocks that can be had: empty ones and idle ones."""
        return len(self._empty) + len(self._idle)

    def reuse(self, table: Table, tokens: Sequence[int]) -> int:
        """Fills an empty table with known blocks that hold the beginning of `tokens`; how many tokens that is.

        The last token is always left to be computed, because its logits are wanted.
        """
        digest = b""
        for begin in range(0, (len(tokens) - 1) // self.size * self.size, self.size):
            digest = _chain(digest, tokens[begin : begin + self.size])
            block = self._known.get(digest)
            if block is None:
                break
            self._holders[block] += 1
            self._idle.pop(block, None)
            table.blocks.append(block)
            table.digests.append(digest)
        return len(table.blocks) * self.size

    def extend(self, table: Table, tokens: int) -> None:
        """Makes a table long enough for `tokens`. Raises MemoryError, with the table unchanged, where the pool is
        used up."""
        needed = -(-tokens // self.size) - len(table.blocks)
        if needed > self.free:
            raise MemoryError(f"{needed} cache blocks are needed and {self.free} of {self.count} are free")
        for _ in range(needed):
            block = self._empty.pop() if self._empty else self._evict()
            self._holders[block] = 1
            table.blocks.append(block)

    def register(self, table: Table, tokens: Sequence[int]) -> None:
        """Says that a table's blocks hold `tokens`; those that are full can be found by `reuse` from now on."""
        for index in range(len(table.digests), len(tokens) // self.size):
            before = table.digests[index - 1] if index else b""
            digest = _chain(before, tokens[index * self.size : (index + 1) * self.size])
            table.digests.append(digest)
            block = table.blocks[index]
            if digest not in self._known and block not in self._digest:
                self._known[digest] = block
                self._digest[block] = digest

    def release(self, table: Table) -> None:
        """Empties a table. Its last blocks become the first to be used anew: beginnings are shared more often."""
        for block in reversed(table.blocks):
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            if block in self._digest:
                self._idle[block] = None
            else:
                self._empty.append(block)
        table.blocks.clear()
        table.digests.clear()

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        del self._known[self._digest.pop(block)]
        return block


def _chain(before: Digest, tokens: Sequence[int]) -> Digest:
    return hashlib.blake2b(before + np.asarray(tokens, np.int64).tobytes(), digest_size=16).digest()
