"""Files of a folder that this program alone writes: read within bounds, replaced whole, set aside when unusable.

Nothing that lies under such a name may keep the program from starting: a folder, a FIFO, a dangling link, a file of
another user and a file of any size are all answered by an error, never by waiting. Files are readable by their owner
alone, whatever the umask is.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

KEPT: Final = 3
"""How many files of one name are kept aside; the oldest go first."""

_PRIVATE_FILE: Final = 0o600
_PRIVATE_FOLDER: Final = 0o700


class UnusableError(OSError):
    """What lies there is no regular file, is too large, or may not be opened."""


def read(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes.

    Raises FileNotFoundError where nothing lies there, UnusableError for anything that is no such file, and OSError.
    """
    handle = _open(path, os.O_RDONLY)
    with os.fdopen(handle, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UnusableError(f"it has more than {limit:,} bytes")
    return data


def check(path: Path) -> bool:
    """Whether there is a file; raises UnusableError where it is no regular file that can be read and written."""
    try:
        os.close(_open(path, os.O_RDWR))
    except FileNotFoundError:
        return False
    return True


def replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: a new one beside it, synced, renamed, the folder synced. Raises OSError."""
    temporary = path.with_suffix(".new")
    clear(temporary)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE_FILE)
    with os.fdopen(handle, "wb") as file:
        os.fchmod(file.fileno(), _PRIVATE_FILE)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def clear(path: Path) -> None:
    """Remove whatever lies there, without following a link."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


def sync_folder(folder: Path) -> None:
    """A rename in this folder is on the disk afterwards. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def set_aside(path: Path, companions: tuple[str, ...] = ()) -> Path | None:
    """Rename what cannot be used to a name that was never used before: `x.damaged`, then `x.damaged-2`, …

    `companions` are suffixes of files that belong to it (`-wal`) and move with it. At most KEPT are kept. None where
    nothing could be renamed.
    """
    last = 0
    kept: dict[int, list[Path]] = {}
    with suppress(OSError):
        for name in os.listdir(path.parent):  # noqa: PTH208  - names alone
            if match := re.fullmatch(re.escape(f"{path.stem}.damaged") + r"(?:-(\d{1,9}))?(?:-[a-z]+)?", name):
                kept.setdefault(int(match[1] or 1), []).append(path.with_name(name))
        last = max(kept, default=0)
    aside = path.with_name(f"{path.stem}.damaged" + (f"-{last + 1}" if last else ""))
    moved = False
    for suffix in ("", *companions):
        with suppress(OSError):
            Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
            moved = True
    if not moved:
        return None
    for number in sorted(kept)[: max(0, len(kept) + 1 - KEPT)]:
        for old in kept[number]:
            with suppress(OSError):
                clear(old)
    return aside


def make_private(folder: Path) -> bool:
    """Take a folder's rights from everyone but its owner; whether it is so now."""
    try:
        if stat.S_IMODE(folder.stat().st_mode) != _PRIVATE_FOLDER:
            folder.chmod(_PRIVATE_FOLDER)
    except OSError:
        return False
    return True


def create_private(path: Path) -> None:
    """Make an empty file that its owner alone can read, or take the others' rights from one that is there."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, _PRIVATE_FILE)
    try:
        os.fchmod(handle, _PRIVATE_FILE)
    finally:
        os.close(handle)


def _open(path: Path, flags: int) -> int:
    """A handle of a regular file; never waits for a FIFO's other end."""
    try:
        handle = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        if path.is_symlink():
            raise UnusableError("it is a link to nothing") from None
        raise
    except (IsADirectoryError, PermissionError, NotADirectoryError) as error:
        raise UnusableError(f"it cannot be opened: {error.strerror}") from error
    except OSError as error:  # ELOOP, ENXIO of a socket
        raise UnusableError(f"it cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UnusableError("it is no regular file")
    return handle
