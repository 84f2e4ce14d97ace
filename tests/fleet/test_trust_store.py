"""The floors and keys on disk: two equal files, of which one is enough."""

from __future__ import annotations

import json
import os
import random
import stat
from pathlib import Path

import pytest

from edged.fleet import trust_store
from edged.fleet.trust import Floor, TrustRecord

RECORD = TrustRecord({"edged/v1/home/config": Floor(12, "ab" * 32)}, {"next": "A" * 43 + "="}, {"B" * 43 + "=": "ops"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trust.json"


def test_what_was_saved_is_loaded_and_its_owners_alone(path: Path) -> None:
    assert trust_store.load(path) is None
    trust_store.save(path, RECORD)
    assert RECORD == trust_store.load(path)
    assert {0o600} == {stat.S_IMODE(file.stat().st_mode) for file in trust_store.files(path)}


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("kind", ["gone", "folder", "fifo", "dangling", "empty", "huge"])
def test_p05_one_of_the_two_is_enough_and_both_can_be_written_again(path: Path, which: int, kind: str) -> None:
    trust_store.save(path, RECORD)
    file = trust_store.files(path)[which]
    file.unlink()
    if kind == "folder":
        (file / "inside").mkdir(parents=True)
    elif kind == "fifo":
        os.mkfifo(file)
    elif kind == "dangling":
        file.symlink_to("/nowhere/at/all")
    elif kind != "gone":
        file.touch()
        os.truncate(file, (1 << 31) if kind == "huge" else 0)
    assert RECORD == trust_store.load(path)
    trust_store.save(path, RECORD)
    assert [True, True] == [each.is_file() and not each.is_symlink() for each in trust_store.files(path)]


def test_p05_flipped_bits_in_both_files_never_give_another_record(path: Path) -> None:
    trust_store.save(path, RECORD)
    whole, draw = path.read_bytes(), random.Random(3)
    for _ in range(300):
        for file in trust_store.files(path):
            raw = bytearray(whole)
            raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
            file.write_bytes(raw)
        try:
            found = trust_store.load(path)
        except trust_store.DamagedError:
            continue
        assert RECORD == found


def test_a_digest_over_the_wrong_shape_does_not_help(path: Path) -> None:
    for body in ({}, {"floors": []}, {"floors": {"t": {"revision": "x", "content": ""}}, "added": {}, "withdrawn": {}}):
        text = f'{{"sha256": "{trust_store._digest(body)}", "kept": {json.dumps(body)}}}'
        for file in trust_store.files(path):
            file.write_text(text)
        if body:
            with pytest.raises(trust_store.DamagedError):
                trust_store.load(path)
