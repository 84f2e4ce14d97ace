"""Whose layers this device applies: keys, signatures, expiry, and a revision floor for each topic. Pure.

With `require_signature` the floor of a topic is the highest revision ever applied there, and what that revision said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from edged.config import checks
from edged.config.keys import MAX_KEYS
from edged.config.schema import Trust as OwnerTrust
from edged.core.errors import BadValue
from edged.wire import signatures, strict_json
from edged.wire.layers import BadLayer, Layer, Signature, TrustChange
from edged.wire.replies import rfc3339


class Floor(msgspec.Struct, frozen=True):
    """The highest revision ever applied on a topic. `content`: SHA-256 of what it says, without its signature."""

    revision: int
    content: str


class TrustRecord(msgspec.Struct, frozen=True):
    """What is kept on disk: floors by full topic, keys that layers added (name → key) and withdrew (key → name).

    A withdrawn key stays withdrawn, also where the owner's file has it.
    """

    floors: dict[str, Floor] = msgspec.field(default_factory=dict)
    added: dict[str, str] = msgspec.field(default_factory=dict)
    withdrawn: dict[str, str] = msgspec.field(default_factory=dict)


class Trust(msgspec.Struct, frozen=True):
    """The owner's `trust` and the record. `damage`: why the record could not be read."""

    owner: OwnerTrust
    record: TrustRecord
    damage: str | None = None

    @property
    def keys(self) -> dict[str, str]:
        """Name → public key of everyone whose signature counts now. The owner's file wins over what a layer added."""
        given = (*self.record.added.items(), *self.owner.keys.items())
        return {name: key for name, key in given if key not in self.record.withdrawn}

    def check(self, topic: str, payload: bytes, layer: Layer | None, now: float) -> None:
        """Whether a push may be applied at Unix time `now`. `layer` None: it is empty and would remove the layer.

        Raises BadLayer with a sentence for the operator.
        """
        if layer is None:
            if self.owner.require_signature:
                sentence = "an empty payload removes nothing on this device; push a signed layer with empty settings"
                raise BadLayer("", sentence, None)
            return
        try:
            self._check(topic, strict_json.loads(payload), layer, now)
        except BadValue as error:
            raise BadLayer(error.path, error.sentence, layer.revision) from None

    def check_offer(
        self, topic: str, document: dict[str, Any], signature: Signature | None, expires_at: float | None, now: float
    ) -> None:
        """Whether the offer of a model, published on `topic`, may be followed at Unix time `now`. Raises BadValue."""
        if signature is not None or self.owner.require_signature:
            self._check_damage()
            _check_signature(tuple(self.keys.items()), topic, document, signature, "offer", "model")
        if expires_at is not None and expires_at < now:
            raise BadValue("expires_at", f"is over: the offer was valid until {rfc3339(expires_at)}")

    def check_stored(self, topic: str, payload: bytes, layer: Layer) -> None:
        """Whether a layer from the disk stays in force. It does where its key was withdrawn since. Raises BadLayer.

        With a damaged record it does, too: which keys were known is lost.
        """
        if self.owner.require_signature and self.damage is None:
            withdrawn = tuple((name, key) for key, name in self.record.withdrawn.items())
            try:
                _check_signature((*self.keys.items(), *withdrawn), topic, strict_json.loads(payload), layer.signature)
            except BadValue as error:
                raise BadLayer(error.path, error.sentence, layer.revision) from None

    def with_floor(self, topic: str, payload: bytes, layer: Layer) -> Trust:
        """The trust with this topic's floor at the layer, unless it is there or higher already."""
        if not self.owner.require_signature or self._floor(topic) >= layer.revision:
            return self
        floor = Floor(layer.revision, signatures.content_digest(strict_json.loads(payload)))
        record = msgspec.structs.replace(self.record, floors={**self.record.floors, topic: floor})
        return msgspec.structs.replace(self, record=record)

    def applied(self, topic: str, payload: bytes, layer: Layer) -> Trust:
        """The trust after a layer that `check` accepted was applied: its floor, its change of keys."""
        if layer.trust is None or (self.owner.require_signature and self._floor(topic) >= layer.revision):
            return self.with_floor(topic, payload, layer)  # a repeat changes no keys: another layer may have, since
        known, record = self.keys, self.record
        record = TrustRecord(
            record.floors,
            {**record.added, **layer.trust.keys},
            {**record.withdrawn, **{known[name]: name for name in layer.trust.withdraw if name in known}},
        )
        return msgspec.structs.replace(self, record=record).with_floor(topic, payload, layer)

    def _floor(self, topic: str) -> int:
        floor = self.record.floors.get(topic)
        return -1 if floor is None else floor.revision

    def _check(self, topic: str, document: dict[str, Any], layer: Layer, now: float) -> None:
        if layer.signature is not None or self.owner.require_signature:
            self._check_damage()
            _check_signature(tuple(self.keys.items()), topic, document, layer.signature)
        if self.owner.require_signature and self._is_repeat(topic, document, layer):
            return
        if layer.expires_at is not None and layer.expires_at < now:
            raise BadValue("expires_at", f"is over: the layer could be applied until {rfc3339(layer.expires_at)}")
        if layer.trust is not None:
            self._check_change(layer.trust, None if layer.signature is None else layer.signature.key)

    def _check_damage(self) -> None:
        if self.damage is not None:
            raise BadValue("", f"{self.damage}; stop edged on the device and run edged trust reset")

    def _is_repeat(self, topic: str, document: dict[str, Any], layer: Layer) -> bool:
        """Whether it is what was applied last on this topic. Raises BadValue for what is below the floor."""
        floor = self.record.floors.get(topic)
        if floor is None or layer.revision > floor.revision:
            return False
        push_higher = f"push a revision above {floor.revision}"
        if layer.revision < floor.revision:
            sentence = f"{layer.revision} is below {floor.revision}, which was applied on this topic; {push_higher}"
            raise BadValue("revision", sentence)
        if floor.content != signatures.content_digest(document):
            raise BadValue("revision", f"{layer.revision} was applied with other content; {push_higher}")
        return True

    def _check_change(self, change: TrustChange, signer: str | None) -> None:
        if signer is None:
            raise BadValue("trust", "only a signed layer may add or withdraw keys; sign it with a known key")
        for name, key in change.keys.items():
            self._check_added(f"trust.keys.{name}", name, key, signer)
        if len({*self.keys, *change.keys}) > MAX_KEYS:
            raise BadValue("trust.keys", f"would be more than {MAX_KEYS} keys; withdraw some first")
        for name in change.withdraw:
            if name == signer:
                raise BadValue("trust.withdraw", "names the key that signed the layer; sign with another key")
            if name not in self.keys and name not in self.record.withdrawn.values():
                raise BadValue("trust.withdraw", f"names {checks.shown(name)}, which is no key of this device")

    def _check_added(self, path: str, name: str, key: str, signer: str) -> None:
        known = self.keys
        if key in self.record.withdrawn:
            raise BadValue(path, "this key was withdrawn; make a new one with edgectl keys new")
        if name == signer or key == known[signer]:
            raise BadValue(path, "is the key that signed the layer; sign with another key to change it")
        if known.get(name, key) != key or name in self.record.withdrawn.values():
            raise BadValue(path, "is the name of another key already; give the new key a new name")
        if key in known.values() and name not in known:
            raise BadValue(path, "this key is known under another name already; use that name")


def _check_signature(
    keys: Sequence[tuple[str, str]],
    topic: str,
    document: dict[str, Any],
    signature: Signature | None,
    what: str = "layer",
    command: str = "config",
) -> None:
    if signature is None:
        sentence = f"is required on this device; sign the {what} with edgectl {command} push --key FILE"
        raise BadValue("signature", sentence)
    named = [key for name, key in keys if name == signature.key]
    if not named:
        raise BadValue("signature.key", f"{checks.shown(signature.key)} is no key that this device knows")
    if not any(signatures.is_signed_by(key, topic, document) for key in named):
        raise BadValue("signature.value", f"does not match: the {what} was changed, or signed for another topic or key")
