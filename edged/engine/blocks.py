"""Blocks of the key/value cache: reference counts, prefix reuse, eviction.

A full block is identified by its tokens and all tokens before them (a chain of digests, as in vLLM's automatic prefix
caching). While sequences refer to it, it is shared; when none does, it keeps its contents until it is evicted, the
least recently used first. So a system prompt that many prompts share is computed once, inside the budget fixed at load.
Where a new sequence differs from a known one within a block, the block is copied and the copy overwritten from there
on; so the last, partly filled block of an ended sequence is kept, too, as a source of copies. Blocks of layers with a
sliding window are released as soon as the window has passed them. One thread owns a pool.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

Digest = bytes
NO_BLOCK: Final = -1


@dataclass
class Table:
    """A sequence's blocks in order, and the digests of those that are full and registered. The first `passed` blocks
    are behind the window: NO_BLOCK."""

    blocks: list[int] = field(default_factory=list)
    digests: list[Digest] = field(default_factory=list)
    passed: int = 0


class _Contents(NamedTuple):
    """What a block holds: its own digest, that of the block before it, and its tokens."""

    digest: Digest
    before: Digest
    tokens: tuple[int, ...]


class BlockPool:
    """`count` blocks of `size` tokens. `copy(source, target)` copies a block's contents; without it only whole blocks
    are used again. `window`: how many tokens a token sees, itself the last; 0: all."""

    def __init__(self, count: int, size: int, copy: Callable[[int, int], None] | None = None, window: int = 0) -> None:
        self.count = count
        self.size = size
        self.window = window
        self.copy = copy
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

    def first_seen(self, position: int) -> int:
        """The number of the first block of which a token at that position sees anything."""
        return max(0, position + 1 - self.window) // self.size if self.window else 0

    def knows(self, digest: Digest) -> bool:
        """Whether a block has these contents."""
        return digest in self._by_digest

    def append_known(self, table: Table, digests: Sequence[Digest]) -> None:
        """Appends full blocks with these contents to a table, of which those that later tokens see are known."""
        first = self.first_seen((len(table.blocks) + len(digests)) * self.size)
        for digest in digests:
            block = NO_BLOCK if len(table.blocks) < first else self._by_digest[digest]
            if block != NO_BLOCK:
                self.acquire(block)
            table.blocks.append(block)
            table.digests.append(digest)

    def extend(self, table: Table, tokens: int) -> None:
        """Makes a table long enough for `tokens`. Raises MemoryError, with the table unchanged, where the pool is
        used up."""
        needed = -(-tokens // self.size) - len(table.blocks)
        self.check_free(needed)
        for _ in range(needed):
            table.blocks.append(self._allocate())

    def check_free(self, blocks: int) -> None:
        """Raises MemoryError where fewer can be allocated."""
        if blocks > self.free:
            raise MemoryError(f"{blocks} cache blocks are needed and {self.free} of {self.count} are free")

    def register(self, table: Table, tokens: Sequence[int]) -> None:
        """Records that a table's blocks hold `tokens`: full ones are known from now on, those that no later token sees
        are released."""
        for index in range(len(table.digests), len(tokens) // self.size):
            before = table.digests[index - 1] if index else b""
            part = tokens[index * self.size : (index + 1) * self.size]
            table.digests.append(chain_digest(before, part))
            self._remember(table.blocks[index], _Contents(table.digests[-1], before, tuple(part)))
        self.release_passed(table, len(tokens))

    def release_passed(self, table: Table, position: int) -> None:
        """Releases blocks of which no token from that position on sees anything."""
        while table.passed < self.first_seen(position):
            self.drop(table.blocks[table.passed])
            table.blocks[table.passed] = NO_BLOCK
            table.passed += 1

    def release(self, table: Table, tokens: Sequence[int] = ()) -> None:
        """Empties a table that held `tokens`. Its last blocks are evicted first: beginnings are shared more often."""
        full = len(table.digests)
        rest = tuple(tokens[full * self.size : (full + 1) * self.size])
        if self.copy and rest and full < len(table.blocks):
            before = table.digests[-1] if full else b""
            if self.longest_match(before, rest)[1] < len(rest):
                self._remember(table.blocks[full], _Contents(chain_digest(before, rest), before, rest))
        for block in reversed(table.blocks):
            self.drop(block)
        table.blocks.clear()
        table.digests.clear()
        table.passed = 0

    def append_copy(self, table: Table, source: int) -> None:
        """Appends a copy of a block to a table."""
        assert self.copy is not None  # noqa: S101
        table.blocks.append(self._allocate())
        self.copy(source, table.blocks[-1])

    def longest_match(self, before: Digest, rest: Sequence[int]) -> tuple[int, int]:
        """The block after `before` that shares the longest beginning with `rest`, and the beginning's length."""
        best, most = NO_BLOCK, 0
        for block in self._children.get(before, ()):
            shared = _common_prefix(self._contents[block].tokens, rest)
            if shared > most:
                best, most = block, shared
        return best, most

    def _remember(self, block: int, contents: _Contents) -> None:
        if block in self._contents:
            return
        known = self._by_digest.get(contents.digest)
        if known is not None:
            if known not in self._idle:
                return
            del self._idle[known]  # the newer block stays longer
            self._forget(known)
            self._empty.append(known)
        self._by_digest[contents.digest] = block
        self._contents[block] = contents
        self._children.setdefault(contents.before, {})[block] = None

    def acquire(self, block: int) -> None:
        """Adds a reference to a block, which is then not evicted."""
        self._ref_count[block] += 1
        self._idle.pop(block, None)

    def drop(self, block: int) -> None:
        """Removes a reference to a block, if it is one."""
        if block == NO_BLOCK:
            return
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
        self._forget(block)
        return block

    def _forget(self, block: int) -> None:
        contents = self._contents.pop(block)
        del self._by_digest[contents.digest]
        siblings = self._children[contents.before]
        del siblings[block]
        if not siblings:
            del self._children[contents.before]


def chain_digest(before: Digest, tokens: Sequence[int]) -> Digest:
    """The digest of a block with these tokens after the block of the digest `before`; none: empty."""
    return hashlib.blake2b(before + np.asarray(tokens, np.int64).tobytes(), digest_size=16).digest()


def _common_prefix(first: Iterable[int], second: Iterable[int]) -> int:
    """How many tokens two lists have in common from their beginning."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count
