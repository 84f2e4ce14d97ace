"""The journal: what a transaction returned from is there after any kill, and one final a prompt."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edged.agent import journal as journal_module
from edged.agent.journal import Job, Journal, ReplyTo, body_digest
from edged.core.prompt import Request, Sampling, Turn
from tests.agent.bench import fill_disk

BODY = body_digest(b"body")


def job(prompt_id: str = "a", requester: str = "me") -> Job:
    request = Request((Turn("user", "hällo"),), None, Sampling(stop=("x",), seed=3), 2)
    return Job(requester, prompt_id, request, stream=True, reply_to=ReplyTo("t", b"\0\xff"), arrived=5.0, expires=9.5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    made = Journal(path)
    made.open()
    yield made
    made.close()


def admit(journal: Journal, *jobs: Job) -> list[int]:
    with journal.transaction():
        return [journal.admit(one, BODY) for one in jobs]


def killed(journal: Journal, tmp_path: Path) -> Journal:
    """What a process finds that starts after this one was killed: the files as they are now, nothing closed."""
    copy = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"
    copy.mkdir()
    for suffix in ("", "-wal"):
        source = Path(f"{journal._path}{suffix}")
        if source.exists():
            (copy / f"journal.db{suffix}").write_bytes(source.read_bytes())
    found = Journal(copy / "journal.db")
    found.open()
    return found


def test_p02_after_each_step_a_kill_leaves_what_was_promised(journal: Journal, tmp_path: Path) -> None:
    assert killed(journal, tmp_path).open_entries() == []

    (seq,) = admit(journal, job())
    (entry,) = killed(journal, tmp_path).open_entries()
    assert (entry.seq, entry.job, entry.body, entry.crashes, entry.final) == (seq, job(), BODY, 0, None)

    journal.count_crash([seq])
    assert killed(journal, tmp_path).open_entries()[0].crashes == 1

    journal.finish(seq, "stop", b"final", 10.0)
    found = killed(journal, tmp_path)
    assert found.open_entries() == []
    assert [(e.seq, e.reason, e.final) for e in found.undelivered()] == [(seq, "stop", b"final")]

    journal.delivered(seq)
    found = killed(journal, tmp_path)
    assert found.undelivered() == []
    entry_after = found.find("me", "a")
    assert entry_after is not None
    assert entry_after.final == b"final"

    journal.set_fact("wall_floor", 12.5)
    assert killed(journal, tmp_path).fact("wall_floor", 0.0) == 12.5


def test_p02_a_commit_is_synced_to_the_disk(journal: Journal) -> None:
    assert journal._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert journal._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_p02_a_transaction_that_breaks_off_leaves_nothing_and_the_journal_goes_on(journal: Journal) -> None:
    with pytest.raises(RuntimeError), journal.transaction():  # noqa: PT012  - what is inside is what breaks off
        journal.admit(job(), BODY)
        raise RuntimeError
    assert journal.open_entries() == []
    admit(journal, job())
    assert len(journal.open_entries()) == 1


def test_p02_a_commit_that_fails_leaves_nothing_and_the_journal_goes_on_when_there_is_room(journal: Journal) -> None:
    disk = fill_disk(journal)
    for _ in range(2):
        with pytest.raises(sqlite3.OperationalError, match="full"):
            admit(journal, job())
    with pytest.raises(sqlite3.OperationalError, match="full"):
        journal.set_fact("wall_floor", 1.0)
    assert journal.write_error == "database or disk is full"
    disk.full = False
    assert journal.open_entries() == []
    admit(journal, job())
    assert (len(journal.open_entries()), journal.write_error) == (1, None)


def test_p01_a_final_that_is_asked_for_again_counts_as_undelivered_until_the_broker_has_it(journal: Journal) -> None:
    (seq,) = admit(journal, job())
    journal.finish(seq, "stop", b"final", 1.0)
    journal.delivered(seq)
    with journal.transaction():
        journal.redirect(seq, job())
    assert [entry.seq for entry in journal.undelivered()] == [seq]
    journal.delivered(seq)
    assert journal.undelivered() == []


def test_p03_an_id_stands_once_for_a_requester(journal: Journal) -> None:
    admit(journal, job("a", "me"), job("a", "you"), job("b", "me"))
    with pytest.raises(sqlite3.IntegrityError):
        admit(journal, job("a", "me"))
    assert len(journal.open_entries()) == 3
    found = journal.find("you", "a")
    assert found is not None
    assert found.job.requester == "you"
    assert journal.find("you", "b") is None


def test_p03_a_final_is_written_once(journal: Journal) -> None:
    (seq,) = admit(journal, job())
    journal.finish(seq, "stop", b"first", 1.0)
    journal.finish(seq, "failed", b"second", 2.0)
    (entry,) = journal.undelivered()
    assert (entry.reason, entry.final) == ("stop", b"first")


def test_p03_the_newest_copy_says_where_the_answer_goes(journal: Journal) -> None:
    (seq,) = admit(journal, job())
    newest = Job("me", "a", job().request, stream=False, reply_to=ReplyTo("elsewhere"), arrived=5.0)
    journal.redirect(seq, newest)
    assert journal.open_entries()[0].job == newest


@pytest.mark.parametrize("reason", ["busy", "invalid", "too_long", "unavailable", "expired"])
def test_an_id_is_free_once_its_refusal_is_delivered(journal: Journal, reason: str) -> None:
    (seq,) = admit(journal, job())
    journal.finish(seq, reason, b"final", 1.0)  # type: ignore[arg-type]
    assert journal.find("me", "a") is not None
    journal.delivered(seq)
    assert journal.find("me", "a") is None
    (again,) = admit(journal, job())
    assert again > seq


@pytest.mark.parametrize("reason", ["stop", "length", "cancelled", "failed", "poisoned"])
def test_p03_an_answer_is_remembered_after_it_is_delivered(journal: Journal, reason: str) -> None:
    (seq,) = admit(journal, job())
    journal.finish(seq, reason, b"final", 1.0)  # type: ignore[arg-type]
    journal.delivered(seq)
    journal.delivered(seq)
    found = journal.find("me", "a")
    assert found is not None
    assert found.final == b"final"


def test_finals_are_forgotten_when_they_are_old_and_delivered(journal: Journal) -> None:
    old, undelivered, new, waiting = admit(journal, job("old"), job("undelivered"), job("new"), job("waiting"))
    for seq, at in ((old, 1.0), (undelivered, 1.0), (new, 100.0)):
        journal.finish(seq, "stop", b"final", at)
    journal.delivered(old)
    journal.delivered(new)
    journal.delete_old(50.0, 0.0)
    assert journal.find("me", "old") is None
    assert [e.seq for e in journal.undelivered()] == [undelivered]
    assert journal.find("me", "new") is not None
    assert [e.seq for e in journal.open_entries()] == [waiting]


def test_p09_what_no_broker_ever_takes_is_kept_longer_and_not_for_ever(journal: Journal) -> None:
    (seq,) = admit(journal, job())
    journal.finish(seq, "stop", b"final", 10.0)
    journal.delete_old(50.0, 9.0)
    assert [entry.seq for entry in journal.undelivered()] == [seq]
    journal.delete_old(50.0, 11.0)
    assert journal.find("me", "a") is None


@pytest.mark.parametrize("limit", ["_MAX_REMEMBERED", "_MAX_REMEMBERED_BYTES"])
def test_p09_undelivered_finals_are_bounded_too_and_delivered_ones_go_first(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(journal_module, limit, 3 if limit == "_MAX_REMEMBERED" else 4000)
    seqs = admit(journal, *(job(f"{i}") for i in range(7)))
    for seq in seqs[:6]:
        journal.finish(seq, "stop", b"x" * 1000, 1.0)
    journal.delivered(seqs[5])
    journal.delete_old(0.0, 0.0)
    kept = [bool(journal.find("me", f"{i}")) for i in range(7)]
    assert kept == [False, False, True, True, True, limit == "_MAX_REMEMBERED", True]


def test_p09_what_is_remembered_is_bounded_in_rows(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_MAX_REMEMBERED", 3)
    seqs = admit(journal, *(job(f"{i}") for i in range(6)))
    for seq in seqs:
        journal.finish(seq, "stop", b"final", 1.0)
        journal.delivered(seq)
    journal.delete_old(0.0, 0.0)
    assert [bool(journal.find("me", f"{i}")) for i in range(6)] == [False, False, False, True, True, True]


def test_p09_what_is_remembered_is_bounded_in_bytes(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_MAX_REMEMBERED_BYTES", 4000)
    seqs = admit(journal, *(job(f"{i}") for i in range(6)))
    for seq in seqs:
        journal.finish(seq, "stop", b"x" * 1000, 1.0)
        journal.delivered(seq)
    journal.delete_old(0.0, 0.0)
    assert [bool(journal.find("me", f"{i}")) for i in range(6)] == [False, False, False, True, True, True]


def test_p09_an_answered_prompt_keeps_its_final_and_not_its_text(journal: Journal) -> None:
    (seq,) = admit(journal, job())
    journal.finish(seq, "stop", b"final", 1.0)
    (entry,) = journal.undelivered()
    assert entry.job.reply_to == job().reply_to
    assert entry.job.request.turns == ()


def test_sequence_numbers_are_never_used_again(path: Path) -> None:
    """A late confirmation of an old final must not mark a new one as delivered."""
    journal = Journal(path)
    journal.open()
    (first,) = admit(journal, job())
    journal.finish(first, "busy", b"final", 1.0)
    journal.delivered(first)
    journal.close()
    journal.open()
    (second,) = admit(journal, job())
    assert second > first
    journal.close()


def fill(path: Path, rows: int = 300) -> None:
    journal = Journal(path)
    journal.open()
    admit(journal, *(job(f"{i}") for i in range(rows)))
    journal.close()


@pytest.mark.parametrize("damage", ["header", "truncated", "middle", "garbage", "empty", "zeroed page"])
def test_p02_a_damaged_file_is_kept_aside_and_the_rows_that_can_be_read_are_carried_over(
    path: Path, damage: str
) -> None:
    fill(path)
    whole = path.read_bytes()
    half = len(whole) // 2 // 4096 * 4096
    path.write_bytes(
        {
            "header": b"X" * 100 + whole[100:],
            "truncated": whole[:half],
            "middle": whole[:8192] + b"\xaa" * (len(whole) - 8192),
            "garbage": b"not a database at all" * 500,
            "empty": b"",
            "zeroed page": whole[: half - 4096] + bytes(4096) + whole[half:],
        }[damage]
    )
    was = path.read_bytes()
    journal = Journal(path)
    journal.open()
    assert journal.set_aside == path.with_suffix(".damaged")
    assert journal.set_aside.read_bytes() == was
    carried = journal.open_entries()
    least, most = {"header": (300, 300), "truncated": (50, 250), "zeroed page": (250, 299)}.get(damage, (0, 0))
    assert least <= len(carried) <= most
    assert all(entry.job == job(entry.job.id) and entry.body == BODY for entry in carried)
    assert journal.recovery is not None
    assert journal.recovery.carried == len(carried)
    assert f"{len(carried)} prompts carried over" in str(journal.recovery)
    admit(journal, job("new"))
    journal.close()
    journal.open()
    assert (len(journal.open_entries()), journal.recovery) == (len(carried) + 1, None)
    journal.close()


def test_p02_one_flipped_bit_in_the_version_costs_nothing(path: Path) -> None:
    """`printf '\\x01' | dd of=journal.db bs=1 seek=60 conv=notrunc` ended a device in a restart loop."""
    fill(path, 5)
    whole = bytearray(path.read_bytes())
    whole[60] = 1
    path.write_bytes(whole)
    journal = Journal(path)
    journal.open()
    assert "another version" in str(journal.recovery)
    assert len(journal.open_entries()) == 5
    journal.close()


def test_p02_a_flipped_bit_in_a_stored_prompt_drops_that_prompt_and_keeps_the_others(path: Path) -> None:
    fill(path, 5)
    whole = path.read_bytes()
    at = whole.index(b"user")
    path.write_bytes(whole[:at] + b"U" + whole[at + 1 :])
    journal = Journal(path)
    journal.open()
    assert journal.recovery is not None
    assert (journal.recovery.carried, journal.recovery.lost) == (4, 1)
    assert len(journal.open_entries()) == 4
    journal.close()


def test_p02_a_row_that_is_damaged_while_in_use_is_dropped_and_counted(journal: Journal) -> None:
    seqs = admit(journal, job("a"), job("b"), job("c"))
    journal._db.execute("UPDATE prompts SET body = x'00' WHERE seq <= 2")
    assert journal.find("me", "a") is None
    journal.count_crash(seqs)
    assert [(entry.job.id, entry.crashes) for entry in journal.open_entries()] == [("c", 1)]
    assert journal.dropped == 2
    admit(journal, job("a"))


def test_p02_a_prompt_that_this_version_cannot_decode_is_dropped(journal: Journal) -> None:
    (seq,) = admit(journal, job())
    with journal.transaction():
        journal._change(seq, lambda row: row | {"job": b"\x80"})
    assert journal.open_entries() == []
    assert journal.dropped == 1


def test_p02_a_file_that_breaks_while_in_use_is_recovered(path: Path) -> None:
    fill(path)
    journal = Journal(path)
    journal.open()
    assert not journal.repair()
    whole = bytearray(path.read_bytes())
    whole[4096:] = bytes(4096) + whole[8192:-4096] + bytes(4096)
    with path.open("r+b") as file:
        file.write(whole)
    with pytest.raises(sqlite3.DatabaseError):
        journal._entries("1", ())
    assert journal.repair()
    assert journal.recovery is not None
    assert 200 < len(journal.open_entries()) == journal.recovery.carried
    admit(journal, job("new"))
    journal.close()


def test_p02_a_damaged_write_ahead_log_is_found_and_what_lies_behind_the_damage_is_read(
    journal: Journal, tmp_path: Path
) -> None:
    admit(journal, job("a"))
    middle = Path(f"{journal._path}-wal").stat().st_size - 2000
    admit(journal, job("b"))
    admit(journal, job("c"))
    copy = tmp_path / "copy"
    copy.mkdir()
    for suffix in ("", "-wal"):
        data = bytearray(Path(f"{journal._path}{suffix}").read_bytes())
        if suffix:
            data[middle] ^= 1
        (copy / f"journal.db{suffix}").write_bytes(data)
    found = Journal(copy / "journal.db")
    found.open()
    assert "write-ahead log" in str(found.recovery)
    assert [entry.job.id for entry in found.open_entries()] == ["a", "b", "c"]


def test_p03_numbers_are_not_used_again_after_a_recovery(path: Path) -> None:
    fill(path, 5)
    path.write_bytes(b"X" * 100 + path.read_bytes()[100:])
    journal = Journal(path)
    journal.open()
    assert admit(journal, job("new"))[0] > 5
    journal.close()


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
@pytest.mark.parametrize("kind", ["folder", "fifo", "dangling"])
def test_what_is_no_file_keeps_no_journal_from_opening(path: Path, kind: str, suffix: str) -> None:
    fill(path, 3)
    place = Path(f"{path}{suffix}")
    place.unlink(missing_ok=True)
    if kind == "folder":
        place.mkdir()
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place.symlink_to("/nowhere/at/all")
    journal = Journal(path)
    journal.open()
    assert len(journal.open_entries()) == (3 if suffix else 0)
    admit(journal, job("new"))
    journal.close()


def test_a_kill_while_a_recovered_file_takes_its_place_loses_nothing(path: Path) -> None:
    fill(path, 5)
    path.rename(path.with_suffix(".recovered"))
    path.write_bytes(b"garbage" * 1000)
    journal = Journal(path)
    journal.open()
    assert len(journal.open_entries()) == 5
    assert path.with_suffix(".damaged").read_bytes() == b"garbage" * 1000
    journal.close()


def test_a_recovery_that_finds_no_room_leaves_the_file_where_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path, 5)
    path.write_bytes(b"X" * 100 + path.read_bytes()[100:])
    was = path.read_bytes()

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("edged.agent.journal_file._carry", full)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        Journal(path).open()
    assert path.read_bytes() == was
    monkeypatch.undo()
    journal = Journal(path)
    journal.open()
    assert len(journal.open_entries()) == 5
    journal.close()


FIRST_VERSION = """
CREATE TABLE prompts (seq INTEGER PRIMARY KEY AUTOINCREMENT, requester TEXT NOT NULL, id TEXT NOT NULL,
  body BLOB NOT NULL, job BLOB NOT NULL, deaths INTEGER NOT NULL DEFAULT 0, reason TEXT, final BLOB, finished REAL,
  delivered INTEGER NOT NULL DEFAULT 0, UNIQUE (requester, id));
