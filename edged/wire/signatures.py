"""Signatures of config layers: Ed25519 over UTF-8(full topic) ‖ 0x0A ‖ RFC 8785(layer without `signature.value`).

The libraries are imported by the first use: a device that gets no signed layer does not load them.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import Any

from edged.core.errors import BadValue


def is_signed_by(public_key: str, topic: str, document: dict[str, Any]) -> bool:
    """Whether the layer `document` has a valid signature of this key (base64) for this topic."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    value = base64.b64decode(document["signature"]["value"])
    try:
        Ed25519PublicKey.from_public_bytes(base64.b64decode(public_key)).verify(value, _covered(topic, document))
    except (InvalidSignature, ValueError):
        return False
    return True


def signed(document: dict[str, Any], topic: str, key: str, sign: Callable[[bytes], bytes]) -> dict[str, Any]:
    """The layer with a signature for this topic. `sign` makes the 64 bytes with the private key named `key`.

    Raises BadValue where the layer has no canonical form.
    """
    head = {"key": key, "alg": "ed25519"}
    unsigned = {**document, "signature": head}
    return {**unsigned, "signature": {**head, "value": base64.b64encode(sign(_covered(topic, unsigned))).decode()}}


def content_digest(document: dict[str, Any]) -> str:
    """SHA-256 of what a layer says, whoever signed it: of RFC 8785(layer without `signature`)."""
    return hashlib.sha256(_canonical({key: value for key, value in document.items() if key != "signature"})).hexdigest()


def _covered(topic: str, document: dict[str, Any]) -> bytes:
    """The bytes that a signature is made over."""
    head = {key: value for key, value in document["signature"].items() if key != "value"}
    return topic.encode() + b"\n" + _canonical({**document, "signature": head})


def _canonical(document: dict[str, Any]) -> bytes:
    import rfc8785

    try:
        return rfc8785.dumps(document)
    except ValueError as error:
        raise BadValue("", f"the layer has no canonical form ({error})") from None
