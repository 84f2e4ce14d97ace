"""The publication that may be why the broker closes the connection, and those that are set aside for that.

Some brokers close the connection at a message that they do not accept (too long a payload, too deep a topic) and give
no reason. The message is then sent again after each reconnect and blocks all that wait behind it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from edged.link.publication import Publication

# A lost network is noticed by the keep-alive or by a missing PUBACK, tens of seconds later; a peer that closes is
# noticed within a few. Three in a row, the last two with nothing else on its way, hardly come from a poor network; but
# a broker in trouble may do so, too, and what is set aside for it is tried again later.
CLOSES = 3
CLOSES_WITHIN = 5.0  # seconds after the publication was sent
SET_ASIDE_FOR = 600.0  # seconds
MAX_SET_ASIDE = 1000


class Suspect:
    """At most one suspect at a time. Owned by the `Outbound` that made it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.publication: Publication | None = None
        """The oldest unconfirmed publication when the broker closed the connection."""
        self._clock = clock
        self._closes = 0
        self._set_aside: OrderedDict[int, float] = OrderedDict()  # hash of a message → until when

    @property
    def is_certain(self) -> bool:
        """Whether the broker has closed the connection on it often enough in a row."""
        return self._closes >= CLOSES

    def connection_ended(self, oldest: Publication | None, sent_at: float, *, closed_by_broker: bool) -> None:
        """Count an end of the connection; `oldest` is the oldest unconfirmed publication, sent at `sent_at`.

        An end that came late, with nothing on its way, or after an attempt that failed, suggests network loss: the
        count starts again.
        """
        if not closed_by_broker or oldest is None or self._clock() - sent_at > CLOSES_WITHIN:
            self.clear()
        elif oldest is self.publication:
            self._closes += 1
        else:
            self.publication, self._closes = oldest, 1

    def clear(self) -> None:
        """There is no suspect: the broker has confirmed one, or the end had another cause."""
        self.publication, self._closes = None, 0

    def set_aside(self, publication: Publication) -> None:
        """Refuse this message for a while."""
        key = _key(publication.topic, publication.payload, publication.correlation)
        self._set_aside[key] = self._clock() + SET_ASIDE_FOR
        if len(self._set_aside) > MAX_SET_ASIDE:
            self._set_aside.popitem(last=False)

    def is_set_aside(self, topic: str, payload: bytes, correlation: bytes | None) -> bool:
        """Whether this message is refused for now."""
        if not self._set_aside:
            return False
        return self._set_aside.get(_key(topic, payload, correlation), 0.0) > self._clock()


def _key(topic: str, payload: bytes, correlation: bytes | None) -> int:
    return hash((topic, payload, correlation))
