"""The hash tree over a model's chunks, beside the recursive definition of RFC 9162, section 2.1."""

from __future__ import annotations

import hashlib

import pytest

from edged.wire.hash_tree import HASH, leaf, proof, proof_size, root_by, tree


def defined(chunks: list[bytes]) -> bytes:
    """MTH of the RFC, word by word."""
    if len(chunks) == 1:
        return hashlib.sha256(b"\x00" + chunks[0]).digest()
    split = 1
    while split * 2 < len(chunks):
        split *= 2
    return hashlib.sha256(b"\x01" + defined(chunks[:split]) + defined(chunks[split:])).digest()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8, 9, 31, 33])
def test_p06_each_chunk_is_verified_by_its_proof_alone(count: int) -> None:
    chunks = [bytes([number]) * 10 for number in range(count)]
    levels = tree([leaf(chunk) for chunk in chunks])
    root = defined(chunks)
    assert [root] == levels[-1]
    for number, chunk in enumerate(chunks):
        beside = proof(levels, number)
        assert proof_size(number, count) == len(beside)
        assert root == root_by(beside, chunk, number, count)
        assert root != root_by(beside, chunk + b"x", number, count)
        if count > 1:
            assert root != root_by(beside, chunk, (number + 1) % count, count)
            assert root != root_by(bytes(HASH) + beside[HASH:], chunk, number, count)
