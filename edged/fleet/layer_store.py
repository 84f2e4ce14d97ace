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


_MAX_BYTES = 128_000_000  # of the file; a layer comes in one message, and there are at most 34


class StoredLayers(msgspec.Struct, frozen=True):
    """The payloads in force by layer. `scope` names the fleet and device that they belong to."""

    scope: str
    layers: Mapping[str, bytes]
    reported: Reported


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
        return StoredLayers(scope, layers, msgspec.convert(body["reported"], Reported))
    except FileNotFoundError:
        return nothing
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, msgspec.ValidationError):
        raise DamagedError(path, state_files.set_aside(path)) from None


def save(path: Path, stored: StoredLayers) -> None:
    """Replace the file. Raises OSError."""
    body = {
        "scope": stored.scope,
        "layers": {name: base64.b64encode(payload).decode() for name, payload in stored.layers.items()},
        "reported": {**msgspec.to_builtins(stored.reported), "in_force": dict(stored.reported.in_force)},
    }
    state_files.replace(path, json.dumps({"sha256": _digest(body), "kept": body}).encode())


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
