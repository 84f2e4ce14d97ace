"""What a signature covers, byte for byte, and what it does not."""

from __future__ import annotations

import base64
import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edged.wire import signatures

PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = base64.b64encode(PRIVATE.public_key().public_bytes_raw()).decode()
TOPIC = "edged/v1/home/device/pi/config"


def test_a_signature_covers_topic_line_feed_and_the_canonical_layer() -> None:
    covered: list[bytes] = []

    def sign(message: bytes) -> bytes:
        covered.append(message)
        return bytes(64)

    layer: dict[str, Any] = {"settings": {"generation": {"top_p": 1.0, "temperature": 1e-7}}, "revision": 3}
    signed = signatures.signed(layer, TOPIC, "ops", sign)
    body = (
        b'{"revision":3,"settings":{"generation":{"temperature":1e-7,"top_p":1}},'
        b'"signature":{"alg":"ed25519","key":"ops"}}'
    )
    assert [TOPIC.encode() + b"\n" + body] == covered
    assert {"key": "ops", "alg": "ed25519", "value": base64.b64encode(bytes(64)).decode()} == signed["signature"]


def test_a_known_layer_has_a_known_signature() -> None:
    """Ed25519 is deterministic: another implementation must come to the same 64 bytes."""
    layer = {"revision": 12, "settings": {"generation": {"max_tokens": 64}}}
    signed = signatures.signed(layer, TOPIC, "ops-2026", PRIVATE.sign)
    assert "A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=" == PUBLIC
    assert KNOWN == signed["signature"]["value"]
    assert signatures.is_signed_by(PUBLIC, TOPIC, signed)
    assert signatures.is_signed_by(PUBLIC, TOPIC, json.loads(json.dumps(signed, indent=2)))


# openssl pkeyutl -sign -rawin, of the bytes that the module's first line describes
KNOWN = "5wqHvKPMWxIS3O1XlYQjpr4sdcQRGF3bjA/o5hBCs4nMxmzqW6qQZoyRAAyRBu4EVGktGp1M/1NRr7UGZGSXCA=="


def test_another_topic_key_or_content_does_not_match() -> None:
    signed = signatures.signed({"revision": 1, "settings": {}}, TOPIC, "ops", PRIVATE.sign)
    assert not signatures.is_signed_by(PUBLIC, TOPIC + "x", signed)
    assert not signatures.is_signed_by(base64.b64encode(bytes(32)).decode(), TOPIC, signed)
    assert not signatures.is_signed_by(PUBLIC, TOPIC, {**signed, "revision": 2})
    other_name = {**signed, "signature": {**signed["signature"], "key": "other"}}
    assert not signatures.is_signed_by(PUBLIC, TOPIC, other_name)


def test_the_content_of_a_layer_does_not_depend_on_who_signed_it() -> None:
    layer = {"revision": 1, "settings": {}}
    signed = signatures.signed(layer, TOPIC, "ops", PRIVATE.sign)
    assert signatures.content_digest(layer) == signatures.content_digest(signed)
    assert signatures.content_digest(layer) != signatures.content_digest({**layer, "revision": 2})
