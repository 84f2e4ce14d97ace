"""A short connection for an operator: publish, and receive messages one by one until a deadline."""

from __future__ import annotations

import getpass
import os
import queue
import re
import secrets
import time
from collections.abc import Iterator
from types import TracebackType

from edged.config.schema import Mqtt
from edged.core.errors import BrokerError
from edged.link.attempt import Subscription
from edged.link.connection import Connection
from edged.link.events import Acked, Arrived, Down, Event, Up

DEFAULT_URL = Mqtt().url


class TimedOut(Exception):
    """No message came in time (exit code 4)."""


class Interrupted(Exception):
    """`Session.interrupt` was called."""


class Session:
    """A clean session at the broker; once it is entered its subscriptions are granted. Raises BrokerError on entry."""

    def __init__(self, settings: Mqtt, topics: tuple[str, ...], connect_timeout: float = 20.0) -> None:
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()  # None: `interrupt` was called
        client_id = f"edgectl-{os.getpid()}-{secrets.token_hex(4)}"
        subscriptions = tuple(Subscription(topic, retained=True) for topic in topics)
        self._connection = Connection(settings, client_id, None, subscriptions, self._events.put, persistent=False)
        self._url = settings.url
        self._timeout = connect_timeout
        self._up: Up | None = None

    def __enter__(self) -> Session:  # noqa: PYI034  - typing.Self needs 3.11
        self._connection.start()
        until = time.monotonic() + self._timeout
        reason = "it does not answer"
        while (left := until - time.monotonic()) > 0:
            try:
                event = self._events.get(timeout=left)
            except queue.Empty:
                break
            if event is None:
                self._connection.stop()
                raise Interrupted
            if isinstance(event, Up):
                if event.refused:
                    self._connection.stop()
                    raise BrokerError(f"the broker at {self._url} refuses the subscription to {event.refused[0]}")
                self._up = event
                return self
            if isinstance(event, Down):
                reason = event.reason
                if event.retry_in > 0:
                    break
        self._connection.stop()
        other = "; name another with --url or EDGED_MQTT_URL" if self._url == DEFAULT_URL else ""
        raise BrokerError(f"the broker at {self._url} cannot be reached: {reason}{other}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.stop()

    @property
    def version(self) -> str:
        """The protocol in use: `5` or `3.1.1`."""
        return self._up.version if self._up is not None else "none"

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, timeout: float = 10.0) -> None:
        """Publish at QoS 1 and wait until the broker has it. Raises BrokerError."""
        mid = self._connection.publish(
            self._up.session if self._up else 0, topic, payload, qos=1, retain=retain, content_type="application/json"
        )
        kept: list[Event | None] = []
        until = time.monotonic() + timeout
        try:
            while mid is not None:
                event = self._events.get(timeout=max(0.0, until - time.monotonic()))
                if isinstance(event, Down):
                    break
                if isinstance(event, Acked) and event.mid == mid:
                    if event.refused is not None:
                        why = f"the broker refused a message to {topic} ({event.refused})"
                        raise BrokerError(f"{why}; check the rights of this user")
                    return
                kept.append(event)
        except queue.Empty:
            pass
        finally:
            for event in kept:
                self._events.put(event)
        raise BrokerError("the broker did not confirm the message")

    def interrupt(self) -> None:
        """Make `messages` raise Interrupted, once. A signal handler or another thread may call it."""
        self._events.put(None)

    def post(self, topic: str, payload: bytes) -> int:
        """Publish at QoS 1 without waiting; gives the packet id, which `next` returns as acked. Raises BrokerError."""
        session = self._up.session if self._up else 0
        mid = self._connection.publish(session, topic, payload, qos=1)
        if mid is None:
            raise BrokerError("the connection to the broker ended")
        return mid

    def next(self, timeout: float) -> Arrived | Acked | None:
        """A message or confirmation; None after `timeout` seconds. Raises BrokerError where the broker is gone."""
        try:
            event = self._events.get(timeout=timeout) if timeout > 0 else self._events.get_nowait()
        except queue.Empty:
            return None
        if isinstance(event, Down):
            raise BrokerError(f"the connection to the broker ended: {event.reason}")
        if isinstance(event, Arrived):
            self._connection.acknowledge(event)
        return event if isinstance(event, (Arrived, Acked)) else None

    def messages(self, timeout: float) -> Iterator[Arrived]:
        """Messages as they come.

        Raises TimedOut when none came for `timeout` seconds, BrokerError when the connection ended, Interrupted.
        """
        while True:
            try:
                event = self._events.get(timeout=timeout)
            except queue.Empty:
                raise TimedOut from None
            if event is None:
                raise Interrupted
            if isinstance(event, Arrived):
                self._connection.acknowledge(event)
                if event.unreadable is None:
                    yield event
            elif isinstance(event, Down):
                raise BrokerError(f"the connection to the broker ended: {event.reason}")


def default_requester() -> str:
    """The user's name, made to fit a topic."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = "edgectl"
    return re.sub(r"[^A-Za-z0-9_-]", "-", name)[:64] or "edgectl"
