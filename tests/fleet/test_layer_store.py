"""The layers on disk: what is read back is what was in force; what is damaged is moved away."""

from __future__ import annotations

import json
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
    """Whether the file is found to be damaged; then it is moved away as it was, and nothing stands in its place."""
    was, said = path.read_bytes(), ""
    try:
        store.load(path, SCOPE)
    except store.DamagedError as error:
        said = str(error)
    if not said:
        return False
    moved = path.with_suffix(".damaged")
    return str(moved) in said and moved.read_bytes() == was and store.load(path, SCOPE) == NOTHING


def test_what_was_saved_is_loaded(path: Path) -> None:
    store.save(path, KEPT)
    assert store.load(path, SCOPE) == KEPT


def test_without_a_file_nothing_was_pushed(path: Path) -> None:
    assert store.load(path, SCOPE) == NOTHING


def test_another_devices_file_is_not_ours(path: Path) -> None:
    store.save(path, KEPT)
    assert store.load(path, "edged/v1/home/device/other").layers == {}


def test_a_file_torn_at_any_byte_is_moved_away(path: Path) -> None:
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
def test_garbage_is_moved_away(path: Path, text: str) -> None:
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
