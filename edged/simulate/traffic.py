"""Counts what simulated devices send and receive: messages, and the bytes of their topics and payloads."""

from __future__ import annotations

from edged.link.connection import Connection


class Traffic:
    """Counters of the whole simulation. Owned by the simulator's loop."""

    def __init__(self) -> None:
        self.messages_out = self.bytes_out = 0
        self.messages_in = self.bytes_in = 0

    def sent(self, topic: str, payload: bytes) -> None:
        """A device published."""
        self.messages_out += 1
        self.bytes_out += len(topic) + len(payload)

    def received(self, topic: str, payload: bytes) -> None:
        """A device received."""
        self.messages_in += 1
        self.bytes_in += len(topic) + len(payload)

    def take(self) -> tuple[int, int, int, int]:
        """Messages and bytes out, then in, since the last call."""
        found = (self.messages_out, self.bytes_out, self.messages_in, self.bytes_in)
        self.messages_out = self.bytes_out = self.messages_in = self.bytes_in = 0
        return found


class CountedConnection:
    """A `Publisher` that counts."""

    def __init__(self, connection: Connection, traffic: Traffic) -> None:
        self._connection = connection
        self._traffic = traffic

    def publish(
        self,
        session: int,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        retain: bool = False,
        content_type: str | None = None,
        correlation: bytes | None = None,
    ) -> int | None:
        """See `Connection.publish`."""
        mid = self._connection.publish(
            session, topic, payload, qos=qos, retain=retain, content_type=content_type, correlation=correlation
        )
        if mid is not None:
            self._traffic.sent(topic, payload)
        return mid
