"""The journal's file: its tables, whether they are sound, and a new file from what a damaged one still holds.

Each row carries a checksum over all of its columns and a counter of its changes, so that a row is either what was
written or is dropped, and the newest of several copies is known. A file that is not sound is replaced by a new one
with the rows that can be read, and kept under another name:

    journal.db           in use, with journal.db-wal and journal.db-shm
    journal.new          being made; worthless after a kill
    journal.recovered    made and synced; takes the place of journal.db, also after a kill
    journal.damaged…     kept for whoever wants to look
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from edged import state_files
from edged.agent import sqlite_pages

VERSION: Final = 2
COLUMNS: Final = (
    *("seq", "requester", "id", "body", "job", "deaths", "reason", "final", "finished", "delivered"),
    *("version", "checksum"),
)
_SCHEMA: Final = (
    """CREATE TABLE prompts (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  requester TEXT NOT NULL,
  id TEXT NOT NULL,
  body BLOB NOT NULL,
  job BLOB NOT NULL,
  deaths INTEGER NOT NULL,
  reason TEXT,
  final BLOB,
  finished REAL,
  delivered INTEGER NOT NULL,
  version INTEGER NOT NULL,
  checksum BLOB NOT NULL,
  UNIQUE (requester, id)
)""",
    "CREATE INDEX undelivered ON prompts (delivered, seq)",
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value REAL NOT NULL, checksum BLOB NOT NULL)",
)
_TABLES: Final = "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite%' ORDER BY rowid"
_FIRST_VERSION: Final = 10  # columns of version 1, the first ones of today's
_COMPANIONS: Final = ("-wal", "-shm", "-journal")
_MAX_SEQ: Final = 1 << 53
_SEQ_GAP: Final = 1000  # numbers that a lost row may have had are not used again
INSERT: Final = f"INSERT INTO prompts VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608
SELECT: Final = f"SELECT {', '.join(COLUMNS)} FROM prompts"  # noqa: S608  - our own words
_ENVIRONMENT: Final = ("full", "locked", "out of memory")

Row = tuple[sqlite_pages.Value, ...]
"""The values of COLUMNS."""


class Recovery(msgspec.Struct, frozen=True):
    """What became of a file that could not be used. `lost`: damaged rows that were seen; there may have been more."""

    why: str
    kept: Path | None
    carried: int
    lost: int

    def __str__(self) -> str:
        where = f"it is kept as {self.kept}" if self.kept else "it could not be kept"
        lost = f"at least {self.lost} lost" if self.lost else "none is known to be lost"
        return f"the journal could not be used ({self.why}); {where}; {self.carried} prompts carried over, {lost}"


class DamagedError(Exception):
    """Why a file cannot be used as it is."""


def checksum(row: Iterable[sqlite_pages.Value]) -> bytes:
    """16 bytes (BLAKE2b) over all values of a row but the checksum itself, with their types."""
    return hashlib.blake2b(msgspec.msgpack.encode(tuple(row)), digest_size=16).digest()


def sealed(row: Iterable[sqlite_pages.Value]) -> Row:
    """A row with its checksum, from all other values."""
    values = tuple(row)
    return (*values, checksum(values))


def is_genuine(row: Row) -> bool:
    """Whether a row is what was written."""
    return row[-1] == checksum(row[:-1])


def open_file(path: Path) -> tuple[sqlite3.Connection, Recovery | None]:
    """Open the file, make it where there is none, replace it where it is damaged.

    Raises sqlite3.OperationalError where the folder cannot be written, on a full disk for one; nothing is lost then.
    """
    recovered = path.with_suffix(".recovered")
    if os.path.lexists(recovered):
        _finish(path, recovered)
    recovery = None
    try:
        if _check(path):
            _migrate(path)
    except DamagedError as error:
        recovery = recover(path, str(error))
    return connect(path), recovery


def connect(path: Path) -> sqlite3.Connection:
    """A connection to a sound file. Raises sqlite3.Error."""
    for name in (path, *(Path(f"{path}{suffix}") for suffix in _COMPANIONS)):
        with suppress(OSError):
            if name.is_file():
                name.chmod(0o600)
    db = sqlite3.connect(path, isolation_level=None)
    db.text_factory = _text
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA cache_size=-512")
        db.execute("PRAGMA secure_delete=ON")  # no old rows in free pages, which a recovery would take for rows
    except sqlite3.Error:
        db.close()
        raise
    return db


def copy(db: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    """A new file at `path` with everything of an open journal; what lies there is set aside. Raises sqlite3.Error."""
    state_files.set_aside(path, _COMPANIONS)
    new = connect(path)
    try:
        db.backup(new)
        new.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error:
        new.close()
        raise
    state_files.sync_folder(path.parent)
    return new


def remove_copies(path: Path) -> list[str]:
    """Delete the copies that were kept of damaged journals; returns their names. Raises OSError."""
    names = sorted(name for name in os.listdir(path.parent) if name.startswith(f"{path.stem}.damaged"))  # noqa: PTH208
    for name in names:
        state_files.clear(path.with_name(name))
    if names:
        state_files.sync_folder(path.parent)
    return names


def in_memory() -> sqlite3.Connection:
    """An empty journal that is not kept (tests)."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    _create(db)
    db.execute("COMMIT")
    return db


