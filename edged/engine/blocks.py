"""Blocks of the key/value cache: reference counts, prefix reuse, eviction.

A full block is identified by its tokens and all tokens before them (a chain of digests, as in vLLM's automatic prefix
caching). While sequences refer to it, it is shared; when none does, it keeps its contents until it is evicted, the
least recently used first. So a system prompt that many prompts share is computed once, inside the budget fixed at load.
Where a new sequence differs from a known one within a block, the block is copied and the copy overwritten from there
on; so the last, partly filled block of an ended sequence is kept, too, as a source of copies. One thread owns a pool.
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


class _Contents(NamedTuple):
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
        self._ref_count = [0] * count
        self._by_digest: dict[Digest, int] = {}  # blocks with known contents
        self._contents: dict[int, _Contents] = {}  # of the same blocks
        self._children: dict[Digest, dict[int, None]] = {}  # the same blocks by the digest of the one before
        # those of them without references, least recently used first
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def free(self) -> int:
        """Blocks that can be allocated: empty ones and idle ones."""
        return len(self._empty) + len(self._idle)

    def reuse(self, table: Table, tokens: Sequence[int]) -> int:
        """Appends blocks that hold the beginning of `tokens` to a table; how many tokens it then covers.

        The table is empty or holds full blocks of this same beginning. The last token is always left to be computed,
        because its logits are wanted.
        """
        digest = table.digests[-1] if table.digests else b""
        for begin in range(len(table.blocks) * self.size, (len(tokens) - 1) // self.size * self.size, self.size):
            after = _chain_digest(digest, tokens[begin : begin + self.size])
            block = self._by_digest.get(after)
            if block is None:
                break
            digest = after
            self._acquire(block)
            table.blocks.append(block)
            table.digests.append(digest)
        begin = len(table.blocks) * self.size
        return begin + self._reuse_partly(table, digest, tokens[begin : min(len(tokens) - 1, begin + self.size)])

    def extend(self, table: Table, tokens: int) -> None:
        """Makes a table long enough for `tokens`. Raises MemoryError, with the table unchanged, where the pool is
        used up."""
        needed = -(-tokens // self.size) - len(table.blocks)
        if needed > self.free:
            raise MemoryError(f"{needed} cache blocks are needed and {self.free} of {self.count} are free")
        for _ in range(needed):
            table.blocks.append(self._allocate())

    def register(self, table: Table, tokens: Sequence[int]) -> None:
        """Records that a table's blocks hold `tokens`; `reuse` finds those that are full from now on."""
        for index in range(len(table.digests), len(tokens) // self.size):
            before = table.digests[index - 1] if index else b""
            part = tokens[index * self.size : (index + 1) * self.size]
            table.digests.append(_chain_digest(before, part))
            self._remember(table.blocks[index], _Contents(table.digests[-1], before, tuple(part)))

    def release(self, table: Table, tokens: Sequence[int] = ()) -> None:
        """Empties a table that held `tokens`. Its last blocks are evicted first: beginnings are shared more often."""
        full = len(table.digests)
        rest = tuple(tokens[full * self.size : (full + 1) * self.size])
        if self._copy and rest and full < len(table.blocks):
            before = table.digests[-1] if full else b""
            if self._longest_match(before, rest)[1] < len(rest):
                self._remember(table.blocks[full], _Contents(_chain_digest(before, rest), before, rest))
        for block in reversed(table.blocks):
            self._drop(block)
        table.blocks.clear()
        table.digests.clear()

    def _reuse_partly(self, table: Table, before: Digest, rest: Sequence[int]) -> int:
        """Appends a copy of the block after `before` that begins with the most of `rest`; how many that is."""
        source, count = self._longest_match(before, rest)
        if source is None or not self._copy:
            return 0
        self._acquire(source)  # so that `_allocate` does not evict it
        if self.free:
            target = self._allocate()
            table.blocks.append(target)
            self._copy(source, target)
        else:
            count = 0
        self._drop(source)
        return count

    def _longest_match(self, before: Digest, rest: Sequence[int]) -> tuple[int | None, int]:
        """The block after `before` that shares the longest beginning with `rest`, and the beginning's length."""
        best, most = None, 0
        for block in self._children.get(before, ()):
            shared = _common_prefix(self._contents[block].tokens, rest)
            if shared > most:
                best, most = block, shared
        return best, most

    def _remember(self, block: int, contents: _Contents) -> None:
        if contents.digest in self._by_digest or block in self._contents:
            return
        self._by_digest[contents.digest] = block
        self._contents[block] = contents
        self._children.setdefault(contents.before, {})[block] = None

    def _acquire(self, block: int) -> None:
        self._ref_count[block] += 1
        self._idle.pop(block, None)

    def _drop(self, block: int) -> None:
        self._ref_count[block] -= 1
        if self._ref_count[block]:
            return
        if block in self._contents:
            self._idle[block] = None
        else:
            self._empty.append(block)

    def _allocate(self) -> int:
        """An empty block, or the least recently used idle one, with one reference."""
        block = self._empty.pop() if self._empty else self._evict()
        self._ref_count[block] = 1
        return block

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        contents = self._contents.pop(block)
        del self._by_digest[contents.digest]
        siblings = self._children[contents.before]
        del siblings[block]
        if not siblings:
            del self._children[contents.before]
        return block


def _chain_digest(before: Digest, tokens: Sequence[int]) -> Digest:
    return hashlib.blake2b(before + np.asarray(tokens, np.int64).tobytes(), digest_size=16).digest()


def _common_prefix(first: Iterable[int], second: Iterable[int]) -> int:
    """How many tokens two lists have in common from their beginning."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count
