"""The layers on disk, so that a restart without the broker ends in the same settings.

One JSON file, replaced whole: written beside it, synced, renamed, the folder synced. Its digest is checked at read.
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


class Kept(msgspec.Struct, frozen=True):
    """What was in force. `scope` names the fleet and device that it belongs to."""

    scope: str
    layers: Mapping[str, bytes]
    reported: Reported


class DamagedError(Exception):
    """The file cannot be read, or is not what was written. It was set aside as `aside` (None: that failed)."""

    def __init__(self, path: Path, aside: Path | None) -> None:
        where = f"they are set aside as {aside}" if aside else "the next push replaces them"
        super().__init__(f"the config layers in {path} are damaged; {where}")


def load(path: Path, scope: str) -> Kept:
    """What was kept for this scope; nothing where there is no file, or another device's. Raises DamagedError."""
    nothing = Kept(scope, {}, NOTHING_PUSHED)
    try:
        document = json.loads(path.read_bytes())
        body = document["kept"]
        if document["sha256"] != _digest(body):
            raise ValueError("another digest")
        if body["scope"] != scope:
            return nothing
        layers = {name: base64.b64decode(text) for name, text in body["layers"].items()}
        return Kept(scope, layers, msgspec.convert(body["reported"], Reported))
    except FileNotFoundError:
        return nothing
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, msgspec.ValidationError):
        raise DamagedError(path, _set_aside(path)) from None


def _set_aside(path: Path) -> Path | None:
    aside = path.with_suffix(".damaged")
    try:
        path.replace(aside)
    except OSError:
        return None
    return aside


def save(path: Path, kept: Kept) -> None:
    """Replace the file. Raises OSError."""
    body = {
        "scope": kept.scope,
        "layers": {name: base64.b64encode(payload).decode() for name, payload in kept.layers.items()},
        "reported": {**msgspec.to_builtins(kept.reported), "in_force": dict(kept.reported.in_force)},
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
