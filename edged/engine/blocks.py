"""Blocks of the key/value cache: who holds which, and which may be used again.

A full block is known by its tokens and all tokens before them (a chain of digests). While sequences hold it, it is
shared; when none does, it stays with its contents until its room is needed, the least recently used first. So a system
prompt that many prompts share is computed once, inside the budget fixed at load. Where a new sequence parts from a
known one within a block, the block is copied and the copy overwritten from there on; so the last, partly filled block
of an ended sequence is known, too, as something to copy. One thread owns a pool.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

Digest = bytes


@dataclass
class Table:
    """A sequence's blocks in order, and the digests of those that are full and registered."""

    blocks: list[int] = field(default_factory=list)
    digests: list[Digest] = field(default_factory=list)


class _Known(NamedTuple):
    """What a block holds: its own digest, that of the block before it, and its tokens."""

    digest: Digest
    before: Digest
    tokens: tuple[int, ...]


class BlockPool:
    """`count` blocks of `size` tokens. `copy(source, target)` copies a block's contents; without it only whole blocks
    are used again."""

    def __init__(self, count: int, size: int, copy: Callable[[int, int], None] | None = None) -> None:
        self.count = count
        self.size = size
        self._copy = copy
        self._empty = list(range(count - 1, -1, -1))
        self._holders = [0] * count
        self._found: dict[Digest, int] = {}  # known blocks by what they hold
        self._known: dict[int, _Known] = {}  # the same the other way round
        self._after: dict[Digest, dict[int, None]] = {}  # known blocks by the digest of the one before
        self._idle: OrderedDict[int, None] = OrderedDict()  # known blocks that nobody holds, least recently used first

    @property
    def free(self) -> int:
        """Blocks that can be had: empty ones and idle ones."""
        return len(self._empty) + len(self._idle)

    def reuse(self, table: Table, tokens: Sequence[int]) -> int:
        """Fills a table on with known blocks that hold the beginning of `tokens`; how many tokens it then holds.

        The table is empty or holds full blocks of just this beginning. The last token is always left to be computed,
        because its logits are wanted.
        """
        digest = table.digests[-1] if table.digests else b""
        for begin in range(len(table.blocks) * self.size, (len(tokens) - 1) // self.size * self.size, self.size):
            after = _chain(digest, tokens[begin : begin + self.size])
            block = self._found.get(after)
            if block is None:
                break
            digest = after
            self._hold(block)
            table.blocks.append(block)
            table.digests.append(digest)
        begin = len(table.blocks) * self.size
        return begin + self._reuse_part(table, digest, tokens[begin : min(len(tokens) - 1, begin + self.size)])

    def extend(self, table: Table, tokens: int) -> None:
        """Makes a table long enough for `tokens`. Raises MemoryError, with the table unchanged, where the pool is
        used up."""
        needed = -(-tokens // self.size) - len(table.blocks)
        if needed > self.free:
            raise MemoryError(f"{needed} cache blocks are needed and {self.free} of {self.count} are free")
        for _ in range(needed):
            table.blocks.append(self._take())

    def register(self, table: Table, tokens: Sequence[int]) -> None:
        """Says that a table's blocks hold `tokens`; those that are full can be found by `reuse` from now on."""
        for index in range(len(table.digests), len(tokens) // self.size):
            before = table.digests[index - 1] if index else b""
            part = tokens[index * self.size : (index + 1) * self.size]
            table.digests.append(_chain(before, part))
            self._learn(table.blocks[index], _Known(table.digests[-1], before, tuple(part)))

    def release(self, table: Table, tokens: Sequence[int] = ()) -> None:
        """Empties a table that held `tokens`. Its last blocks become the first to be used anew: beginnings are shared
        more often."""
        full = len(table.digests)
        rest = tuple(tokens[full * self.size : (full + 1) * self.size])
        if self._copy and rest and full < len(table.blocks):
            before = table.digests[-1] if full else b""
            if self._longest(before, rest)[1] < len(rest):
                self._learn(table.blocks[full], _Known(_chain(before, rest), before, rest))
        for block in reversed(table.blocks):
            self._let_go(block)
        table.blocks.clear()
        table.digests.clear()

    def _reuse_part(self, table: Table, before: Digest, rest: Sequence[int]) -> int:
        """Appends a copy of the known block after `before` that begins with the most of `rest`; how many that is."""
        source, count = self._longest(before, rest)
        if source is None or not self._copy:
            return 0
        self._hold(source)  # so that it is not what `_take` overwrites
        if self.free:
            target = self._take()
            table.blocks.append(target)
            self._copy(source, target)
        else:
            count = 0
        self._let_go(source)
        return count

    def _longest(self, before: Digest, rest: Sequence[int]) -> tuple[int | None, int]:
        """The known block after `before` that shares the longest beginning with `rest`, and the beginning's length."""
        best, most = None, 0
        for block in self._after.get(before, ()):
            shared = _common(self._known[block].tokens, rest)
            if shared > most:
                best, most = block, shared
        return best, most

    def _learn(self, block: int, known: _Known) -> None:
        if known.digest in self._found or block in self._known:
            return
        self._found[known.digest] = block
        self._known[block] = known
        self._after.setdefault(known.before, {})[block] = None

    def _hold(self, block: int) -> None:
        self._holders[block] += 1
        self._idle.pop(block, None)

    def _let_go(self, block: int) -> None:
        self._holders[block] -= 1
        if self._holders[block]:
            return
        if block in self._known:
            self._idle[block] = None
        else:
            self._empty.append(block)

    def _take(self) -> int:
        """An empty block, or the least recently used idle one; held once."""
        block = self._empty.pop() if self._empty else self._evict()
        self._holders[block] = 1
        return block

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        known = self._known.pop(block)
        del self._found[known.digest]
        siblings = self._after[known.before]
        del siblings[block]
        if not siblings:
            del self._after[known.before]
        return block


def _chain(before: Digest, tokens: Sequence[int]) -> Digest:
    return hashlib.blake2b(before + np.asarray(tokens, np.int64).tobytes(), digest_size=16).digest()


def _common(first: Iterable[int], second: Iterable[int]) -> int:
    """How many tokens two lists have in common from their beginning."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count
