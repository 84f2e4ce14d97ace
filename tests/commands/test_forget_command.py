"""`edged forget`: nothing of one requester is left in the state folder, and everything of the others."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edged.agent.journal import Job, Journal, ReplyTo, body_digest
from edged.agent.startup import lock_folder
from edged.commands.main import main
from edged.core.prompt import Request, Turn


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two requesters with an open and an answered prompt each; the journal is closed."""
    for name in [name for name in os.environ if name.startswith("EDGED_")]:
        monkeypatch.delenv(name)
    journal = Journal(tmp_path / "journal.db")
    journal.open()
    for requester in ("me", "you"):
        for number in range(2):
            request = Request((Turn("user", f"secret-of-{requester} " * 500),))
            job = Job(requester, f"p{number}", request, True, ReplyTo("t"), 5.0)
            with journal.transaction():
                seq = journal.admit(job, body_digest(b"x"))
            if number:
                journal.finish(seq, "stop", f"answer-to-{requester}".encode(), 6.0)
    journal.close()
    return tmp_path


def forget(folder: Path, *options: str) -> int:
    config = folder / "edged.yaml"
    config.write_text(f"state_dir: {folder}\n")
    return main(["forget", "--config", str(config), *options])


def found(folder: Path, text: str) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if text.encode() in path.read_bytes())


def test_everything_of_one_requester_is_deleted_and_nothing_of_others(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ["journal.db"] == found(folder, "secret-of-me")
    assert 0 == forget(folder, "--requester", "me")
    assert "2 prompts and answers of me were deleted\n" == capsys.readouterr().out
    assert ([], []) == (found(folder, "secret-of-me"), found(folder, "answer-to-me"))
    assert (["journal.db"], ["journal.db"]) == (found(folder, "secret-of-you"), found(folder, "answer-to-you"))
    journal = Journal(folder / "journal.db")
    journal.open()
    assert ([("you", "p0")], None) == (
        [(entry.job.requester, entry.job.id) for entry in journal.open_entries()],
        journal.find("me", "p1"),
    )
    journal.close()


def test_copies_of_damaged_journals_go_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "journal.damaged").write_bytes(b"secret-of-me")
    (folder / "journal.damaged-2-wal").write_bytes(b"secret-of-me")
    assert 0 == forget(folder, "--requester", "me", "--json")
    document = {"requester": "me", "deleted": 2, "copies": ["journal.damaged", "journal.damaged-2-wal"]}
    assert document == json.loads(capsys.readouterr().out)
    assert [] == found(folder, "secret-of-me")


def test_a_running_daemon_must_be_stopped_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = lock_folder(folder)
    try:
        assert 1 == forget(folder, "--requester", "me")
    finally:
        os.close(lock)
    assert f"another edged runs in {folder}; stop it" in capsys.readouterr().err
    assert ["journal.db"] == found(folder, "secret-of-me")


@pytest.mark.parametrize("name", ["", "a/b", "#"])
def test_a_name_that_no_requester_can_have_is_wrong_usage(folder: Path, name: str) -> None:
    assert 2 == forget(folder, "--requester", name)


def test_without_a_journal_there_is_nothing_to_delete(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "journal.db").unlink()
    assert 0 == forget(folder, "--requester", "me")
    assert "0 prompts" in capsys.readouterr().out
    assert not (folder / "journal.db").exists()