def recover(path: Path, why: str) -> Recovery:
    """Replace a file by a new one with its genuine rows.

    Raises sqlite3.OperationalError where that cannot be written; nothing was moved then.
    """
    new, recovered = path.with_suffix(".new"), path.with_suffix(".recovered")
    try:
        carried, lost = _salvage(path, new)
        new.replace(recovered)
        kept = _finish(path, recovered)
    except OSError as error:
        raise sqlite3.OperationalError(f"unable to open database file ({error.strerror or error})") from error
    return Recovery(why, kept, carried, lost)


def _finish(path: Path, recovered: Path) -> Path | None:
    """Put a recovered file in its place, and what lies there aside."""
    for suffix in _COMPANIONS:
        state_files.clear(Path(f"{recovered}{suffix}"))
    try:
        _check(recovered)
    except DamagedError:
        state_files.clear(recovered)
        return None
    kept = state_files.set_aside(path, _COMPANIONS)
    for suffix in ("-shm", "-journal", "-wal"):  # of the check, and what could not be renamed
        state_files.clear(Path(f"{recovered}{suffix}"))
        state_files.clear(Path(f"{path}{suffix}"))
    recovered.replace(path)
    state_files.sync_folder(path.parent)
    return kept


def _check(path: Path) -> bool:
    """Whether the file is of version 1, to be migrated. Makes a missing one. Raises DamagedError."""
    there = _check_kinds(path)
    if not there:
        try:
            with closing(_begin(path.with_suffix(".new"))) as db:
                db.execute("COMMIT")
            path.with_suffix(".new").replace(path)
            state_files.sync_folder(path.parent)
        except OSError as error:
            raise sqlite3.OperationalError(f"unable to open database file ({error.strerror})") from error
        return False
    if path.stat().st_size < sqlite_pages.PAGE:
        raise DamagedError("it is cut short")
    if sqlite_pages.read_log(Path(f"{path}-wal")).damaged:
        raise DamagedError("its write-ahead log is damaged")
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, isolation_level=None)) as db:
            return _check_tables(db)
    except (sqlite3.Error, ValueError, OverflowError) as error:
        if _is_environment(error):
            raise
        raise DamagedError(str(error)) from error


def _check_kinds(path: Path) -> bool:
    for suffix in ("-shm", "-journal"):  # SQLite makes the first again; a rollback journal is none of ours
        with suppress(OSError):
            state_files.clear(Path(f"{path}{suffix}"))
    try:
        there = state_files.check(path)
        log = state_files.check(Path(f"{path}-wal"))
    except OSError as error:
        raise DamagedError(str(error)) from error
    if log and not there:
        raise DamagedError("only its write-ahead log is there")
    return there


