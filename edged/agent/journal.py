"""The journal: accepted prompts and their finals in SQLite, so that neither a kill nor a power cut loses one.

WAL with `synchronous=FULL`: a transaction that returned is on the disk
(https://www.sqlite.org/pragma.html#pragma_synchronous).
Owned by the agent's main thread. At most three syncs a prompt: admit (shared by a batch), finish, delivered.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from edged.agent import journal_file
from edged.agent.journal_file import COLUMNS, Recovery
from edged.core.prompt import Reason, Request

FREED: frozenset[Reason] = frozenset({"busy", "invalid", "too_long", "unavailable", "expired"})
"""Reasons of finals after whose delivery the id may be used again."""

_NEXT = """
SELECT 1 + MAX(IFNULL((SELECT MAX(seq) FROM sqlite_sequence), 0), IFNULL((SELECT MAX(seq) FROM prompts), 0))
"""
_MAX_REMEMBERED = 50_000  # delivered finals, whatever their age
_MAX_REMEMBERED_BYTES = 100_000_000


class ReplyTo(msgspec.Struct, frozen=True):
    """The topic of the answer to a prompt, and the correlation data that it carries."""

    topic: str
    correlation: bytes | None = None


class Job(msgspec.Struct, frozen=True):
    """An accepted prompt as it is stored. Times are Unix times; `expires` None: never."""

    requester: str
    id: str
    request: Request
    stream: bool
    reply_to: ReplyTo
    arrived: float
    expires: float | None = None
    config: dict[str, int] | None = None
    """The revisions that shaped it, for the receipt."""
    supersede: str | None = None
    """The key by which it replaces older waiting prompts of the requester."""


class Entry(msgspec.Struct, frozen=True):
    """A row of the journal. `final` None: still waiting or running. `crashes`: times the worker ended on it."""

    seq: int
    job: Job
    body: bytes
    crashes: int
    reason: Reason | None
    final: bytes | None


def body_digest(payload: bytes) -> bytes:
    """The digest by which two payloads are the same."""
    return hashlib.sha256(payload).digest()


class Journal:
    """See the module. `open` before use; every method may raise sqlite3.Error.

    `write_error`: why the last transaction failed, on a full disk for one; None once one succeeds. `recovery`: what
    became of a damaged file, at the start or at the last `repair`. `dropped` counts rows that were found damaged since,
    `moved` how often the journal was written anew because its folder was removed or replaced.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Job).decode
        self._db = journal_file.in_memory()
        self._corrupt: str | None = None
        self._place: tuple[int, int] | None = None  # device and inode of the file that is open
        self.recovery: Recovery | None = None
        self.moved = 0
        self.dropped = 0
        self.write_error: str | None = None

    @property
    def set_aside(self) -> Path | None:
        """Where a damaged file was moved."""
        return self.recovery.kept if self.recovery is not None else None

    def open(self) -> None:
        """Open or create the file. Of a damaged one the rows that can be read are kept (`recovery`).

        Raises sqlite3.OperationalError where the folder cannot be written.
        """
        if str(self._path) != ":memory:":
            self._db, self.recovery = journal_file.open_file(self._path)
            self._place = self._found()

    def reattach(self) -> bool:
        """Write the journal anew where its file or folder was removed or replaced while in use; whether it was.

        Everything is still in the open file. What lies in its place is kept under another name. Raises OSError,
        sqlite3.Error.
        """
        if self._is_attached():
            return False
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = journal_file.copy(self._db, self._path)
        self._db.close()
        self._db, self._place = new, self._found()
        self.moved += 1
        self.write_error = None
        return True

    def _is_attached(self) -> bool:
        return self._place is None or self._place == self._found()

    def _found(self) -> tuple[int, int]:
        """Device and inode of what lies at the path now."""
        try:
            status = self._path.stat()
        except OSError:
            return (0, 0)
        return status.st_dev, status.st_ino

    def repair(self) -> bool:
        """Recover what can be read if SQLite found the file damaged while in use; whether it did."""
        if self._corrupt is None or str(self._path) == ":memory:":
            return False
        why, self._corrupt = self._corrupt, None
        self._db.close()
        self.recovery = journal_file.recover(self._path, why)
        self._db = journal_file.connect(self._path)
        self._place = self._found()
        return True

    def close(self) -> None:
        """Close the file; the write-ahead log is merged into it."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is stored together or not at all; on return it is on the disk."""
        before = self._db.total_changes
        try:
            if not self._is_attached():
                raise sqlite3.OperationalError("its file or folder was removed or replaced")
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            if isinstance(error, sqlite3.Error):
                self.write_error = str(error)
                self._note(error)
            if self._db.in_transaction:  # SQLite itself may have rolled back, on a full disk for one
                self._db.execute("ROLLBACK")
            raise
        if self._db.total_changes > before:  # one that stores nothing succeeds on a full disk, too
            self.write_error = None

    def find(self, requester: str, prompt_id: str) -> Entry | None:
        """The prompt with this id, open or finished."""
        rows = self._entries("requester = ? AND id = ?", (requester, prompt_id))
        return rows[0] if rows else None

    def admit(self, job: Job, body: bytes) -> int:
        """Store a prompt (inside a transaction); returns its sequence number."""
        (seq,) = self._db.execute(_NEXT).fetchone()
        row = (seq, job.requester, job.id, body, self._encode(job), 0, None, None, None, 0, 1)
        self._db.execute(journal_file.INSERT, journal_file.sealed(row))
        return int(seq)

    def admit_finished(self, job: Job, body: bytes, reason: Reason, final: bytes, now: float) -> int:
        """Store what was answered at once, with its final; returns its sequence number."""
        with self.transaction():
            (seq,) = self._db.execute(_NEXT).fetchone()
            row = (seq, job.requester, job.id, body, self._encode(job), 0, reason, final, float(now), 0, 1)
            self._db.execute(journal_file.INSERT, journal_file.sealed(row))
        return int(seq)

    def redirect(self, seq: int, job: Job) -> None:
        """Send the answer where the newest copy of the prompt wants it; it counts as undelivered again."""
        self._change(seq, lambda row: row | {"job": self._encode(job), "delivered": 0})

    def count_crash(self, seqs: list[int]) -> None:
        """The worker ended while it computed these: counted before any of them is retried."""
        with self.transaction():
            for seq in seqs:
                self._change(seq, lambda row: row | {"deaths": row["deaths"] + 1})

    def finish(self, seq: int, reason: Reason, final: bytes, now: float) -> None:
        """Store the final, before it is published. The prompt's text is no longer needed, and removed."""
        with self.transaction():
            for entry in self._entries("seq = ? AND final IS NULL", (seq,)):
                job = self._encode(msgspec.structs.replace(entry.job, request=Request()))
                values = {"reason": reason, "final": final, "finished": float(now), "job": job}
                self._change(seq, lambda row, values=values: row | values)  # type: ignore[misc]

    def delivered(self, seq: int) -> None:
        """The broker has the final. Where that frees the id, the row is deleted."""
        with self.transaction():
            (reason,) = self._db.execute("SELECT reason FROM prompts WHERE seq = ?", (seq,)).fetchone() or (None,)
            if reason in FREED:
                self._db.execute("DELETE FROM prompts WHERE seq = ?", (seq,))
            else:
                self._change(seq, lambda row: row | {"delivered": 1})

    def open_entries(self) -> list[Entry]:
        """Prompts without a final, oldest first."""
        return self._entries("final IS NULL ORDER BY seq", ())

    def undelivered(self) -> list[Entry]:
        """Finals that the broker has not confirmed, oldest first."""
        return self._entries("final IS NOT NULL AND delivered = 0 ORDER BY seq", ())

    def delete_old(self, before: float, undelivered_before: float) -> None:
        """Delete finals older than these Unix times, and the oldest beyond the limits, delivered ones first."""
        with self.transaction():
            self._db.execute("DELETE FROM prompts WHERE delivered = 1 AND finished < ?", (before,))
            self._db.execute("DELETE FROM prompts WHERE delivered = 0 AND finished < ?", (undelivered_before,))
            for delivered in (1, 0):  # a broker may refuse finals for good
                self._db.execute(
                    "DELETE FROM prompts WHERE final IS NOT NULL AND delivered = ? AND seq <= (SELECT seq FROM prompts "
                    "WHERE final IS NOT NULL AND delivered = ? ORDER BY seq DESC LIMIT 1 OFFSET ?)",
                    (delivered, delivered, _MAX_REMEMBERED),
                )
            if self._bytes() > _MAX_REMEMBERED_BYTES:
                self._db.execute(
                    "DELETE FROM prompts WHERE seq IN (SELECT seq FROM (SELECT seq, "
                    "SUM(LENGTH(final) + LENGTH(job)) OVER (ORDER BY delivered, seq DESC) AS bytes FROM prompts "
                    "WHERE final IS NOT NULL) WHERE bytes > ?)",
                    (_MAX_REMEMBERED_BYTES,),
                )

    def forget(self, requester: str) -> int:
        """Delete everything of a requester, answered or not; returns how many prompts that were."""
        with self.transaction():
            deleted = self._db.execute("DELETE FROM prompts WHERE requester = ?", (requester,)).rowcount
        self.shrink_log()
        return deleted

    def shrink_log(self) -> None:
        """Merge the write-ahead log and cut it: it keeps the bytes of deleted rows until they are written over."""
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _bytes(self) -> int:
        """Bytes of the file in use; pages that are free for new rows do not count."""
        pages, free, size = (
            int(self._db.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    def fact(self, name: str, default: float) -> float:
        """A number stored across restarts; the default where it is damaged."""
        row = self._read("SELECT name, value, checksum FROM facts WHERE name = ?", (name,)).fetchone()
        return float(row[1]) if row and journal_file.is_genuine(row) else default

    def set_fact(self, name: str, value: float) -> None:
        """Store a number."""
        fact = journal_file.sealed((name, float(value)))
        with self.transaction():
            self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", fact)

    def _entries(self, where: str, values: tuple[object, ...]) -> list[Entry]:
        """Rows as entries. One that is not what was written, or that this version cannot read, is dropped."""
        entries = []
        for row in self._read(f"{journal_file.SELECT} WHERE {where}", values).fetchall():
            seq, _, _, body, job, crashes, reason, final = row[:8]
            try:
                if not journal_file.is_genuine(row):
                    raise ValueError("a damaged row")
                entries.append(Entry(seq, self._decode(job), body, crashes, reason, final))
            except (ValueError, TypeError, msgspec.MsgspecError):
                self._drop(seq)
        return entries

    def _change(self, seq: int, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Rewrite a row, if it is what was written (inside a transaction)."""
        row = self._db.execute(f"{journal_file.SELECT} WHERE seq = ?", (seq,)).fetchone()
        if row is None:
            return
        if not journal_file.is_genuine(row):
            self._drop(seq)
            return
        values = change(dict(zip(COLUMNS[:-1], row, strict=False)))
        values["version"] += 1
        assignments = ", ".join(f"{name} = ?" for name in COLUMNS)
        self._db.execute(
            f"UPDATE prompts SET {assignments} WHERE seq = ?",  # noqa: S608  - constants of this file
            (*journal_file.sealed(values.values()), seq),
        )

    def _drop(self, seq: int) -> None:
        self.dropped += 1
        self._db.execute("DELETE FROM prompts WHERE seq = ?", (seq,))

    def _read(self, query: str, values: tuple[object, ...]) -> sqlite3.Cursor:
        try:
            return self._db.execute(query, values)
        except sqlite3.Error as error:
            self._note(error)
            raise

    def _note(self, error: sqlite3.Error) -> None:
        """SQLite gives a damaged file as a plain DatabaseError."""
        if type(error) is sqlite3.DatabaseError:
            self._corrupt = str(error)
