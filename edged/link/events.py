"""What a connection posts to its owner. Frozen data."""

from __future__ import annotations

import msgspec


class Up(msgspec.Struct, frozen=True):
    """Connected and subscribed. `session` counts the attempts and names this one, `version` is `5` or `3.1.1`.

    `window` bounds unacknowledged publishes, `max_packet` their size in bytes (None: no bound). `refused` are the
    topic filters that the broker did not grant.
    """

    session: int
    version: str
    window: int
    max_packet: int | None
    refused: tuple[str, ...]


class Down(msgspec.Struct, frozen=True):
    """Not connected: `reason` is a sentence for people. `retry_in` seconds until the next attempt.

    `taken_over`: another client uses our client id. `closed_by_broker`: a connection that was up was ended by the other
    side, and not because of such a client. `excess`: the broker sent more than it may, so the connection was closed.
    """

    reason: str
    retry_in: float
    taken_over: bool
    closed_by_broker: bool = False
    excess: bool = False


class Arrived(msgspec.Struct, frozen=True):
    """A message. `mid` is to be acknowledged on the same `session` where `qos` is above 0.

    `unreadable`: why only its topic could be read. The payload is then empty and means nothing.
    """

    session: int
    topic: str
    payload: bytes
    qos: int
    retain: bool
    mid: int
    response_topic: str | None = None
    correlation: bytes | None = None
    expiry_s: int | None = None
    content_type: str | None = None
    unreadable: str | None = None


class Acked(msgspec.Struct, frozen=True):
    """The broker confirmed a publish at QoS 1, or one at QoS 0 was written to the socket.

    `refused`: the broker's reason for refusing it; `temporary`: it may accept the same message later.
    """

    session: int
    mid: int
    refused: str | None = None
    temporary: bool = False


Event = Up | Down | Arrived | Acked
