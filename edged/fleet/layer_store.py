"""The layers on disk, so that a restart without the broker ends in the same settings.

One JSON file, replaced whole: written beside it, synced, renamed, the folder synced. Its digest is checked when read.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edged.wire.layers import Reported

NOTHING_PUSHED = Reported("applied", None, None, "nothing was pushed yet; the device's own file is in force", {})


class StoredLayers(msgspec.Struct, frozen=True):
    """The payloads in force by layer. `scope` names the fleet and device that they belong to."""

    scope: str
    layers: Mapping[str, bytes]
    reported: Reported


class DamagedError(Exception):
    """The file cannot be read, or is not what was written. It was moved to `moved_to` (None: that failed)."""

    def __init__(self, path: Path, moved_to: Path | None) -> None:
        where = f"the file was moved to {moved_to}" if moved_to else "the next push replaces the file"
        super().__init__(f"the stored config layers in {path} are damaged; {where}")


def load(path: Path, scope: str) -> StoredLayers:
    """What is stored for this scope; no layers where there is no file, or another device's. Raises DamagedError."""
    nothing = StoredLayers(scope, {}, NOTHING_PUSHED)
    try:
        document = json.loads(path.read_bytes())
        body = document["kept"]
        if document["sha256"] != _digest(body):
            raise ValueError("the digest does not match")
        if body["scope"] != scope:
            return nothing
        layers = {name: base64.b64decode(text) for name, text in body["layers"].items()}
        return StoredLayers(scope, layers, msgspec.convert(body["reported"], Reported))
    except FileNotFoundError:
        return nothing
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, msgspec.ValidationError):
        raise DamagedError(path, _move_away(path)) from None


def _move_away(path: Path) -> Path | None:
    moved_to = path.with_suffix(".damaged")
    try:
        path.replace(moved_to)
    except OSError:
        return None
    return moved_to


def save(path: Path, stored: StoredLayers) -> None:
    """Replace the file. Raises OSError."""
    body = {
        "scope": stored.scope,
        "layers": {name: base64.b64encode(payload).decode() for name, payload in stored.layers.items()},
        "reported": {**msgspec.to_builtins(stored.reported), "in_force": dict(stored.reported.in_force)},
    }
    temporary = path.with_suffix(".new")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump({"sha256": _digest(body), "kept": body}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
