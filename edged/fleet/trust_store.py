"""The trust record on disk: revision floors, keys added and withdrawn. Apart from the layers, so that it outlasts them.

Two equal JSON files, each replaced whole; the second is read where the first is lost or damaged.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec

from edged import state_files
from edged.fleet.trust import TrustRecord

_MAX_BYTES = 10_000_000


class DamagedError(Exception):
    """Neither file can be read. They stay where they are until the owner resets the record."""


def load(path: Path) -> TrustRecord | None:
    """The record; None where there is no file yet. Raises DamagedError."""
    damaged = False
    for file in files(path):
        try:
            return _read(file)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, RecursionError, msgspec.ValidationError):
            damaged = True
    if damaged:
        raise DamagedError(f"the revision floors and keys in {path} are damaged")
    return None


def save(path: Path, record: TrustRecord) -> None:
    """Replace both files, whatever is there. Raises OSError; then the first is as it was."""
    body = msgspec.to_builtins(record)
    data = json.dumps({"sha256": _digest(body), "kept": body}).encode()
    for file in files(path)[::-1]:
        if file.is_dir() and not file.is_symlink():
            state_files.set_aside(file)
        state_files.replace(file, data)


def files(path: Path) -> tuple[Path, Path]:
    """The record's file and its copy."""
    return path, path.with_name(f"{path.stem}-copy{path.suffix}")


def _read(path: Path) -> TrustRecord:
    document = json.loads(state_files.read(path, _MAX_BYTES))
    body = document["kept"]
    if document["sha256"] != _digest(body):
        raise ValueError("the digest does not match")
    return msgspec.convert(body, TrustRecord)


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
