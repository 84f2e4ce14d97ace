"""What other threads post for the main loop. Bounded where a sender could flood it; all other events are kept.

`post` may be called from any thread and from a signal handler, `post_from_link` from the network's; `get` is the main
thread's.
"""

from __future__ import annotations

import queue

from edged.agent.events import Event, FromPool
from edged.link.events import Arrived
from edged.link.events import Event as LinkEvent

LIMIT = 5000  # events beyond which messages at QoS 0 are dropped and counted
MAX_BYTES = 32_000_000  # of payloads, likewise
_POOL_LIMIT = 100  # events beyond which prompts of pools at QoS 0 are dropped and counted
_BATCH = 500


class Mailbox:
    """Events in the order in which they came. `dropped` counts messages that were dropped because it was full."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._bytes_in = self._bytes_out = 0  # one is the network thread's, the other the main thread's
        self.dropped = 0

    def __len__(self) -> int:
        return self._events.qsize()

    def post(self, event: Event) -> None:
        """Add an event."""
        self._events.put(event)

    def post_from_link(self, event: LinkEvent) -> None:
        """Add an event of the network thread. Only a flood at QoS 0 is dropped: nothing else could bound it."""
        if isinstance(event, Arrived):
            full = len(self) > LIMIT or self._bytes_in - self._bytes_out > MAX_BYTES
            if event.qos == 0 and full:
                self.dropped += 1
                return
            self._bytes_in += len(event.payload)
        self.post(event)

    def post_from_pool(self, event: FromPool) -> None:
        """Add an event of the second connection, on its network thread, likewise."""
        if isinstance(event.event, Arrived) and event.event.qos == 0 and len(self) > _POOL_LIMIT:
            self.dropped += 1
            return
        self.post(event)

    def get(self, timeout: float) -> list[Event]:
        """The events that wait, at most a batch; waits up to `timeout` seconds for the first."""
        events: list[Event] = []
        try:
            events.append(self._events.get(timeout=timeout))
            while len(events) < _BATCH:
                events.append(self._events.get_nowait())
        except queue.Empty:
            pass
        self._bytes_out += sum(len(event.payload) for event in events if isinstance(event, Arrived))
        return events
