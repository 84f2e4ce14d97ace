"""Prompts' texts are private: readable by the daemon's user alone, in no log, and gone when they should be."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from edged.agent.journal import Journal
from tests.agent.test_journal import admit, job
from tests.support import Client, Device, wait_until

Make = Callable[..., Device]
SECRET = "zq7-orchid"


def found(device: Device, text: str) -> list[str]:
    """The files of the state folder that hold these bytes, write-ahead log and free pages included."""
    folder = Path(device.config["state_dir"])
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and text.encode() in p.read_bytes())


@pytest.mark.broker
def test_texts_are_private_in_no_log_and_gone_after_the_time(device: Make, client: Client) -> None:
    settings = {"limits": {"remember": "3s"}, "log": {"level": "debug"}}
    made = device(settings, patches=("edged.agent.journal_maintenance:_DELETE_EVERY=0.2",))
    client.publish(f"{made.root}/prompt/me", {"id": "a", "prompt": f"say:{SECRET} wait:go", "system": SECRET})
    wait_until(lambda: found(made, SECRET), 10, "the prompt is on the disk")
    folder = Path(made.config["state_dir"])
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.glob("journal*")}
    assert {0o600} == set(modes.values())
    assert 0o700 == stat.S_IMODE(folder.stat().st_mode)
    (made.control / "go").touch()
    assert f"{SECRET} " == client.final("a")["text"]
    wait_until(lambda: not found(made, SECRET), 20, "prompt and answer are gone")
    assert SECRET not in made.log.read_text()


def test_the_text_of_an_answered_prompt_is_gone_once_the_log_is_cut(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    journal.open()
    (seq,) = admit(journal, job())
    journal.finish(seq, "stop", b"answer", 6.0)
    assert any("hällo".encode() in path.read_bytes() for path in tmp_path.iterdir())
    journal.shrink_log()
    assert not any("hällo".encode() in path.read_bytes() for path in tmp_path.iterdir())
    journal.close()
