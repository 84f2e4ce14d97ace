"""`edged trust reset`: the owner's way to set the revision floors anew."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edged.agent.startup import lock_folder
from edged.commands.main import main
from tests.fleet.test_trust import NEXT, OPS, Board, says


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    for name in [name for name in os.environ if name.startswith("EDGED_")]:
        monkeypatch.delenv(name)
    return Board(tmp_path)


def reset(board: Board, *options: str) -> int:
    config = board.folder / "edged.yaml"
    config.write_text(f"state_dir: {board.folder}\n")
    return main(["trust", "reset", "--config", str(config), *options])


def test_p05_after_a_reset_the_next_signed_layer_sets_the_floor(
    board: Board, capsys: pytest.CaptureFixture[str]
) -> None:
    board.signed(1000)
    says(board.signed(12), "below 1000")
    assert 0 == reset(board)
    assert "edged/v1/home/device/pi/config: the floor was 1000" in capsys.readouterr().out
    board.restart()
    assert 1000 == board.runs
    assert "applied" == board.signed(12).phase
    says(board.signed(11), "below 12")


def test_a_layer_that_comes_again_after_a_reset_is_the_floor(board: Board) -> None:
    """So nothing older can be pushed again where the operator changes nothing."""
    board.signed(12)
    reset(board)
    board.restart()
    board.signed(12)
    says(board.signed(11), "below 12")


def test_a_reset_repairs_a_damaged_record(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    board.signed(12)
    for name in ("trust.json", "trust-copy.json"):
        (board.folder / name).unlink()
        (board.folder / name).mkdir()
    board.restart()
    says(board.signed(13), "are damaged")
    assert 0 == reset(board, "--json")
    assert {"floors": {}, "keys": False} == json.loads(capsys.readouterr().out)
    board.restart()
    assert "applied" == board.signed(13).phase


def test_keys_by_layers_are_kept_unless_the_owner_wants_them_forgotten(board: Board) -> None:
    board.signed(1, trust={"keys": {"next": NEXT.public}})
    board.signed(2, key=NEXT, trust={"withdraw": ["ops"]})
    reset(board)
    board.restart()
    assert {"next": NEXT.public} == board.config.trust.keys
    reset(board, "--keys")
    board.restart()
    assert {"ops": OPS.public} == board.config.trust.keys


def test_a_layer_in_force_that_comes_again_does_not_bring_forgotten_keys_back(board: Board) -> None:
    board.signed(1, trust={"keys": {"next": NEXT.public}})
    reset(board, "--keys")
    board.restart()
    board.signed(1, trust={"keys": {"next": NEXT.public}})
    assert ({"ops"}, 1) == (set(board.config.trust.keys), board.runs)


def test_a_running_daemon_must_be_stopped_first(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    board.signed(12)
    lock = lock_folder(board.folder)
    try:
        assert 1 == reset(board)
    finally:
        os.close(lock)
    assert f"another edged runs in {board.folder}; stop it" in capsys.readouterr().err
    board.restart()
    says(board.signed(11), "below 12")


def test_a_folder_that_is_not_there_is_not_made(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    board.folder = board.folder / "missing"
    config = board.folder.parent / "edged.yaml"
    config.write_text(f"state_dir: {board.folder}\n")
    assert 1 == main(["trust", "reset", "--config", str(config)])
    assert "is no folder" in capsys.readouterr().err
    assert not board.folder.exists()
