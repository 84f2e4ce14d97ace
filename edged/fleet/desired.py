"""The desired config on this device: the owner's file, the layers kept on disk, what is in force and what is reported.

Owned by the agent's main thread. The decision itself is `fleet.layers.decide`, a pure function.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edged.config.schema import Settings
from edged.fleet import layer_store as store
from edged.fleet import layers
from edged.wire.layers import Reported
from edged.wire.topics import Topics


class DesiredConfig:
    """`settings` are in force; `reported` says what became of the last push. Both are replaced whole, never changed.

    `damaged` says that the layers of before could not be read; what the broker keeps comes again with the connection.
    """

    def __init__(self, own: dict[str, Any], topics: Topics, path: Path) -> None:
        self._own = own
        self._order = tuple(topics.layers.values())
        self._path = path
        self.damaged: str | None = None
        try:
            kept = store.load(path, topics.own)
        except store.DamagedError as error:
            self.damaged = str(error)
            kept = store.Kept(topics.own, {}, store.NOTHING_PUSHED)
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
        self._keep(decision.layers, decision.reported, now)
        return True

    def refuse(self, name: str, why: str, now: float) -> None:
        """Report that a push to the layer `name` could not be read. Raises OSError as `take` does."""
        kept = self._kept.layers
        self._keep(kept, Reported("rejected", name, None, why, layers.revisions(kept)), now)

    def _keep(self, kept: Mapping[str, bytes], report: Reported, now: float) -> None:
        self._kept = store.Kept(self._kept.scope, kept, msgspec.structs.replace(report, at=now))
        self.settings = layers.effective(self._own, kept, self._order)
        store.save(self._path, self._kept)