CREATE INDEX undelivered ON prompts (delivered, seq);
CREATE TABLE facts (name TEXT PRIMARY KEY, value REAL NOT NULL);
PRAGMA user_version=1;
PRAGMA journal_mode=WAL;
"""


def test_a_file_of_version_1_opens_with_all_rows(path: Path) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(FIRST_VERSION)
    insert = "INSERT INTO prompts (requester, id, body, job, deaths, reason, final, finished) VALUES (?,?,?,?,?,?,?,?)"
    for number in range(50):
        final = (None, None, None) if number % 2 else ("stop", b"final", 12.0)
        values = ("me", f"{number}", BODY, msgspec.msgpack.encode(job(f"{number}")), number % 3, *final)
        db.execute(insert, values)
    db.execute("DELETE FROM prompts WHERE id = '49'")
    db.execute("INSERT INTO facts VALUES ('wall_floor', 77.5)")
    copy = path.with_name("killed.db")
    copy.write_bytes(path.read_bytes())
    copy.with_name("killed.db-wal").write_bytes(Path(f"{path}-wal").read_bytes())
    db.close()
    for place in (path, copy):
        journal = Journal(place)
        journal.open()
        assert journal.recovery is None
        assert [(e.seq, e.job.id, e.crashes) for e in journal.open_entries()] == [
            (n + 1, f"{n}", n % 3) for n in range(1, 49, 2)
        ]
        assert [e.final for e in journal.undelivered()] == [b"final"] * 25
        assert journal.fact("wall_floor", 0.0) == 77.5
        assert admit(journal, job("new")) == [51]
        journal.close()
        journal.open()
        assert (len(journal.open_entries()), journal.dropped, journal.recovery) == (25, 0, None)
        journal.close()


def test_a_fact_with_a_flipped_bit_is_not_believed(journal: Journal) -> None:
    journal.set_fact("wall_floor", 12.5)
    journal._db.execute("UPDATE facts SET value = 1e300")
    assert journal.fact("wall_floor", 3.0) == 3.0


def test_the_files_are_their_owners_alone_whatever_the_umask(path: Path) -> None:
    before = os.umask(0)
    try:
        journal = Journal(path)
        journal.open()
        admit(journal, job())
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == {"journal.db": 0o600, "journal.db-wal": 0o600, "journal.db-shm": 0o600}
    journal.close()
    path.chmod(0o644)
    journal.open()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    journal.close()


def test_a_sound_file_is_not_set_aside(path: Path) -> None:
    fill(path, 3)
    journal = Journal(path)
    journal.open()
    assert journal.set_aside is None
    assert len(journal.open_entries()) == 3
    journal.close()


def test_a_torn_write_ahead_log_costs_only_what_was_not_committed(journal: Journal, tmp_path: Path) -> None:
    admit(journal, job("a"))
    wal = Path(f"{journal._path}-wal")
    kept = len(wal.read_bytes())
    admit(journal, job("b"))
    copy = tmp_path / "torn"
    copy.mkdir()
    (copy / "journal.db").write_bytes(journal._path.read_bytes())
    (copy / "journal.db-wal").write_bytes(wal.read_bytes()[: kept + 100])
    torn = Journal(copy / "journal.db")
    torn.open()
    assert [e.job.id for e in torn.open_entries()] == ["a"]


def test_another_versions_file_is_kept_aside_with_its_rows_and_the_device_starts(path: Path) -> None:
    fill(path, 1)
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version=99")
    db.close()
    journal = Journal(path)
    journal.open()
    assert "written by another version of edged, 99" in str(journal.recovery)
    assert path.with_suffix(".damaged").exists()
    assert len(journal.open_entries()) == 1
    journal.close()


def test_a_folder_that_cannot_be_written_is_an_error_and_no_damage(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError):
        Journal(tmp_path / "nowhere" / "journal.db").open()


def test_a_prompt_that_an_older_version_stored_is_read() -> None:
    """One from before prompts had tools, thinking and vectors."""
    request = {
        "turns": [{"role": "user", "content": "x"}], "raw": None, "sampling": {"max_tokens": 5, "stop": []},
        "priority": 5, "format": None, "logprobs": False,
    }  # fmt: skip
    reply_to = {"topic": "t", "correlation": None}
    stored = {"requester": "me", "id": "a", "request": request, "stream": True, "reply_to": reply_to, "arrived": 1.0}
    read = msgspec.msgpack.decode(msgspec.msgpack.encode({**stored, "expires": None, "config": None}), type=Job)
    assert ("x", 5, ()) == (read.request.turns[0].content, read.request.sampling.max_tokens, read.request.tools)
