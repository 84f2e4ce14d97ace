"""One client's connection to its broker, made again whenever it ends.

A thread of this package runs one attempt after the other and owns the paho clients. `post` is called on that thread and
must not block. `publish`, `acknowledge`, `subscribe`, `unsubscribe` and `restart` may be called from any thread.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from edged.config.schema import Mqtt
from edged.link.attempt import RECEIVE_MAXIMUM, Attempt, SessionOptions, Subscription, Will
from edged.link.back_off import BackOff
from edged.link.events import Arrived, Down, Event


class Connection:
    """See the module. The constructor assigns; `start` and `stop` do.

    `persistent`: the broker keeps subscriptions and messages for us while we are away; without, every start is clean.
    `receive_maximum`: messages at QoS 1 that the broker may send unacknowledged (MQTT 5).
    `uniform(low, high)` draws the waiting times between attempts.
    """

    def __init__(
        self,
        settings: Mqtt,
        client_id: str,
        will: Will | None,
        subscriptions: tuple[Subscription, ...],
        post: Callable[[Event], None],
        *,
        persistent: bool = True,
        receive_maximum: int = RECEIVE_MAXIMUM,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._options = SessionOptions(settings, client_id, will, subscriptions, persistent, receive_maximum)
        self._post = post
        self._clock = clock
        self._back_off = BackOff(settings.version, clock, uniform)
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._attempt: Attempt | None = None  # replaced whole by the network thread at each connect
        self._session = 0
        self._progress_at = clock()
        self._waiting = False

    def idle_for(self) -> float:
        """Seconds since the network thread last made progress; waiting for the next attempt counts as progress."""
        return 0.0 if self._waiting else self._clock() - self._progress_at

    def start(self) -> None:
        """Begin to connect, and go on until `stop`."""
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 2.0) -> None:
        """Disconnect cleanly (the broker drops the will) and end the thread; wait for it at most `timeout` seconds."""
        self._stopping.set()
        self._wake.set()
        if self._attempt is not None:
            self._attempt.disconnect()
        if self._thread is not None:
            self._thread.join(timeout)

    def restart(self, reason: str) -> None:
        """Give up the current connection and make another: used when the broker stops answering."""
        if self._attempt is not None:
            self._attempt.give_up(reason)

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
        """Hand a message to the network thread; returns the packet id, or None where that session is no longer up."""
        attempt = self._attempt
        if attempt is None or session != attempt.session:
            return None
        return attempt.publish(
            topic, payload, qos=qos, retain=retain, content_type=content_type, correlation=correlation
        )

    def acknowledge(self, message: Arrived) -> None:
        """Send the PUBACK, on the connection that delivered the message and on no other."""
        attempt = self._attempt
        if attempt is not None and message.session == attempt.session:
            attempt.acknowledge(message)

    def subscribe(self, session: int, subscriptions: tuple[Subscription, ...]) -> None:
        """Add subscriptions for the time of this session; nothing where it is no longer up."""
        attempt = self._attempt
        if attempt is not None and session == attempt.session:
            attempt.subscribe(subscriptions)

    def unsubscribe(self, session: int, topics: tuple[str, ...]) -> None:
        """End subscriptions, likewise. A broker that keeps the session keeps those that were added."""
        attempt = self._attempt
        if attempt is not None and session == attempt.session:
            attempt.unsubscribe(topics)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._session += 1
            self._attempt = Attempt(
                self._options, self._session, self._back_off.version, self._post, self._clock, self._progress
            )
            ended = self._attempt.run(self._stopping)
            if self._stopping.is_set():
                break
            retry = self._back_off.after(ended)
            closed_by_broker = ended.closed_by_broker and not ended.taken_over
            self._post(Down(retry.reason, retry.seconds, retry.taken_over, closed_by_broker, ended.excess))
            self._waiting = True
            self._wake.wait(retry.seconds)
            self._progress()
            self._waiting = False

    def _progress(self) -> None:
        self._progress_at = self._clock()
