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
CROWD = 500  # publications
CROWD_BYTES = 1_000_000  # there is room for what a broker may still send unacknowledged: 100 with 64 KB of correlation
# A lost network is noticed by the keep-alive or by ACK_DEADLINE, tens of seconds later; a peer that closes is noticed
# within a few. Three in a row, the last two with nothing else on its way, are hardly a poor network's doing; but a
# broker in trouble may do so, too, and what is set aside for it is tried again later.
HANG_UPS = 3
ASIDE_FOR = 600.0
MAX_ASIDE = 1000
HANG_UP_WITHIN = 5.0
SHORT = 1000  # bytes of a payload that is not refused for its size: a shorter answer would fare no better
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
        # The publication that was the oldest unconfirmed one when the broker hung up, and how often in a row.
        self._suspect: Publication | None = None
        self._strikes = 0
        self._aside: OrderedDict[int, float] = OrderedDict()  # hashes of what the broker hung up on, and until when
        self.dropped = 0
        self.refused_topic: str | None = None

    @property
    def backlog(self) -> int:
        """Publications that the broker has not confirmed yet."""
        return len(self._waiting) + len(self._sent)

    @property
    def crowded(self) -> bool:
        """Whether so much waits, in number or bytes, that no more work should be taken on."""
        return self.backlog >= CROWD or self._bytes > CROWD_BYTES

    def holds(self, token: object) -> bool:
        """Whether a publication with this token is on its way."""
        return any(p.token == token for p in self._waiting) or any(p.token == token for p, _ in self._sent.values())

    def fits(self, topic: str, payload: bytes, correlation: bytes | None) -> bool:
        """Whether the broker takes a message of this size, and has not hung up on this long one again and again."""
        if len(payload) > SHORT and self._is_aside(topic, payload, correlation):
            return False
        return not self._too_large(_size(topic, payload, correlation))

    def up(self, session: int, window: int, max_packet: int | None) -> None:
        """A connection stands: everything unconfirmed is sent again, but for what the broker hangs up on."""
        self._back_to_waiting()
        self._session, self._window, self._max_packet = session, window, max_packet
        self.refused_topic = None
        if self._strikes >= HANG_UPS:
            self._give_up_suspect()
        self.flush()

    def down(self, *, hung_up: bool = False) -> None:
        """The connection is gone; what it had not confirmed waits again. `hung_up`: the other side ended it."""
        oldest, sent_at = next(iter(self._sent.values()), (None, 0.0))
        # An end that came late, with nothing on its way or after an attempt that failed, speaks for a poor network:
        # the count begins anew.
        if not hung_up or oldest is None or self._clock() - sent_at > HANG_UP_WITHIN:
            self._suspect, self._strikes = None, 0
        elif oldest is self._suspect:
            self._strikes += 1
        else:
            self._suspect, self._strikes = oldest, 1
        self._back_to_waiting()
        self._session = None

    def send(self, publication: Publication) -> bool:
        """Queue a publication. False: the budget is full, the broker would refuse its size, or it is set aside."""
        if publication.retain:
            self._forget_older(publication.topic)
        size = publication.size
        aside = self._is_aside(publication.topic, publication.payload, publication.correlation)
        if aside or self._too_large(size) or self._bytes + size > MAX_BYTES:
            self.dropped += 1
            return False
        self._bytes += size
        self._waiting.append(publication)
        self.flush()
        return True

    def send_now(self, topic: str, payload: bytes, content_type: str | None, correlation: bytes | None) -> bool:
        """Publish at QoS 0 if the broker is there and keeps up; else the message is dropped (False)."""
        size = _size(topic, payload, correlation)
        if self._suspect is not None:  # it goes out alone, so that only it can be what the broker hangs up on
            return False
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

    def acked(self, session: int, mid: int, refused: str | None = None, *, temporary: bool = False) -> None:
        """Packet `mid` of `session` is confirmed (QoS 1) or written to the socket (QoS 0).

        One that the broker refused is done with too, since it would refuse it again: `refused_topic` names the last.
        A `temporary` refusal delivers nothing: the publication is forgotten, and who gave it a token sends it again.
        """
        if session != self._session:
            return
        self._fleeting_bytes -= self._fleeting.pop(mid, 0)
        if mid not in self._sent:
            return
        publication, _ = self._sent.pop(mid)
        self._bytes -= publication.size
        self._suspect, self._strikes = None, 0
        again = temporary and publication.token is not None
        if refused is not None:
            self.refused_topic = publication.topic
            self.dropped += 0 if again else 1
        elif self.refused_topic == publication.topic:
            self.refused_topic = None
        if publication.token is not None and not again:
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
        window = self._window if self._suspect is None else 1
        while self._session is not None and self._waiting and len(self._sent) < window:
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

    def _give_up_suspect(self) -> None:
        """Set aside what the broker hangs up on, since it blocks all that waits behind it.

        Nothing was delivered: who gave it a token tries again. A long payload may be too large: `fits` refuses it for
        now, so that its sender says something shorter.
        """
        publication, self._suspect, self._strikes = self._suspect, None, 0
        if publication is None or not self._waiting or self._waiting[0] is not publication:
            return  # a newer one has replaced it
        self._waiting.popleft()
        self._bytes -= publication.size
        self.dropped += 1
        self.refused_topic = publication.topic
        if publication.token is not None:
            key = hash((publication.topic, publication.payload, publication.correlation))
            self._aside[key] = self._clock() + ASIDE_FOR
            if len(self._aside) > MAX_ASIDE:
                self._aside.popitem(last=False)

    def _is_aside(self, topic: str, payload: bytes, correlation: bytes | None) -> bool:
        if not self._aside:
            return False
        return self._aside.get(hash((topic, payload, correlation)), 0.0) > self._clock()

    def _back_to_waiting(self) -> None:
        self._waiting.extendleft(publication for publication, _ in reversed(self._sent.values()))
        self._sent.clear()
        self._fleeting.clear()
        self._fleeting_bytes = 0
