"""The desired config on this device: the owner's file, the layers kept on disk, what is in force and what is reported.

Owned by the agent's main thread. The decision itself is `fleet.layers.decide`, a pure function.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from edged.core.settings import Settings
from edged.fleet import layers, store
from edged.wire.layers import Reported
from edged.wire.topics import Topics


class DesiredConfig:
    """`settings` are in force; `reported` says what became of the last push. Both are replaced whole, never changed."""

    def __init__(self, own: dict[str, Any], topics: Topics, path: Path) -> None:
        self._own = own
        self._order = tuple(topics.layers.values())
        self._path = path
        kept = store.load(path, topics.own)
        valid = layers.still_valid(own, kept.layers, self._order)
        report = msgspec.structs.replace(kept.reported, in_force=layers.revisions(valid))
        self._kept = store.Kept(topics.own, valid, report)
        self.settings: Settings = layers.effective(own, valid, self._order)

    @property
    def reported(self) -> Reported:
        """What became of the last push."""
        return self._kept.reported

    def take(self, name: str, payload: bytes, now: float) -> bool:
        """Judge a push to the layer `name`; gives whether there is something new to report.

        Raises OSError where the layers cannot be kept on disk; what was decided is in force all the same.
        """
        decision = layers.decide(self._own, self._kept.layers, self._kept.reported, name, payload)
        if not decision.changed:
            return False
        report = msgspec.structs.replace(decision.reported, at=now)
        self._kept = store.Kept(self._kept.scope, decision.layers, report)
        self.settings = layers.effective(self._own, decision.layers, self._order)
        store.save(self._path, self._kept)
        return True
