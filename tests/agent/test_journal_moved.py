"""The journal's folder is removed or replaced while the agent runs: nothing that was accepted is lost."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.agent.journal import Job, Journal, ReplyTo
from edged.core.prompt import Request, Turn


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    (tmp_path / "state").mkdir(mode=0o700)
    made = Journal(tmp_path / "state" / "journal.db")
    made.open()
    yield made
    made.close()


def admit(journal: Journal, prompt_id: str) -> int:
    job = Job("me", prompt_id, Request((Turn("user", "x"),)), True, ReplyTo("t"), 1.0)
    with journal.transaction():
        return journal.admit(job, b"body")


def reopened(path: Path) -> list[str]:
    """The open prompts that a start after a kill finds."""
    again = Journal(path)
    again.open()
    found = [entry.job.id for entry in again.open_entries()]
    again.close()
    return found


def test_p02_a_removed_folder_is_noticed_and_made_again_with_everything(journal: Journal, tmp_path: Path) -> None:
    first = admit(journal, "a")
    journal.finish(admit(journal, "done"), "stop", b"final", 1.0)
    journal.set_fact("wall_floor", 7.0)
    shutil.rmtree(tmp_path / "state")
    with pytest.raises(sqlite3.OperationalError, match="removed or replaced"):
        admit(journal, "lost")
    assert journal.write_error is not None
    assert journal.reattach()
    assert (1, None) == (journal.moved, journal.write_error)
    assert not journal.reattach()
    assert first < admit(journal, "b")
    assert ["a", "b"] == reopened(tmp_path / "state" / "journal.db")
    assert (["done"], 7.0) == ([entry.job.id for entry in journal.undelivered()], journal.fact("wall_floor", 0.0))
    assert 0o700 == (tmp_path / "state").stat().st_mode & 0o777
    assert 0o600 == (tmp_path / "state" / "journal.db").stat().st_mode & 0o777


def test_p02_another_folder_in_its_place_keeps_its_file_under_another_name(journal: Journal, tmp_path: Path) -> None:
    admit(journal, "a")
    (tmp_path / "state").rename(tmp_path / "old")
    (tmp_path / "state").mkdir()
    other = Journal(tmp_path / "state" / "journal.db")
    other.open()
    admit(other, "strange")
    other.close()
    assert journal.reattach()
    assert ["a"] == reopened(tmp_path / "state" / "journal.db")
    assert ["strange"] == reopened(tmp_path / "state" / "journal.damaged")


def test_a_folder_that_cannot_be_made_again_is_tried_until_it_can(journal: Journal, tmp_path: Path) -> None:
    admit(journal, "a")
    shutil.rmtree(tmp_path / "state")
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(OSError, match="exists"):
        journal.reattach()
    with pytest.raises(sqlite3.OperationalError):
        admit(journal, "b")
    (tmp_path / "state").unlink()
    assert journal.reattach()
    assert ["a"] == reopened(tmp_path / "state" / "journal.db")
