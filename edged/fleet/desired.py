"""The desired config on this device: the owner's file, the stored layers, what is in force and what is reported.

Owned by the agent's main thread. The decision itself is `fleet.layers.decide`, a pure function.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from edged.config.schema import Settings, build
from edged.fleet import layer_store, layers, trust_store
from edged.fleet.layers import Decision, Layers, PushedLayer
from edged.fleet.trust import Trust, TrustRecord
from edged.wire.layers import Reported
from edged.wire.topics import Topics

TRUST_FILE = "trust.json"
"""The file of revision floors and keys, in the folder of the layers."""


class InForce(msgspec.Struct, frozen=True):
    """The settings in force, and the revisions of the layers that shaped them."""

    settings: Settings
    revisions: Mapping[str, int]


class Update(msgspec.Struct, frozen=True):
    """What became of one push. `storage_error`: why the report could not be written to disk."""

    layer: str
    report: Reported
    storage_error: str | None = None


class DesiredConfig:
    """`in_force`, `report` and `trust` are replaced whole at each update, never changed. `load` reads what is stored.

    `path` is the file of the layers; the revision floors lie beside it in a file of their own.
    """

    def __init__(self, owner: dict[str, Any], topics: Topics, path: Path) -> None:
        settings = build(owner)
        self._owner = owner
        self._owner_model = settings.model
        self._topic = {layer: topic for topic, layer in topics.layers.items()}
        self._scope = topics.own
        self._order = tuple(topics.layers.values())
        self._path = path
        self._trust_path = path.with_name(TRUST_FILE)
        self._layers: Layers = {}
        self.report = layer_store.NOTHING_PUSHED
        self.in_force = InForce(settings, {})
        self.trust = Trust(settings.trust, TrustRecord())
        self.damage: str | None = None
        """Why the stored layers could not be read; the broker sends those that it retains at the next connect."""

    def load(self) -> None:
        """Put the stored layers in force. Damaged ones are moved away; `damage` names the file."""
        record = self._load_trust()
        try:
            stored = layer_store.load(self._path, self._scope)
        except layer_store.DamagedError as error:
            self.damage = str(error)
            return
        self._layers = layers.parse_stored(self._owner_model, stored.layers, self._order, self._check_stored)
        if record is None:
            self._set_floors()
        self._put_in_force()
        self.report = msgspec.structs.replace(stored.reported, in_force=self.in_force.revisions)

    def apply(self, name: str, payload: bytes, now: float) -> Update | None:
        """Judge a push to the layer `name` at Unix time `now`; gives None where nothing is new."""
        topic = self._topic[name]
        decision = layers.decide(
            self._owner_model,
            self._layers,
            self.report,
            name,
            payload,
            lambda payload, layer: self.trust.check(topic, payload, layer, now),
        )
        decision = self._with_trust(name, decision)
        if not decision.changed:
            return None
        before, self._layers = self._layers, decision.layers
        self._put_in_force()
        update = self._store(name, decision.reported, now)
        if update.storage_error is None or decision.layers is before:
            return update
        self._layers = before
        self._put_in_force()
        why = (
            f"the layer cannot be stored ({update.storage_error}), so it is not in force; free space and push it again"
        )
        return self.reject(name, why, now, decision.reported.revision)

    def reject(self, name: str, reason: str, now: float, revision: int | None = None) -> Update:
        """Report that a push to the layer `name` could not be read, or not be stored."""
        return self._store(name, Reported("rejected", name, revision, reason, self.in_force.revisions), now)

    def store(self) -> None:
        """Write floors and keys, the layers in force and the report again. Raises OSError."""
        if self.trust.damage is None and self.trust.record != TrustRecord():
            trust_store.save(self._trust_path, self.trust.record)
        self._store_layers()

    def _store_layers(self) -> None:
        payloads = {layer: pushed.payload for layer, pushed in self._layers.items()}
        layer_store.save(self._path, layer_store.StoredLayers(self._scope, payloads, self.report))

    def _load_trust(self) -> TrustRecord | None:
        """Read the floors and keys that are kept; None where there are none yet."""
        try:
            record = trust_store.load(self._trust_path)
        except trust_store.DamagedError as error:
            self.trust = msgspec.structs.replace(self.trust, damage=str(error))
            return self.trust.record
        if record is not None:
            self.trust = msgspec.structs.replace(self.trust, record=record)
        return record

    def _check_stored(self, name: str, pushed: PushedLayer) -> None:
        self.trust.check_stored(self._topic[name], pushed.payload, pushed.layer)

    def _set_floors(self) -> None:
        """Without a file of floors they begin at the layers in force; where that cannot be stored, at the next push."""
        for name, pushed in self._layers.items():
            self.trust = self.trust.with_floor(self._topic[name], pushed.payload, pushed.layer)
        if self.trust.record.floors:
            with suppress(OSError):
                trust_store.save(self._trust_path, self.trust.record)

    def _with_trust(self, name: str, decision: Decision) -> Decision:
        """Store the floor and the keys that an accepted push brings, before it is in force.

        Where that fails the push is rejected: after a restart an older one could be applied again.
        """
        pushed = decision.layers.get(name)
        if pushed is None or (decision.changed and decision.reported.phase == "rejected"):
            return decision
        again = pushed is self._layers.get(name)
        step = self.trust.with_floor if again else self.trust.applied
        trust = step(self._topic[name], pushed.payload, pushed.layer)
        if trust == self.trust:
            return decision
        try:
            trust_store.save(self._trust_path, trust.record)
        except OSError as error:
            if again:
                return decision  # it is in force; its floor is set when it comes the next time
            why = f"the revision floor cannot be stored ({error.strerror}); free disk space and push again"
            return layers.rejected(self._layers, name, pushed.layer.revision, why)
        self.trust = trust
        return decision

    def _put_in_force(self) -> None:
        settings = layers.effective(self._owner, self._layers, self._order)
        self.in_force = InForce(settings, layers.revisions(self._layers))

    def _store(self, name: str, report: Reported, now: float) -> Update:
        self.report = msgspec.structs.replace(report, at=now)
        try:
            self._store_layers()
        except OSError as error:
            return Update(name, self.report, str(error))
        return Update(name, self.report)
