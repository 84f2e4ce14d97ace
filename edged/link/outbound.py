"""What waits to be published at QoS 1: bounded, in order, a window at a time, again after a reconnect.

Owned by the agent's main thread, which hands in the connection's events. paho's own queue stays empty.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import Protocol

from edged.link.publication import Publication, size_of
from edged.link.suspect import Suspect

ACK_DEADLINE = 20.0  # seconds; MQTT retransmits nothing while connected, so a later PUBACK will not come
MAX_BYTES = 8_000_000
CONGESTED_AT = 500  # publications
CONGESTED_BYTES = 1_000_000  # leaves space for what a broker may still send unacknowledged: 100 with 64 KB each
SHORT = 1000  # bytes of a payload that is not refused for its size: a shorter answer would not help
MAX_QOS0_BYTES = 1_000_000  # QoS 0 on its way into the socket; above it chunks are dropped, the final has all text
_PACKET_OVERHEAD = 256  # fixed header, packet id and properties


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
    """See the module. `on_delivered(token)` is called for publications that carry one.

    `dropped` counts publications that are lost, `refused_topic` is the topic that the broker refused last, if any.
    """

    def __init__(
        self, publisher: Publisher, on_delivered: Callable[[object], None], clock: Callable[[], float]
    ) -> None:
        self.dropped = 0
        self.refused_topic: str | None = None
        self._publisher = publisher
        self._on_delivered = on_delivered
        self._clock = clock
        self._waiting: deque[Publication] = deque()
        self._sent: OrderedDict[int, tuple[Publication, float]] = OrderedDict()  # by packet id, and when
        self._tokens: Counter[object] = Counter()  # of what waits or is sent
        self._bytes = 0
        self._qos0: dict[int, int] = {}  # bytes by packet id
        self._qos0_bytes = 0
        self._session: int | None = None
        self._window = 1
        self._max_packet: int | None = None
        self._suspect = Suspect(clock)

    @property
    def backlog(self) -> int:
        """Publications that the broker has not confirmed yet."""
        return len(self._waiting) + len(self._sent)

    @property
    def congested(self) -> bool:
        """Whether so much waits, in number or bytes, that no more work should be accepted."""
        return self.backlog >= CONGESTED_AT or self._bytes > CONGESTED_BYTES

    def holds(self, token: object) -> bool:
        """Whether a publication with this token is on its way."""
        return token in self._tokens

    def fits(self, topic: str, payload: bytes, correlation: bytes | None) -> bool:
        """Whether the broker accepts a message of this size, and has not closed the connection on this long one."""
        if len(payload) > SHORT and self._suspect.is_set_aside(topic, payload, correlation):
            return False
        return not self._too_large(size_of(topic, payload, correlation))

    def overdue(self) -> bool:
        """Whether the oldest sent publication has waited too long for its confirmation."""
        if not self._sent:
            return False
        _, sent_at = next(iter(self._sent.values()))
        return self._clock() - sent_at > ACK_DEADLINE

    # ---- the connection's events -------------------------------------------------------------------------------------

    def up(self, session: int, window: int, max_packet: int | None) -> None:
        """A connection is up: everything unconfirmed is sent again, but for what the broker closes connections on."""
        self._back_to_waiting()
        self._session, self._window, self._max_packet = session, window, max_packet
        self.refused_topic = None
        if self._suspect.is_certain:
            self._set_suspect_aside()
        self.flush()

    def down(self, *, closed_by_broker: bool = False) -> None:
        """The connection is gone; what it had not confirmed waits again."""
        oldest, sent_at = next(iter(self._sent.values()), (None, 0.0))
        self._suspect.connection_ended(oldest, sent_at, closed_by_broker=closed_by_broker)
        self._back_to_waiting()
        self._session = None

    def acked(self, session: int, mid: int, refused: str | None = None, *, temporary: bool = False) -> None:
        """Packet `mid` of `session` is confirmed (QoS 1) or written to the socket (QoS 0).

        One that the broker refused is done with too, since it would refuse it again: `refused_topic` names the last.
        A `temporary` refusal delivers nothing: the publication is forgotten, and who gave it a token sends it again.
        """
        if session != self._session:
            return
        self._qos0_bytes -= self._qos0.pop(mid, 0)
        if mid not in self._sent:
            return
        publication, _ = self._sent.pop(mid)
        self._forget(publication)
        self._suspect.clear()
        again = temporary and publication.token is not None
        if refused is not None:
            self.refused_topic = publication.topic
            self.dropped += 0 if again else 1
        elif self.refused_topic == publication.topic:
            self.refused_topic = None
        if publication.token is not None and not again:
            self._on_delivered(publication.token)
        self.flush()

    # ---- publishing --------------------------------------------------------------------------------------------------

    def send(self, publication: Publication) -> bool:
        """Queue a publication. False: the budget is full, the broker would refuse its size, or it is set aside."""
        if publication.retain:
            self._forget_older(publication.topic)
        size = publication.size
        set_aside = self._suspect.is_set_aside(publication.topic, publication.payload, publication.correlation)
        if set_aside or self._too_large(size) or self._bytes + size > MAX_BYTES:
            self.dropped += 1
            return False
        self._bytes += size
        if publication.token is not None:
            self._tokens[publication.token] += 1
        self._waiting.append(publication)
        self.flush()
        return True

    def send_now(self, topic: str, payload: bytes, content_type: str | None, correlation: bytes | None) -> bool:
        """Publish at QoS 0 if the broker is there and keeps up; else the message is dropped (False)."""
        size = size_of(topic, payload, correlation)
        if self._suspect.publication is not None:  # it is sent alone, so that the broker can close for it alone
            return False
        if self._session is None or self._too_large(size) or self._qos0_bytes + size > MAX_QOS0_BYTES:
            return False
        mid = self._publisher.publish(
            self._session, topic, payload, qos=0, content_type=content_type, correlation=correlation
        )
        if mid is None:
            return False
        self._qos0[mid] = size
        self._qos0_bytes += size
        return True

    def flush(self) -> None:
        """Send as many as the window allows."""
        window = self._window if self._suspect.publication is None else 1
        while self._session is not None and self._waiting and len(self._sent) < window:
            publication = self._waiting[0]
            if self._too_large(publication.size):  # queued before this broker's limit was known
                self._drop_first()
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
        return self._max_packet is not None and size + _PACKET_OVERHEAD > self._max_packet

    def _forget_older(self, topic: str) -> None:
        for older in [p for p in self._waiting if p.retain and p.topic == topic]:
            self._forget(older)
        self._waiting = deque(p for p in self._waiting if not (p.retain and p.topic == topic))

    def _drop_first(self) -> None:
        self._forget(self._waiting.popleft())
        self.dropped += 1

    def _forget(self, publication: Publication) -> None:
        """It neither waits nor is on its way any more."""
        self._bytes -= publication.size
        if publication.token is not None:
            self._tokens[publication.token] -= 1
            if not self._tokens[publication.token]:
                del self._tokens[publication.token]

    def _set_suspect_aside(self) -> None:
        """Drop what the broker closes the connection on, since it blocks all that wait behind it.

        Nothing was delivered: who gave it a token tries again. A long payload may be too large: `fits` refuses it for
        now, so that its sender sends something shorter.
        """
        publication = self._suspect.publication
        self._suspect.clear()
        if publication is None or not self._waiting or self._waiting[0] is not publication:
            return  # a newer one has replaced it
        self._drop_first()
        self.refused_topic = publication.topic
        if publication.token is not None:
            self._suspect.set_aside(publication)

    def _back_to_waiting(self) -> None:
        self._waiting.extendleft(publication for publication, _ in reversed(self._sent.values()))
        self._sent.clear()
        self._qos0.clear()
        self._qos0_bytes = 0
