"""One message at QoS 1 on its way to the broker. Frozen data."""

from __future__ import annotations

import msgspec


class Publication(msgspec.Struct, frozen=True):
    """A message at QoS 1. A retained one replaces an older one of the same topic that still waits.

    `token` is given to `on_delivered` when the broker has the message.
    """

    topic: str
    payload: bytes
    retain: bool = False
    content_type: str | None = "application/json"
    correlation: bytes | None = None
    token: object = None

    @property
    def size(self) -> int:
        """Bytes that it holds and sends, all but the packet's overhead."""
        return size_of(self.topic, self.payload, self.correlation)


def size_of(topic: str, payload: bytes, correlation: bytes | None) -> int:
    """Bytes of a message, all but the packet's overhead."""
    return len(topic.encode()) + len(payload) + len(correlation or b"")
