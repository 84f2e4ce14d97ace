"""What waits to be published at QoS 1: bounded, in order, a window at a time, again after a reconnect.

Owned by the agent's main thread; the connection's events are handed in by it. paho's own queue stays empty.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Protocol

import msgspec

ACK_DEADLINE = 20.0  # a broker that takes longer has lost us; MQTT has no retransmission while connected
MAX_BYTES = 8_000_000
MAX_FLEETING_BYTES = 1_000_000  # QoS 0 on its way into the socket; beyond it chunks are dropped, finals heal them


class Publication(msgspec.Struct, frozen=True):
    """One message at QoS 1. `retain` ones replace an older one of the same topic that still waits."""

    topic: str
    payload: bytes
    retain: bool = False
    content_type: str | None = "application/json"
    correlation: bytes | None = None
    token: object = None
    """Given back by `on_delivered` when the broker has it."""

    @property
    def size(self) -> int:
        """Bytes that it holds and sends, all but the packet's overhead."""
        return _size(self.topic, self.payload, self.correlation)


def _size(topic: str, payload: bytes, correlation: bytes | None) -> int:
    return len(topic.encode()) + len(payload) + len(correlation or b"")


class Publisher(Protocol):
    """The part of `Connection` that is used here."""

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


class Outbound:
    """See the module. `on_delivered(token)` is called for publications that carry one."""

    def __init__(
        self, publisher: Publisher, on_delivered: Callable[[object], None], clock: Callable[[], float]
    ) -> None:
        self._publisher = publisher
        self._on_delivered = on_delivered
        self._clock = clock
        self._waiting: deque[Publication] = deque()
        self._sent: OrderedDict[int, tuple[Publication, float]] = OrderedDict()
        self._bytes = 0
        self._fleeting: dict[int, int] = {}
        self._fleeting_bytes = 0
        self._session: int | None = None
        self._window = 1
        self._max_packet: int | None = None
        self.dropped = 0
        self.refused_topic: str | None = None

    @property
    def backlog(self) -> int:
        """Publications that the broker has not confirmed yet."""
        return len(self._waiting) + len(self._sent)

    def holds(self, token: object) -> bool:
        """Whether a publication with this token is on its way."""
        return any(p.token == token for p in self._waiting) or any(p.token == token for p, _ in self._sent.values())

    def fits(self, topic: str, payload: bytes, correlation: bytes | None) -> bool:
        """Whether the broker takes a message of this size."""
        return not self._too_large(_size(topic, payload, correlation))

    def up(self, session: int, window: int, max_packet: int | None) -> None:
        """A connection stands: everything unconfirmed is sent again."""
        self._back_to_waiting()
        self._session, self._window, self._max_packet = session, window, max_packet
        self.refused_topic = None
        self.flush()

    def down(self) -> None:
        """The connection is gone; what it had not confirmed waits again."""
        self._back_to_waiting()
        self._session = None

    def send(self, publication: Publication) -> bool:
        """Queue a publication. False: the budget is full, or the broker would refuse its size."""
        if publication.retain:
            self._forget_older(publication.topic)
        size = publication.size
        if self._too_large(size) or self._bytes + size > MAX_BYTES:
            self.dropped += 1
            return False
        self._bytes += size
        self._waiting.append(publication)
        self.flush()
        return True

    def send_now(self, topic: str, payload: bytes, content_type: str | None, correlation: bytes | None) -> bool:
        """Publish at QoS 0 if the broker is there and keeps up; else the message is dropped (False)."""
        size = _size(topic, payload, correlation)
        if self._session is None or self._too_large(size) or self._fleeting_bytes + size > MAX_FLEETING_BYTES:
            return False
        mid = self._publisher.publish(
            self._session, topic, payload, qos=0, content_type=content_type, correlation=correlation
        )
        if mid is None:
            return False
        self._fleeting[mid] = size
        self._fleeting_bytes += size
        return True

    def acked(self, session: int, mid: int, refused: str | None = None) -> None:
        """Packet `mid` of `session` is confirmed (QoS 1) or written to the socket (QoS 0).

        One that the broker refused is done with too, since it would refuse it again: `refused_topic` names the last.
        """
        if session != self._session:
            return
        self._fleeting_bytes -= self._fleeting.pop(mid, 0)
        if mid not in self._sent:
            return
        publication, _ = self._sent.pop(mid)
        self._bytes -= publication.size
        if refused is not None:
            self.refused_topic = publication.topic
            self.dropped += 1
        if publication.token is not None:
            self._on_delivered(publication.token)
        self.flush()

    def overdue(self) -> bool:
        """Whether the oldest sent publication has waited too long for its confirmation."""
        if not self._sent:
            return False
        _, sent_at = next(iter(self._sent.values()))
        return self._clock() - sent_at > ACK_DEADLINE

    def flush(self) -> None:
        """Send as many as the window allows."""
        while self._session is not None and self._waiting and len(self._sent) < self._window:
            publication = self._waiting[0]
            if self._too_large(publication.size):  # queued before this broker said what it takes
                self._waiting.popleft()
                self._bytes -= publication.size
                self.dropped += 1
                continue
            mid = self._publisher.publish(
                self._session,
                publication.topic,
                publication.payload,
                qos=1,
                retain=publication.retain,
                content_type=publication.content_type,
                correlation=publication.correlation,
            )
            if mid is None:
                return
            self._waiting.popleft()
            self._sent[mid] = (publication, self._clock())

    def _too_large(self, size: int) -> bool:
        overhead = 256  # fixed header, packet id and properties
        return self._max_packet is not None and size + overhead > self._max_packet

    def _forget_older(self, topic: str) -> None:
        kept = deque(p for p in self._waiting if not (p.retain and p.topic == topic))
        for publication in self._waiting:
            if publication.retain and publication.topic == topic:
                self._bytes -= publication.size
        self._waiting = kept

    def _back_to_waiting(self) -> None:
        self._waiting.extendleft(publication for publication, _ in reversed(self._sent.values()))
        self._sent.clear()
        self._fleeting.clear()
        self._fleeting_bytes = 0
