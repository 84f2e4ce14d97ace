"""A JSON file of this package: replaced whole, its digest checked at read, set aside where it cannot be used."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from edged import state_files


class DamagedError(Exception):
    """The file cannot be read, or is not what was written. It was set aside as `aside` (None: that failed)."""

    def __init__(self, path: Path, aside: Path | None) -> None:
        self.path = path
        self.aside = aside
        super().__init__(f"{path} is damaged" + (f"; it is kept as {aside}" if aside else ""))


def read(path: Path, limit: int) -> dict[str, Any] | None:
    """The document in the file; None where there is no file. Raises DamagedError."""
    try:
        document = json.loads(state_files.read(path, limit))
        body: dict[str, Any] = document["kept"]
        if not isinstance(body, dict) or document["sha256"] != _digest(body):
            raise ValueError("the digest does not match")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise DamagedError(path, state_files.set_aside(path)) from None
    return body


def write(path: Path, body: dict[str, Any]) -> None:
    """Replace the file. Raises OSError."""
    state_files.replace(path, json.dumps({"sha256": _digest(body), "kept": body}).encode())


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
