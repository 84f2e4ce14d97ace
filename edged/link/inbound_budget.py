"""Bounds the bytes of messages that came and are not acknowledged yet. A broker owes no such bound to 3.1.1, and a
defective one may ignore the Receive Maximum of MQTT 5.
"""

from __future__ import annotations

MAX_BYTES = 50_000_000  # above two messages of the largest size


class InboundBudget:
    """`receive` belongs to the network thread, `acknowledge` to the thread that acknowledges; each has a counter."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._received = 0
        self._acknowledged = 0

    @property
    def exceeded(self) -> bool:
        """Whether more is held than may be."""
        return self._received - self._acknowledged > self._max_bytes

    def receive(self, size: int) -> None:
        """A message of `size` bytes is held from now on."""
        self._received += size

    def acknowledge(self, size: int) -> None:
        """One is no longer held."""
        self._acknowledged += size
