"""The journal: accepted prompts and their finals in SQLite, so that neither a kill nor a power cut loses one.

WAL with `synchronous=FULL`: a transaction that returned is on the disk
(https://www.sqlite.org/pragma.html#pragma_synchronous).
Owned by the agent's main thread. At most three syncs a prompt: admit (shared by a batch), finish, delivered.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edged.core.prompt import Reason, Request

FREED: frozenset[Reason] = frozenset({"busy", "invalid", "too_long", "unavailable", "expired"})
"""Finals after whose delivery the id may be used again."""

_VERSION = 1
_MAX_REMEMBERED = 50_000  # delivered finals, whatever their age
_MAX_REMEMBERED_BYTES = 100_000_000
_SCHEMA = """
CREATE TABLE prompts (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  requester TEXT NOT NULL,
  id TEXT NOT NULL,
  body BLOB NOT NULL,
  job BLOB NOT NULL,
  deaths INTEGER NOT NULL DEFAULT 0,
  reason TEXT,
  final BLOB,
  finished REAL,
  delivered INTEGER NOT NULL DEFAULT 0,
  UNIQUE (requester, id)
);
CREATE INDEX undelivered ON prompts (delivered, seq);
CREATE TABLE facts (name TEXT PRIMARY KEY, value REAL NOT NULL);
"""


class ReplyTo(msgspec.Struct, frozen=True):
    """Where the answer to a prompt goes, and what comes back with it."""

    topic: str
    correlation: bytes | None = None


class Job(msgspec.Struct, frozen=True):
    """An accepted prompt as it is kept. Times are Unix times; `expires` None: never."""

    requester: str
    id: str
    request: Request
    stream: bool
    reply_to: ReplyTo
    arrived: float
    expires: float | None = None
    config: dict[str, int] | None = None
    """The revisions that shaped it, for the receipt."""


class Entry(msgspec.Struct, frozen=True):
    """A row of the journal. `final` None: still waiting or running."""

    seq: int
    job: Job
    body: bytes
    deaths: int
    reason: Reason | None
    final: bytes | None


def body_digest(payload: bytes) -> bytes:
    """What decides whether two payloads are the same."""
    return hashlib.sha256(payload).digest()


class Journal:
    """See the module. `open` before use; every method may raise sqlite3.Error.

    `trouble` says why the last transaction failed, on a full disk for one; None once one succeeds.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Job).decode
        self._db = sqlite3.connect(":memory:")
        self.set_aside: Path | None = None
        self.trouble: str | None = None

    def open(self) -> None:
        """Open or make the file. A damaged one is set aside (`set_aside` says where) and a new one is begun."""
        try:
            self._connect()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            self._db.close()
            self.set_aside = self._path.with_suffix(".damaged")
            self._path.replace(self.set_aside)
            Path(f"{self._path}-shm").unlink(missing_ok=True)
            if (log := Path(f"{self._path}-wal")).exists():
                log.replace(f"{self.set_aside}-wal")
            self._connect()

    def _connect(self) -> None:
        self._db = sqlite3.connect(self._path, isolation_level=None)
        (verdict,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA cache_size=-512")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            with self.transaction():
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version={_VERSION}")
        elif version != _VERSION:
            raise sqlite3.OperationalError(f"{self._path} was written by another version ({version})")

    def close(self) -> None:
        """Close the file; the write-ahead log is folded in."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is kept together or not at all; on return it is on the disk."""
        before = self._db.total_changes
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            if isinstance(error, sqlite3.Error):
                self.trouble = str(error)
            if self._db.in_transaction:  # SQLite itself may have rolled back, on a full disk for one
                self._db.execute("ROLLBACK")
            raise
        if self._db.total_changes > before:  # one that stores nothing succeeds on a full disk, too
            self.trouble = None

    def find(self, requester: str, prompt_id: str) -> Entry | None:
        """What stands under this id."""
        rows = self._entries("requester = ? AND id = ?", (requester, prompt_id))
        return rows[0] if rows else None

    def admit(self, job: Job, body: bytes) -> int:
        """Keep a prompt (inside a transaction); gives its sequence number."""
        cursor = self._db.execute(
            "INSERT INTO prompts (requester, id, body, job) VALUES (?, ?, ?, ?)",
            (job.requester, job.id, body, self._encode(job)),
        )
        return int(cursor.lastrowid or 0)

    def redirect(self, seq: int, job: Job) -> None:
        """The newest copy of a prompt says where its answer goes, and has not been answered yet."""
        self._db.execute("UPDATE prompts SET job = ?, delivered = 0 WHERE seq = ?", (self._encode(job), seq))

    def died(self, seqs: list[int]) -> None:
        """The worker died with these running: counted before anything is tried again."""
        with self.transaction():
            self._db.executemany("UPDATE prompts SET deaths = deaths + 1 WHERE seq = ?", [(seq,) for seq in seqs])

    def finish(self, seq: int, reason: Reason, final: bytes, now: float) -> None:
        """Keep the final, before it is published. What was asked is no longer needed, and may be long."""
        with self.transaction():
            for entry in self._entries("seq = ? AND final IS NULL", (seq,)):
                job = self._encode(msgspec.structs.replace(entry.job, request=Request()))
                self._db.execute(
                    "UPDATE prompts SET reason = ?, final = ?, finished = ?, job = ? WHERE seq = ?",
                    (reason, final, now, job, seq),
                )

    def delivered(self, seq: int) -> None:
        """The broker has the final. Where the id is free again, the row goes."""
        with self.transaction():
            (reason,) = self._db.execute("SELECT reason FROM prompts WHERE seq = ?", (seq,)).fetchone() or (None,)
            if reason in FREED:
                self._db.execute("DELETE FROM prompts WHERE seq = ?", (seq,))
            else:
                self._db.execute("UPDATE prompts SET delivered = 1 WHERE seq = ?", (seq,))

    def open_entries(self) -> list[Entry]:
        """Prompts without a final, oldest first."""
        return self._entries("final IS NULL ORDER BY seq", ())

    def undelivered(self) -> list[Entry]:
        """Finals that the broker has not confirmed, oldest first."""
        return self._entries("final IS NOT NULL AND delivered = 0 ORDER BY seq", ())

    def forget(self, before: float, undelivered_before: float) -> None:
        """Drop finals older than that, and the oldest beyond the limits of rows and bytes, delivered ones first."""
        with self.transaction():
            self._db.execute("DELETE FROM prompts WHERE delivered = 1 AND finished < ?", (before,))
            self._db.execute("DELETE FROM prompts WHERE delivered = 0 AND finished < ?", (undelivered_before,))
            for delivered in (1, 0):  # a broker may refuse finals for ever
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

    def _bytes(self) -> int:
        """What the file holds; pages that are free for new rows do not count."""
        pages, free, size = (
            int(self._db.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    def fact(self, name: str, default: float) -> float:
        """A number kept across restarts."""
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return float(row[0]) if row else default

    def set_fact(self, name: str, value: float) -> None:
        """Keep a number."""
        with self.transaction():
            self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def _entries(self, where: str, values: tuple[object, ...]) -> list[Entry]:
        columns = "seq, job, body, deaths, reason, final"
        rows = self._db.execute(f"SELECT {columns} FROM prompts WHERE {where}", values)  # noqa: S608  - our own words
        return [
            Entry(seq, self._decode(job), body, deaths, reason, final) for seq, job, body, deaths, reason, final in rows
        ]
