"""What tests of a connection share: one that records its events, and a server with set answers."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from edged.config.schema import Mqtt
from edged.link.attempt import Subscription, Will
from edged.link.connection import Connection
from edged.link.events import Acked, Arrived, Down, Event, Up
from tests.support import SECONDS, Broker

E_ = TypeVar("E_", Up, Down, Arrived, Acked)
ROOT = "link-test"
PROMPTS, CONFIG, STATUS = f"{ROOT}/prompt/+", f"{ROOT}/config", f"{ROOT}/status"
CONNACK_OK = bytes([0x20, 0x03, 0x00, 0x00, 0x00])
CONNACK_OK_311 = bytes([0x20, 0x02, 0x00, 0x00])
CONNACK_BAD_VERSION = bytes([0x20, 0x03, 0x00, 0x84, 0x00])
CONNACK_BAD_VERSION_311 = bytes([0x20, 0x02, 0x00, 0x01])
DISCONNECT_TAKEN_OVER = bytes([0xE0, 0x02, 0x8E, 0x00])
DISCONNECT_UNSPECIFIED = bytes([0xE0, 0x02, 0x80, 0x00])
CONNACK_NOT_AUTHORIZED = bytes([0x20, 0x03, 0x00, 0x87, 0x00])


class Line:
    """A connection under test with what it posted; waits between attempts are recorded and cut to nothing."""

    def __init__(
        self,
        url: str,
        *subscriptions: Subscription,
        client_id: str = "link-test",
        clock: Callable[[], float] = time.monotonic,
        **mqtt: Any,
    ) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self._kept: list[Event] = []
        self.bounds: list[tuple[float, float]] = []
        self.open = threading.Event()
        """While it is clear, the network thread blocks as soon as it posts."""
        self.open.set()
        self.connection = Connection(
            Mqtt(url=url, **mqtt),
            client_id,
            Will(STATUS, b"offline"),
            subscriptions,
            self._take,
            clock=clock,
            uniform=self._uniform,
        )

    def _take(self, event: Event) -> None:
        self.open.wait()
        self.events.put(event)

    def _uniform(self, low: float, high: float) -> float:
        self.bounds.append((low, high))
        return 0.0 if low == 0 else 300.0

    def cut(self) -> None:
        """Ends the connection under both ends, as a network does."""
        attempt = self.connection._attempt
        paho = attempt._client if attempt is not None else None
        assert paho is not None
        sock = paho.socket()
        assert isinstance(sock, socket.socket)
        sock.shutdown(socket.SHUT_RDWR)

    def next_event(self) -> Event:
        """The next event, of whatever kind."""
        return self.events.get(timeout=20 * SECONDS)

    def next(self, kind: type[E_]) -> E_:
        """The next event of this kind; others before it are kept for later."""
        for event in self._kept:
            if isinstance(event, kind):
                self._kept.remove(event)
                return event
        until = time.monotonic() + 20 * SECONDS
        while True:
            event = self.events.get(timeout=max(0.01, until - time.monotonic()))
            if isinstance(event, kind):
                return event
            self._kept.append(event)


@pytest.fixture
def line(broker: Broker) -> Iterator[Callable[..., Line]]:
    made: list[Line] = []

    def start(*subscriptions: Subscription, url: str = broker.url, **options: Any) -> Line:
        new = Line(url, *subscriptions, **options)
        new.connection.start()
        made.append(new)
        return new

    yield start
    for one in made:
        one.open.set()
        one.connection.stop()
    broker.forget_session("link-test")


class Server:
    """A TCP server that answers each connection's first bytes with the next of `answers` (None: with silence)."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.versions: list[int] = []
        self._open: list[socket.socket] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"mqtt://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                channel, _ = self._socket.accept()
            except OSError:
                return
            connect = channel.recv(1000)
            if len(connect) < 9:
                channel.close()
                continue
            self.versions.append(connect[8])
            answer = self.answers.pop(0) if self.answers else None
            if answer is None:
                self._open.append(channel)
            else:
                channel.sendall(answer)
                if answer in (CONNACK_OK, CONNACK_OK_311):
                    self._open.append(channel)
                else:
                    channel.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._socket.close()
        for channel in self._open:
            channel.close()


@pytest.fixture
def server() -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def start(*answers: bytes | None) -> Server:
        made.append(Server(*answers))
        return made[-1]

    yield start
    for one in made:
        one.close()


class Wire:
    """The broker's end of one connection, byte by byte."""

    def __init__(self, listening: socket.socket) -> None:
        listening.settimeout(20 * SECONDS)
        self._socket, _ = listening.accept()
        self._socket.settimeout(20 * SECONDS)
        self._socket.recv(1000)
        self.send(CONNACK_OK)

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count and (more := self._socket.recv(count - len(data))):
            data += more
        return data

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def wired(line: Callable[..., Line]) -> Iterator[tuple[Line, Wire]]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        made = line(url=f"mqtt://127.0.0.1:{listening.getsockname()[1]}")
        wire = Wire(listening)
        made.next(Up)
        yield made, wire
        wire.close()
