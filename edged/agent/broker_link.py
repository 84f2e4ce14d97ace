"""The agent's side of the broker connection: its state, and messages whose acknowledgement is due.

Owned by the agent's main thread.
"""

from __future__ import annotations

from collections import deque

from edged.link.attempt import Subscription
from edged.link.connection import Connection
from edged.link.events import Acked, Arrived, Down, Up
from edged.link.outbound import Outbound
from edged.link.publication import Publication
from edged.wire import documents
from edged.wire.topics import Topics


def subscriptions(topics: Topics) -> tuple[Subscription, ...]:
    """What the device subscribes to. Layers are retained: the broker sends them at each connect."""
    live = [topics.prompts, topics.cancels, topics.commands, topics.status]
    if topics.birth is not None:
        live.append(topics.birth)
    return (
        *(Subscription(topic, retained=False) for topic in live),
        *(Subscription(topic, retained=True) for topic in topics.layers),
        Subscription(topics.offers, retained=False, qos=0),  # an offer is repeated while it holds
    )


class BrokerLink:
    """See the module. `down_reason`: why there is no connection, in a sentence; None while there is one."""

    def __init__(self, connection: Connection, outbound: Outbound) -> None:
        self._connection = connection
        self._outbound = outbound
        self._unacknowledged: deque[tuple[Arrived, Publication | None]] = deque()  # and what is published after it
        self._session = 0
        self.state = documents.LinkState("none", 0)
        self.down_reason: str | None = "not connected yet"
        self.refused_topics: tuple[str, ...] = ()
        self.excess = False  # the last connection was closed because of too much unacknowledged data

    def process_up(self, event: Up) -> None:
        """Connected and subscribed."""
        self.state = documents.LinkState(event.version, self.state.connects + 1)
        self._session, self.down_reason, self.refused_topics = event.session, None, event.refused
        # The broker sends what waited for us before it confirms the subscriptions: that belongs to this connection.
        # What was refused on an earlier one is delivered and decided again, but for what came at QoS 0.
        for message, answer in self._unacknowledged:
            if answer is not None and message.session != event.session and message.qos == 0:
                self._outbound.send(answer)
        self._unacknowledged = deque(item for item in self._unacknowledged if item[0].session == event.session)
        self._outbound.up(event.session, event.window, event.max_packet)

    def process_down(self, event: Down) -> None:
        """The connection ended, or an attempt failed."""
        self.down_reason, self.excess = event.reason, event.excess
        self._outbound.down(closed_by_broker=event.closed_by_broker)

    def process_acked(self, event: Acked) -> None:
        """The broker confirmed or refused a publication."""
        self._outbound.acked(event.session, event.mid, event.refused, temporary=event.temporary)

    def processed(self, message: Arrived, answer: Publication | None = None) -> None:
        """This message is stored or done with, and may be acknowledged after those before it.

        `answer` is published after the acknowledgement: a refusal must not go out while the broker may deliver the
        prompt again, to be decided otherwise.
        """
        self._unacknowledged.append((message, answer))

    def acknowledge(self) -> None:
        """Acknowledge while there is capacity for the answers: a broker sends no more than is acknowledged."""
        while self._unacknowledged and not self._outbound.congested:
            message, answer = self._unacknowledged.popleft()
            self._connection.acknowledge(message)
            if answer is not None:
                self._outbound.send(answer)

    def check_progress(self) -> None:
        """Reconnect where the broker has stopped acknowledging what is published."""
        if self._outbound.overdue():
            self._connection.restart("the broker does not acknowledge what is published")

    def redeliver(self, reason: str) -> None:
        """Reconnect, so that the broker sends again what was not acknowledged."""
        self._connection.restart(reason)

    def subscribe(self, *topics: str) -> None:
        """Subscribe at QoS 0 until `unsubscribe`, or the end of the broker's session."""
        self._connection.subscribe(self._session, tuple(Subscription(topic, retained=False, qos=0) for topic in topics))

    def unsubscribe(self, *topics: str) -> None:
        """End subscriptions that were added."""
        self._connection.unsubscribe(self._session, topics)
