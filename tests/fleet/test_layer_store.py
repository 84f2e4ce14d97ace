"""The layers on disk: what is read back is what was in force; what is damaged is set aside."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from edged.fleet import layer_store as store
from edged.fleet.layer_store import StoredLayers
from edged.wire.layers import Reported

SCOPE = "edged/v1/home/device/pi"
KEPT = StoredLayers(
    SCOPE,
    {"fleet": b'{"revision":1,"settings":{}}', "device": "ä\0\ud7ff".encode()},
    Reported("rejected", "device", None, "it is no layer", {"fleet": 1}, 12.5),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "layers.json"


NOTHING = StoredLayers(SCOPE, {}, store.NOTHING_PUSHED)


def damaged(path: Path) -> bool:
    """Whether the file is found to be damaged; then it is kept aside as it was, and nothing is in its place."""
    was, aside, said = path.read_bytes(), None, ""
    try:
        store.load(path, SCOPE)
    except store.DamagedError as error:
        aside, said = error.aside, str(error)
    if aside is None:
        return False
    kept = aside.read_bytes()
    aside.unlink()
    return str(aside) in said and kept == was and store.load(path, SCOPE) == NOTHING


def test_what_is_kept_aside_is_never_overwritten_and_bounded(path: Path) -> None:
    for text in ("1", "2", "3", "4", "5"):
        path.write_text(text)
        with pytest.raises(store.DamagedError):
            store.load(path, SCOPE)
    kept = {file.name: file.read_text() for file in path.parent.iterdir()}
    assert {"layers.damaged-3": "3", "layers.damaged-4": "4", "layers.damaged-5": "5"} == kept


@pytest.mark.parametrize("kind", ["folder", "fifo", "dangling", "huge"])
def test_what_is_no_file_is_set_aside(path: Path, kind: str) -> None:
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "dangling":
        path.symlink_to("/nowhere/at/all")
    else:
        path.write_bytes(b"")
        os.truncate(path, 1 << 31)
    with pytest.raises(store.DamagedError):
        store.load(path, SCOPE)
    assert os.path.lexists(path.with_suffix(".damaged"))
    store.save(path, KEPT)
    assert store.load(path, SCOPE) == KEPT


def test_the_file_is_its_owners_alone_whatever_the_umask_and_a_leftover_is_in_the_way(path: Path) -> None:
    path.with_suffix(".new").mkdir()
    before = os.umask(0)
    try:
        store.save(path, KEPT)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_was_saved_is_loaded(path: Path) -> None:
    store.save(path, KEPT)
    assert store.load(path, SCOPE) == KEPT


def test_without_a_file_nothing_was_pushed(path: Path) -> None:
    assert store.load(path, SCOPE) == NOTHING


def test_another_devices_file_is_not_ours(path: Path) -> None:
    store.save(path, KEPT)
    assert store.load(path, "edged/v1/home/device/other").layers == {}


def test_a_file_torn_at_any_byte_is_set_aside(path: Path) -> None:
    store.save(path, KEPT)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert damaged(path), length


def test_a_file_with_a_flipped_bit_never_gives_other_layers(path: Path) -> None:
    store.save(path, KEPT)
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert damaged(path) or store.load(path, SCOPE) in (NOTHING, KEPT), position


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"kept":{},"sha256":"x"}', "\x00" * 100, "[" * 5000])
def test_garbage_is_set_aside(path: Path, text: str) -> None:
    path.write_text(text)
    assert damaged(path)


def test_a_digest_over_the_wrong_shape_does_not_help(path: Path) -> None:
    for body in (
        {"scope": SCOPE},
        {"scope": SCOPE, "layers": [], "reported": {}},
        {"scope": SCOPE, "layers": {"a": 5}},
    ):
        path.write_text(json.dumps({"sha256": store._digest(body), "kept": body}))
        assert damaged(path)


def test_a_save_that_fails_half_way_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(path, KEPT)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.save(path, StoredLayers(SCOPE, {}, store.NOTHING_PUSHED))
    assert store.load(path, SCOPE) == KEPT
