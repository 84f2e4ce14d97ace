"""Digests of models: SHA-256 over a file, or over the canonical list of a folder's files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

_BLOCK: Final = 1 << 20


def file_sha256(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """The 64 hex digits of a file. `progress` gets the bytes read so far."""
    state = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            state.update(block)
            done += len(block)
            if progress:
                progress(done)
    return state.hexdigest()


def folder_sha256(folder: Path, leave_out: frozenset[str] = frozenset()) -> str:
    """The 64 hex digits over a line `sha256 size name` for each file below a folder, in the order of names (UTF-8).

    Each line ends in a line feed. Hidden files and folders (`.git`, `.cache`) do not count.
    """
    files = [(path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file()]
    return files_sha256(
        (name, path)
        for name, path in files
        if name not in leave_out and not any(part.startswith(".") for part in name.split("/"))
    )


def files_sha256(files: Iterable[tuple[str, Path]]) -> str:
    """The same over some files, each with its name."""
    state = hashlib.sha256()
    for name, path in sorted(files, key=lambda pair: pair[0].encode()):
        state.update(f"{file_sha256(path)} {path.stat().st_size} {name}\n".encode())
    return state.hexdigest()
