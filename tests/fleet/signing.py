"""Keys and signed layers for tests, made without the code that is tested."""

from __future__ import annotations

import base64
import json
from typing import Any

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


class Key:
    """A named private key; the same number always gives the same key."""

    def __init__(self, name: str, number: int = 0) -> None:
        self.name = name
        self._private = Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
        self.public = base64.b64encode(self._private.public_key().public_bytes_raw()).decode()

    def sign(self, topic: str, layer: dict[str, Any], **changed: Any) -> bytes:
        """The layer, signed for this topic; `changed` replaces parts of the signature afterwards."""
        head = {"key": self.name, "alg": "ed25519"}
        covered = topic.encode() + b"\n" + rfc8785.dumps({**layer, "signature": head})
        value = base64.b64encode(self._private.sign(covered)).decode()
        return json.dumps({**layer, "signature": {**head, "value": value, **changed}}).encode()
