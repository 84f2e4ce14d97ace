"""The layers on disk, so that a restart without the broker ends in the same settings.

One JSON file, replaced whole. Its digest is checked at read; one that cannot be used is kept under another name.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edged import state_files
from edged.wire.layers import Reported

NOTHING_PUSHED = Reported("applied", None, None, "nothing was pushed yet; the device's own file is in force", {})


_MAX_BYTES = 128_000_000  # of the file; a layer comes in one message, and there are at most 34, and as many wait


class Waiting(msgspec.Struct, frozen=True):
    """A push that the device applies later, and why."""

    payload: bytes
    reason: str


class StoredLayers(msgspec.Struct, frozen=True):
    """The payloads in force by layer. `scope` names the fleet and device that they belong to.

    `previous`: layers of which the settings of before their roll-out are in force. `waiting`: pushes by layer that are
    applied later.
    """

    scope: str
    layers: Mapping[str, bytes]
    reported: Reported
    previous: tuple[str, ...] = ()
    waiting: Mapping[str, Waiting] = msgspec.field(default_factory=dict)


class DamagedError(Exception):
    """The file cannot be read, or is not what was written. It was set aside as `aside` (None: that failed)."""

    def __init__(self, path: Path, aside: Path | None) -> None:
        self.aside = aside
        where = f"they are kept as {aside}" if aside else "the next push replaces them"
        super().__init__(f"the stored config layers in {path} are damaged; {where}")


def load(path: Path, scope: str) -> StoredLayers:
    """What is stored for this scope; no layers where there is no file, or another device's. Raises DamagedError."""
    nothing = StoredLayers(scope, {}, NOTHING_PUSHED)
    try:
        document = json.loads(state_files.read(path, _MAX_BYTES))
        body = document["kept"]
        if document["sha256"] != _digest(body):
            raise ValueError("the digest does not match")
        if body["scope"] != scope:
            return nothing
        layers = {name: base64.b64decode(text) for name, text in body["layers"].items()}
        waiting = {
            name: Waiting(base64.b64decode(one["payload"]), str(one["reason"]))
            for name, one in body.get("waiting", {}).items()
        }
        reported = msgspec.convert(body["reported"], Reported)
        return StoredLayers(scope, layers, reported, tuple(body.get("previous", ())), waiting)
    except FileNotFoundError:
        return nothing
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, msgspec.ValidationError):
        raise DamagedError(path, state_files.set_aside(path)) from None


def save(path: Path, stored: StoredLayers) -> None:
    """Replace the file. Raises OSError."""
    body = {
        "scope": stored.scope,
        "layers": {name: _text(payload) for name, payload in stored.layers.items()},
        "reported": {**msgspec.to_builtins(stored.reported), "in_force": dict(stored.reported.in_force)},
        "previous": list(stored.previous),
        "waiting": {
            name: {"payload": _text(one.payload), "reason": one.reason} for name, one in stored.waiting.items()
        },
    }
    state_files.replace(path, json.dumps({"sha256": _digest(body), "kept": body}).encode())


def _text(payload: bytes) -> str:
    return base64.b64encode(payload).decode()


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
