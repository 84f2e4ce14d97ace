"""A hash tree over the chunks of a file, so that each chunk is verified by itself: RFC 9162, section 2.1, SHA-256.

A chunk is sent with the hashes beside its way to the root, the lowest first. Their number follows from the chunk's
number and the count of chunks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

HASH = 32
"""Bytes of a hash."""


def leaf(chunk: bytes | memoryview) -> bytes:
    """The hash of a chunk."""
    state = hashlib.sha256(b"\x00")
    state.update(chunk)
    return state.digest()


def tree(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """All levels over the leaves (at least one), the leaves first; the last level has the root alone."""
    levels = [list(leaves)]
    while len(levels[-1]) > 1:
        below = levels[-1]
        pairs = [_node(below[at], below[at + 1]) for at in range(0, len(below) - 1, 2)]
        levels.append(pairs + below[len(pairs) * 2 :])  # an odd one out goes up as it is
    return levels


def proof(levels: Sequence[Sequence[bytes]], number: int) -> bytes:
    """The hashes beside the way of one chunk to the root."""
    beside = []
    for level in levels[:-1]:
        if number ^ 1 < len(level):
            beside.append(level[number ^ 1])
        number >>= 1
    return b"".join(beside)


def proof_size(number: int, count: int) -> int:
    """Bytes of the proof of chunk `number` of `count`."""
    hashes = 0
    while count > 1:
        hashes += number ^ 1 < count
        number, count = number >> 1, (count + 1) // 2
    return hashes * HASH


def root_by(proof: bytes | memoryview, chunk: bytes | memoryview, number: int, count: int) -> bytes:
    """The root that follows from a chunk and a proof of the right size."""
    found, at = leaf(chunk), 0
    while count > 1:
        if number ^ 1 < count:
            beside = bytes(proof[at : at + HASH])
            at += HASH
            found = _node(beside, found) if number & 1 else _node(found, beside)
        number, count = number >> 1, (count + 1) // 2
    return found


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()