def _check_tables(db: sqlite3.Connection) -> bool:
    db.text_factory = _text
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > VERSION or version < 1:
        raise DamagedError(f"it was written by another version of edged, {version}, or its header is damaged")
    (verdict,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        raise DamagedError(" ".join(str(verdict).split()))
    if version < VERSION:
        columns = tuple(str(row[1]) for row in db.execute("PRAGMA table_info(prompts)"))
        if columns != COLUMNS[: len(columns)] or len(columns) != _FIRST_VERSION:
            raise DamagedError("its tables are not those of its version")
        return True
    if tuple(text for (text,) in db.execute(_TABLES)) != _SCHEMA:
        raise DamagedError("its tables are not those of its version")
    _check_rows(db)
    return False


def _check_rows(db: sqlite3.Connection) -> None:
    for query in (SELECT, "SELECT name, value, checksum FROM facts"):
        if not all(map(is_genuine, db.execute(query))):
            raise DamagedError("a row is not what was written")
    for (seq,) in db.execute("SELECT seq FROM sqlite_sequence"):
        if not isinstance(seq, int) or not 0 <= seq < _MAX_SEQ:
            raise DamagedError("its sequence number is impossible")


def _begin(new: Path) -> sqlite3.Connection:
    """An empty file of this version, in a transaction."""
    for suffix in ("", *_COMPANIONS):
        state_files.clear(Path(f"{new}{suffix}"))
    state_files.create_private(new)
    db = sqlite3.connect(new, isolation_level=None)
    _create(db)
    return db


def _create(db: sqlite3.Connection) -> None:
    """Begin a transaction, and make the tables."""
    db.execute(f"PRAGMA page_size={sqlite_pages.PAGE}")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("BEGIN IMMEDIATE")
    for statement in _SCHEMA:
        db.execute(statement)
    db.execute(f"PRAGMA user_version={VERSION}")


def _migrate(path: Path) -> None:
    """Version 1 had neither counters nor checksums; its rows are taken as they are. Raises DamagedError."""
    new = path.with_suffix(".new")
    columns = ", ".join(COLUMNS[:_FIRST_VERSION])
    try:
        with closing(connect(path)) as old, closing(_begin(new)) as db:
            for row in old.execute(f"SELECT {columns} FROM prompts"):  # noqa: S608  - our own words
                db.execute(INSERT, sealed((*row, 1)))
            for fact in old.execute("SELECT name, value FROM facts"):
                db.execute("INSERT INTO facts VALUES (?, ?, ?)", sealed(fact))
            _set_sequence(db, old.execute("SELECT MAX(seq) FROM sqlite_sequence").fetchone()[0] or 0)
            db.execute("COMMIT")
            old.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for suffix in _COMPANIONS:
            state_files.clear(Path(f"{path}{suffix}"))
        new.replace(path)
        state_files.sync_folder(path.parent)
    except (sqlite3.Error, OSError, OverflowError, ValueError, TypeError) as error:
        if _is_environment(error):
            raise
        raise DamagedError(str(error)) from error


def _set_sequence(db: sqlite3.Connection, last: int) -> None:
    """The next row gets a greater number than `last`."""
    db.execute("DELETE FROM sqlite_sequence")
    db.execute("INSERT INTO sqlite_sequence VALUES ('prompts', ?)", (last,))


def _salvage(path: Path, new: Path) -> tuple[int, int]:
    """Write the genuine rows of a damaged file to a new one; rows carried over, and damaged ones that were seen."""
    damaged: set[int] = set()
    highest = 0
    with closing(_begin(new)) as db:
        log = sqlite_pages.read_log(Path(f"{path}-wal"))
        for over in (log.sound, log.all) if log.damaged else (log.sound,):
            for number, values in sqlite_pages.records(path, over):
                if len(values) == len(COLUMNS):
                    row = _row(number, values)
                    if is_genuine(row):
                        highest = max(highest, number)
                        _carry(db, row)
                    elif isinstance(values[4], bytes):
                        damaged.add(number)
                elif len(values) == 3 and isinstance(values[1], int | float):
                    fact = (values[0], float(values[1]), values[2])
                    if is_genuine(fact):
                        _carry_fact(db, fact)
        kept = {int(seq) for (seq,) in db.execute("SELECT seq FROM prompts")}
        _set_sequence(db, highest + _SEQ_GAP)
        db.execute("COMMIT")
    return len(kept), len(damaged - kept)


def _row(number: int, values: list[sqlite_pages.Value]) -> Row:
    """A record as SQLite gives it: the key is the row's number, and a whole number may stand for a float."""
    finished = values[8]
    if isinstance(finished, int):
        values[8] = float(finished)
    return (number, *values[1:])


def _carry(db: sqlite3.Connection, row: Row) -> None:
    """Keep a row unless a newer one, of the same number or the same id, is there."""
    seq, requester, prompt_id, version = row[0], row[1], row[2], row[-2]
    known = db.execute(
        "SELECT seq, version FROM prompts WHERE seq = ? OR (requester = ? AND id = ?)", (seq, requester, prompt_id)
    ).fetchall()
    if all((seq, version) > other for other in known):
        db.executemany("DELETE FROM prompts WHERE seq = ?", [other[:1] for other in known])
        db.execute(INSERT, row)


def _carry_fact(db: sqlite3.Connection, fact: Row) -> None:
    """Of two copies of a fact the greater counts: the floor of the clock never goes back."""
    db.execute(
        "INSERT INTO facts VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value, "
        "checksum = excluded.checksum WHERE excluded.value > value",
        fact,
    )


def _text(raw: bytes) -> str:
    """A damaged text is another text, never an error."""
    return raw.decode("utf-8", "replace")


def _is_environment(error: BaseException) -> bool:
    """Whether an error says something of the disk or the memory, and nothing of the file."""
    return isinstance(error, sqlite3.OperationalError) and any(word in str(error) for word in _ENVIRONMENT)
