"""Config layers as they are pushed, and the reported document."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from edged import __version__
from edged.wire import layers
from edged.wire.layers import BadLayer, Layer, Reported, Signature, TrustChange

KEY = base64.b64encode(bytes(32)).decode()
SIGNATURE = {"key": "ops", "alg": "ed25519", "value": base64.b64encode(bytes(64)).decode()}
LOOSE = SIGNATURE["value"].replace("A==", "B==")  # the same bytes, written in a way that no encoder does


def refusal(payload: Any) -> tuple[int | None, str]:
    """The revision as far as it could be read, and the reason."""
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    with pytest.raises(BadLayer) as caught:
        layers.parse_layer(raw)
    return caught.value.revision, str(caught.value)


def test_a_layer_has_a_revision_and_checked_settings() -> None:
    payload = b'{"revision":12,"settings":{"limits":{"prompt_bytes":"1KB"}}}'
    assert Layer(12, {"limits": {"prompt_bytes": 1000}}) == layers.parse_layer(payload)
    signed = {"revision": 1, "settings": {}, "signature": SIGNATURE, "expires_at": "2026-11-24T08:00:00Z"}
    trusted = {**signed, "trust": {"keys": {"next": KEY}, "withdraw": ["old"]}}
    change = TrustChange({"next": KEY}, ("old",))
    expected = Layer(1, {}, 1_795_507_200.0, change, Signature(**SIGNATURE))
    assert expected == layers.parse_layer(json.dumps(trusted).encode())
    assert 2**53 - 1 == layers.parse_layer(b'{"revision":9007199254740991,"settings":{}}').revision


@pytest.mark.parametrize(
    ("payload", "revision", "says"),
    [
        (b"hello", None, "the layer is not valid JSON"),
        (b"\xff", None, "the layer is not valid UTF-8"),
        (b"[1]", None, "the layer must be one JSON object"),
        (b'{"revision":1,"revision":2,"settings":{}}', None, 'the layer has the key "revision" twice'),
        (b'{"revision":1,"settings":' + b"[" * 100 + b"]" * 100 + b"}", None, "the layer is nested deeper"),
        (b" " * 262_145, None, "the layer has 262145 bytes, above 262144"),
        ({}, None, "revision: is required"),
        ({"revision": 3}, 3, "settings: is required"),
        ({"settings": {}}, None, "revision: is required"),
        ({"revision": -1, "settings": {}}, None, "revision: must be between 0 and 9007199254740991, not -1"),
        ({"revision": 2**53, "settings": {}}, None, "revision: must be between 0 and"),
        ({"revision": True, "settings": {}}, None, "revision: must be a whole number, not true"),
        ({"revision": 1.0, "settings": {}}, None, "revision: must be a whole number"),
        ({"revision": "1", "settings": {}}, None, "revision: must be a whole number"),
        ({"revision": 4, "settings": None}, 4, "settings: must not be null"),
        ({"revision": 4, "settings": []}, 4, "must be a mapping"),
        ({"revision": 4, "settings": {"generation": None}}, 4, "generation: must not be null"),
        ({"revision": 4, "settings": {"generation": {"seed": None}}}, 4, "generation.seed: must not be null"),
        ({"revision": 4, "settings": {"mqtt": {"url": "mqtt://evil"}}}, 4, "mqtt: is the owner's"),
        ({"revision": 4, "settings": {"identity": {}}}, 4, "identity: is the owner's"),
        ({"revision": 4, "settings": {"trust": {}}}, 4, "trust: is the owner's"),
        ({"revision": 4, "settings": {"state_dir": "/"}}, 4, "state_dir: is the owner's"),
        (
            {"revision": 4, "settings": {"generation": {"max_token": 1}}},
            4,
            "generation.max_token: unknown key (did you",
        ),
        ({"revision": 4, "settings": {"limits": {"queue": 0}}}, 4, "limits.queue: must be between 1"),
        ({"revision": 4, "settings": {}, "expires_at": "tomorrow"}, 4, "expires_at: must be a UTC time such as"),
        ({"revision": 4, "settings": {}, "rollout": {"id": "x"}}, 4, "rollout.percent: is required"),
        ({"revision": 4, "settings": {}, "signature": {"key": "x"}}, 4, "signature.alg: is required"),
        ({"revision": 4, "settings": {}, "signature": {**SIGNATURE, "alg": "rsa"}}, 4, "signature.alg: must be one of"),
        ({"revision": 4, "settings": {}, "signature": {**SIGNATURE, "kid": "x"}}, 4, "signature.kid: unknown key"),
        ({"revision": 4, "settings": {}, "signature": {**SIGNATURE, "value": "AA=="}}, 4, "signature.value: must be"),
        ({"revision": 4, "settings": {}, "signature": {**SIGNATURE, "value": LOOSE}}, 4, "signature.value: must be"),
        ({"revision": 4, "settings": {}, "trust": {"keys": {"a b": KEY}}}, 4, "trust.keys: must be a key's name"),
        ({"revision": 4, "settings": {}, "trust": {"keys": {"a": "AA=="}}}, 4, "trust.keys.a: must be an Ed25519"),
        ({"revision": 4, "settings": {}, "trust": {"keys": {"a": KEY, "b": KEY}}}, 4, "trust.keys: must not have the"),
        ({"revision": 4, "settings": {}, "trust": {"withdraw": "a"}}, 4, "trust.withdraw: must be a list"),
        ({"revision": 4, "settings": {}, "trust": {"keys": {"a": KEY}, "withdraw": ["a"]}}, 4, "trust: adds and"),
        ({"revision": 4, "settings": {}, "golden": []}, 4, "golden: unknown key"),
        ({"revision": 4, "settings": {"golden": [{}]}}, 4, "golden[0]: needs prompt or messages"),
    ],
)
def test_p05_a_bad_layer_is_refused_with_its_revision_and_the_key(
    payload: Any, revision: int | None, says: str
) -> None:
    found, sentence = refusal(payload)
    assert revision == found
    assert sentence.startswith(says), sentence


def test_the_reported_document() -> None:
    state = Reported("applied", "device", 12, "the layer is in force", {"fleet": 7, "device": 12})
    assert {
        "phase": "applied",
        "layer": "device",
        "revision": 12,
        "reason": "the layer is in force",
        "in_force": {"fleet": 7, "device": 12},
        "version": __version__,
        "ts": "2026-11-24T08:00:00.000Z",
    } == json.loads(layers.reported(state, 1_795_507_200.0))
