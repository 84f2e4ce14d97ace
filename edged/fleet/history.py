"""The last decisions about pushes, newest first, on disk. Owned by the agent's main thread."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from edged import state_files
from edged.fleet import checked_file
from edged.wire.layers import Decided

MOST = 20
_MAX_BYTES = 4_000_000


class History:
    """See the module. One that cannot be written is kept in memory, one that cannot be read begins anew."""

    def __init__(self, path: Path, scope: str) -> None:
        self._path = path
        self._scope = scope
        self.decisions: tuple[Decided, ...] = ()

    def load(self) -> None:
        """Read the file."""
        with suppress(checked_file.DamagedError):
            body = checked_file.read(self._path, _MAX_BYTES)
            if body is None or body.get("scope") != self._scope:
                return
            try:
                self.decisions = tuple(msgspec.convert(body["decisions"], list[Decided]))[:MOST]
            except (KeyError, msgspec.ValidationError):
                state_files.set_aside(self._path)

    def add(self, decided: Decided) -> None:
        """One more decision."""
        self.decisions = (decided, *self.decisions)[:MOST]
        body: dict[str, Any] = {"scope": self._scope, "decisions": msgspec.to_builtins(self.decisions)}
        with suppress(OSError):
            checked_file.write(self._path, body)
