"""A model that is being received, on disk: what it has after a kill, and what it refuses."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from edged.agent.partial_model import KEPT, SAVE_EVERY, PartialModel, bytes_on_disk
from edged.wire.hash_tree import leaf, proof, tree
from edged.wire.model_push import CHUNK, Offer

COUNT = SAVE_EVERY + 5
DATA = os.urandom((COUNT - 1) * CHUNK + 77)
CHUNKS = [DATA[at : at + CHUNK] for at in range(0, len(DATA), CHUNK)]
TREE = tree([leaf(chunk) for chunk in CHUNKS])
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
OFFER = Offer("m.gguf", len(DATA), TREE[-1][0].hex())


def message(number: int) -> bytes:
    return proof(TREE, number) + CHUNKS[number]


def part(folder: Path, digest: str = DIGEST, offer: Offer = OFFER) -> PartialModel:
    return PartialModel(folder / "partial", digest, offer)


def test_the_whole_file_is_written_in_any_order(tmp_path: Path) -> None:
    model = part(tmp_path)
    assert [] == model.open()
    assert all(model.write(number, message(number)) for number in reversed(range(COUNT)))
    model.close()
    assert DATA == model.path.read_bytes()
    assert [(0, COUNT)] == part(tmp_path).open()
    model.remove()
    assert [] == list((tmp_path / "partial").iterdir())


def test_p06_a_chunk_with_a_wrong_hash_is_not_written(tmp_path: Path) -> None:
    model = part(tmp_path)
    model.open()
    damaged = message(0)[:-1] + bytes([message(0)[-1] ^ 1])
    assert [False, False] == [model.write(0, damaged), model.write(1, message(0))]
    model.close()
    assert ([], bytes(len(DATA))) == (part(tmp_path).open(), model.path.read_bytes())


def test_a_kill_loses_only_the_last_chunks(tmp_path: Path) -> None:
    model = part(tmp_path)
    model.open()
    for number in range(COUNT):
        model.write(number, message(number))
    again = part(tmp_path)  # as after a kill: nothing was closed
    assert [(0, SAVE_EVERY)] == again.open()
    for number in range(SAVE_EVERY, COUNT):
        again.write(number, message(number))
    again.close()
    assert DATA == again.path.read_bytes()


@pytest.mark.parametrize("damage", ["ranges", "file", "root", "name", "folder"])
def test_what_cannot_be_continued_is_begun_anew(tmp_path: Path, damage: str) -> None:
    model = part(tmp_path)
    model.open()
    model.write(0, message(0))
    model.close()
    (ranges,) = (tmp_path / "partial").glob("*.ranges")
    offer = OFFER
    match damage:
        case "ranges":
            ranges.write_text("{")
        case "file":
            model.path.unlink()
        case "root":
            offer = Offer("m.gguf", len(DATA), "0" * 64)
        case "name":
            offer = Offer("n.gguf", len(DATA), OFFER.root)
        case _:
            model.path.unlink()
            model.path.mkdir()
    again = part(tmp_path, offer=offer)
    assert [] == again.open()
    assert ("root" != damage) == again.write(0, message(0))
    again.close()
    assert len(DATA) == again.path.stat().st_size


def test_what_a_partial_file_takes_is_known_without_its_holes(tmp_path: Path) -> None:
    assert 0 == bytes_on_disk(tmp_path / "partial", DIGEST)
    model = part(tmp_path)
    model.open()
    model.write(3, message(3))
    model.close()
    assert CHUNK <= bytes_on_disk(tmp_path / "partial", DIGEST) < 3 * CHUNK


def test_few_partial_models_are_kept(tmp_path: Path) -> None:
    for number in range(KEPT + 2):
        model = part(tmp_path, f"sha256:{number:064x}")
        model.open()
        model.close()
        os.utime(next(iter((tmp_path / "partial").glob(f"{model._ranges.name}"))), (number, number))
    assert KEPT == len(list((tmp_path / "partial").glob("*.push")))
    assert model.path.exists()
