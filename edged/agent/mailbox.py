"""What other threads post for the main loop. Bounded where a sender could flood it; everything else always fits.

`post` may be called from any thread and from a signal handler, `post_from_link` from the network's; `take` is the main
thread's.
"""

from __future__ import annotations

import queue

from edged.link.events import Arrived

LIMIT = 5000  # events beyond which messages at QoS 0 are dropped and counted
MAX_BYTES = 32_000_000  # of payloads, likewise
_BATCH = 500


class Mailbox:
    """Events in the order in which they came. `dropped` counts messages that found no room."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._bytes_in = self._bytes_out = 0  # one is the network thread's, the other the main thread's
        self.dropped = 0

    def __len__(self) -> int:
        return self._events.qsize()

    def post(self, event: object) -> None:
        """Put an event in."""
        self._events.put(event)

    def post_from_link(self, event: object) -> None:
        """Put in what the network thread has. A flood at QoS 0 is dropped here, since nothing else could bound it."""
        if isinstance(event, Arrived):
            full = len(self) > LIMIT or self._bytes_in - self._bytes_out > MAX_BYTES
            if event.qos == 0 and full:
                self.dropped += 1
                return
            self._bytes_in += len(event.payload)
        self.post(event)

    def take(self, timeout: float) -> list[object]:
        """What lies there, at most a batch; waits up to `timeout` seconds for the first."""
        events: list[object] = []
        try:
            events.append(self._events.get(timeout=timeout))
            while len(events) < _BATCH:
                events.append(self._events.get_nowait())
        except queue.Empty:
            pass
        self._bytes_out += sum(len(event.payload) for event in events if isinstance(event, Arrived))
        return events
