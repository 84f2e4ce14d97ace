"""Config layers and the reported state: bytes ↔ types."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from edged import __version__
from edged.config import checks
from edged.config.keys import MAX_KEYS, base64_of, check_layer, key_name, trust_keys
from edged.core.errors import BadValue
from edged.core.golden import GoldenResult
from edged.wire import strict_json
from edged.wire.prompts import timestamp
from edged.wire.replies import rfc3339
from edged.wire.rollouts import Rollout, rollout

MAX_BYTES = 262_144
MAX_KEPT_SETTINGS = 4_096  # characters of the settings that the history keeps of one layer
Phase = Literal["applied", "trial", "rolled_back", "rejected", "waiting"]


class Signature(msgspec.Struct, frozen=True):
    """Who signed a layer. `value` is the base64 text of the 64 bytes; `wire.signatures` verifies it."""

    key: str
    alg: str
    value: str


class TrustChange(msgspec.Struct, frozen=True):
    """Keys that a layer adds (name → public key) and withdraws (names)."""

    keys: dict[str, str] = msgspec.field(default_factory=dict)
    withdraw: tuple[str, ...] = ()


class Layer(msgspec.Struct, frozen=True):
    """One layer as it was pushed. `settings` are checked values by section and key; do not change them.

    `expires_at` (Unix time): the last moment to apply it for the first time. `rollout` None: for every device, at once.
    """

    revision: int
    settings: dict[str, Any]
    expires_at: float | None = None
    trust: TrustChange | None = None
    signature: Signature | None = None
    rollout: Rollout | None = None


class BadLayer(BadValue):
    """A push that cannot be a layer. `revision` None: not even that could be read."""

    def __init__(self, path: str, sentence: str, revision: int | None) -> None:
        super().__init__(path, sentence)
        self.revision = revision


class Reported(msgspec.Struct, frozen=True):
    """What became of the last push (`layer` None: there was none), and the revisions in force by layer.

    `at` is the Unix time of the decision, 0 before it has one. While a trial runs: its `step`, the share of that which
    is done, and the Unix time `since` when it runs. `golden`: how the golden prompts were answered.
    """

    phase: Phase
    layer: str | None
    revision: int | None
    reason: str
    in_force: Mapping[str, int]
    at: float = 0.0
    step: str | None = None
    done: float = 0.0
    since: float = 0.0
    golden: tuple[GoldenResult, ...] = ()


class Decided(msgspec.Struct, frozen=True):
    """One decision of the history. `key`: who signed the push. `settings` of an applied layer, as JSON text, where they
    are short enough to be kept; None for a layer that was removed.
    """

    phase: Phase
    layer: str | None
    revision: int | None
    reason: str
    at: float
    key: str | None = None
    settings: str | None = None


def signature(path: str, value: object) -> Signature:
    """The check of a `signature`, which is the same for layers and for offers of models."""
    known = {"key": key_name, "alg": checks.one_of("ed25519"), "value": base64_of(64, "an Ed25519 signature")}
    return Signature(**checks.record(path, value, known, required=("key", "alg", "value")))


def _trust_change(path: str, value: object) -> TrustChange:
    known = {"keys": trust_keys, "withdraw": checks.list_of(key_name, high=MAX_KEYS, distinct=True)}
    change = TrustChange(**checks.record(path, value, known))
    if both := sorted(set(change.keys) & set(change.withdraw)):
        raise BadValue(path, f"adds and withdraws the key {checks.shown(both[0])}; do one of the two")
    return change


_LAYER_KEYS: dict[str, checks.Check] = {
    "revision": checks.integer(0),
    "settings": lambda _path, value: check_layer(value),
    "expires_at": timestamp,
    "trust": _trust_change,
    "rollout": rollout,
    "signature": signature,
}


def parse_layer(payload: bytes) -> Layer:
    """A pushed payload → a layer. Raises BadLayer with the key and a sentence."""
    revision: int | None = None
    try:
        if len(payload) > MAX_BYTES:
            raise BadValue("", f"the layer has {len(payload)} bytes, above {MAX_BYTES}")
        try:
            document = strict_json.loads(payload)
        except BadValue as error:
            raise BadValue("", f"the layer {error.sentence}") from None
        if not isinstance(document, dict):
            raise BadValue("", f"the layer must be one JSON object, not {checks.shown(document)}")
        revision = _readable_revision(document)
        return Layer(**checks.record("", document, _LAYER_KEYS, required=("revision", "settings")))
    except BadValue as error:
        raise BadLayer(error.path, error.sentence, revision) from None


def _readable_revision(document: dict[str, Any]) -> int | None:
    try:
        return int(_LAYER_KEYS["revision"]("revision", document.get("revision")))
    except BadValue:
        return None


def reported(state: Reported, now: float) -> bytes:
    """The reported document."""
    document: dict[str, Any] = {"phase": state.phase, "layer": state.layer, "revision": state.revision}
    if state.phase == "trial":
        document |= {"step": state.step, "done": round(state.done, 3), "since": rfc3339(state.since)}
    document |= {
        "reason": state.reason,
        "in_force": dict(state.in_force),
        "version": __version__,
        "ts": rfc3339(state.at or now),
    }
    if state.golden:
        document["golden"] = [msgspec.to_builtins(result) for result in state.golden]
    return strict_json.dumps(document)


def settings_text(payload: bytes) -> str | None:
    """The `settings` of a valid layer as compact JSON text, as pushed; None where they are too long."""
    if not payload:
        return None
    text = strict_json.dumps(strict_json.loads(payload)["settings"]).decode()
    return text if len(text) <= MAX_KEPT_SETTINGS else None


def history(decisions: Sequence[Decided], now: float) -> bytes:
    """The history document: the last decisions, newest first."""
    return strict_json.dumps({"decisions": [_decided(one) for one in decisions], "ts": rfc3339(now)})


def _decided(one: Decided) -> dict[str, Any]:
    document: dict[str, Any] = {
        "phase": one.phase,
        "layer": one.layer,
        "revision": one.revision,
        "reason": one.reason,
        "key": one.key,
        "ts": rfc3339(one.at),
    }
    return document if one.settings is None else {**document, "settings": json.loads(one.settings)}
