"""One connection: against a real mosquitto, and against servers that refuse, hang or speak nonsense."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from edged.core.settings import Mqtt
from edged.link import connection as module
from edged.link.connection import (
    Acked,
    Arrived,
    Connection,
    Down,
    Event,
    Subscription,
    Up,
    Will,
    broker_address,
)
from tests.support import SECONDS, Broker, Client, wait_until

E_ = TypeVar("E_", Up, Down, Arrived, Acked)
ROOT = "link-test"
PROMPTS, CONFIG, STATUS = f"{ROOT}/prompt/+", f"{ROOT}/config", f"{ROOT}/status"
CONNACK_OK = bytes([0x20, 0x03, 0x00, 0x00, 0x00])
CONNACK_OK_311 = bytes([0x20, 0x02, 0x00, 0x00])
CONNACK_BAD_VERSION = bytes([0x20, 0x03, 0x00, 0x84, 0x00])
CONNACK_BAD_VERSION_311 = bytes([0x20, 0x02, 0x00, 0x01])
DISCONNECT_TAKEN_OVER = bytes([0xE0, 0x02, 0x8E, 0x00])
CONNACK_NOT_AUTHORIZED = bytes([0x20, 0x03, 0x00, 0x87, 0x00])


class Line:
    """A connection under test with what it posted; waits between attempts are recorded and cut to nothing."""

    def __init__(self, url: str, *subscriptions: Subscription, client_id: str = "link-test", **mqtt: Any) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self._kept: list[Event] = []
        self.bounds: list[tuple[float, float]] = []
        self.connection = Connection(
            Mqtt(url=url, **mqtt),
            client_id,
            Will(STATUS, b"offline"),
            subscriptions,
            self.events.put,
            chance=self._chance,
        )

    def _chance(self, low: float, high: float) -> float:
        self.bounds.append((low, high))
        return 0.0 if low == 0 else 300.0

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


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("mqtt://h", ("h", 1883)),
        ("mqtts://h", ("h", 8883)),
        ("mqtt://h:1", ("h", 1)),
        ("mqtt://h:1884/", ("h", 1884)),
        ("mqtt://[::1]:5", ("::1", 5)),
        ("mqtt://Broker.Local", ("broker.local", 1883)),
    ],
)
def test_a_url_names_host_and_port(url: str, address: tuple[str, int]) -> None:
    assert broker_address(url) == address


# ---- a real broker --------------------------------------------------------------------------------------------------


@pytest.mark.broker
def test_up_means_that_the_subscriptions_stand(line: Callable[..., Line], client: Client) -> None:
    made = line(Subscription(PROMPTS, retained=False))
    up = made.next(Up)
    assert (up.version, up.refused) == ("5", ())
    assert up.window > 0
    client.publish(f"{ROOT}/prompt/me", b"x", ResponseTopic="r", CorrelationData=b"\0\xff", ContentType="text/plain")
    message = made.next(Arrived)
    assert (message.topic, message.payload, message.qos, message.retain) == (f"{ROOT}/prompt/me", b"x", 1, False)
    assert (message.response_topic, message.correlation, message.content_type) == ("r", b"\0\xff", "text/plain")


@pytest.mark.broker
def test_retained_prompts_stay_away_at_subscribe_and_are_marked_when_live_while_config_always_comes(
    line: Callable[..., Line], client: Client
) -> None:
    client.publish(f"{ROOT}/prompt/old", b"old", retain=True)
    client.publish(CONFIG, b"layer", retain=True)
    try:
        made = line(Subscription(PROMPTS, retained=False), Subscription(CONFIG, retained=True))
        first = made.next(Arrived)
        assert (first.topic, first.payload, first.retain) == (CONFIG, b"layer", True)
        made.connection.acknowledge(first)
        client.publish(f"{ROOT}/prompt/new", b"new", retain=True)
        second = made.next(Arrived)
        assert (second.topic, second.retain) == (f"{ROOT}/prompt/new", True)
        made.connection.acknowledge(second)
        made.connection.restart("a test")
        made.next(Up)
        third = made.next(Arrived)
        assert (third.topic, third.payload) == (CONFIG, b"layer")
    finally:
        for topic in (f"{ROOT}/prompt/old", f"{ROOT}/prompt/new", CONFIG):
            client.publish(topic, b"", retain=True)


@pytest.mark.broker
def test_p02_a_message_that_was_not_acknowledged_comes_again_after_a_reconnect(
    line: Callable[..., Line], client: Client
) -> None:
    made = line(Subscription(PROMPTS, retained=False))
    made.next(Up)
    client.publish(f"{ROOT}/prompt/me", b"kept")
    client.publish(f"{ROOT}/prompt/me", b"taken")
    kept, taken = made.next(Arrived), made.next(Arrived)
    assert (kept.payload, taken.payload) == (b"kept", b"taken")
    made.connection.restart("the journal is full")
    assert made.next(Down).reason == "the journal is full"
    made.next(Up)
    again, taken_again = made.next(Arrived), made.next(Arrived)
    assert (again.payload, taken_again.payload) == (b"kept", b"taken")
    made.connection.acknowledge(again)
    made.connection.acknowledge(taken_again)
    made.connection.restart("once more")
    made.next(Up)
    client.publish(f"{ROOT}/prompt/me", b"next")
    assert made.next(Arrived).payload == b"next"


@pytest.mark.broker
def test_an_acknowledgement_of_an_older_connection_confirms_nothing(line: Callable[..., Line], client: Client) -> None:
    made = line(Subscription(PROMPTS, retained=False))
    made.next(Up)
    client.publish(f"{ROOT}/prompt/me", b"first")
    old = made.next(Arrived)
    made.connection.restart("a test")
    made.next(Up)
    assert made.next(Arrived).payload == b"first"
    made.connection.acknowledge(old)
    made.connection.restart("a test")
    made.next(Up)
    new = made.next(Arrived)
    assert new.payload == b"first"
    made.connection.acknowledge(new)


@pytest.mark.broker
def test_a_publish_is_confirmed_on_its_session_and_impossible_on_another(
    line: Callable[..., Line], client: Client
) -> None:
    client.subscribe(f"{ROOT}/reply")
    made = line()
    up = made.next(Up)
    publish = made.connection.publish
    assert publish(up.session - 1, f"{ROOT}/reply", b"x", qos=1) is None
    mid = publish(up.session, f"{ROOT}/reply", b"y", qos=1, content_type="application/json", correlation=b"\0")
    assert mid is not None
    assert made.next(Acked) == Acked(up.session, mid)
    message = client.wait(lambda m: m.topic == f"{ROOT}/reply" and m)
    assert (message.payload, message.properties.CorrelationData) == (b"y", b"\0")
    assert message.properties.ContentType == "application/json"


@pytest.mark.broker
def test_a_clean_stop_leaves_no_will_and_a_cut_does(broker: Broker, client: Client) -> None:
    client.subscribe(STATUS)
    made = Line(broker.url)
    made.connection.start()
    made.next(Up)
    made.connection.stop()
    client.publish(STATUS, b"marker")
    client.wait(lambda m: m.payload == b"marker")
    assert [m.payload for m in client.messages] == [b"marker"]
    cut = Line(broker.url)
    cut.connection.start()
    cut.next(Up)
    paho = cut.connection._client
    assert paho is not None
    sock = paho.socket()
    assert isinstance(sock, socket.socket)
    sock.shutdown(socket.SHUT_RDWR)
    client.wait(lambda m: m.payload == b"offline", what="the will")
    cut.next(Up)
    cut.connection.stop()
    client.publish(STATUS, b"", retain=True)


@pytest.mark.broker
def test_it_speaks_3_1_1_when_told_to(line: Callable[..., Line], client: Client) -> None:
    made = line(Subscription(PROMPTS, retained=False), version="3.1.1")
    assert made.next(Up).version == "3.1.1"
    client.publish(f"{ROOT}/prompt/me", b"x")
    message = made.next(Arrived)
    made.connection.acknowledge(message)
    assert (message.payload, message.correlation) == (b"x", None)


# ---- brokers that do not work ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("refusal", [CONNACK_BAD_VERSION, CONNACK_BAD_VERSION_311])
def test_a_broker_that_refuses_the_version_is_spoken_to_in_3_1_1_at_once(
    line: Callable[..., Line], server: Callable[..., Server], refusal: bytes
) -> None:
    there = server(refusal, CONNACK_OK_311)
    made = line(url=there.url)
    assert made.next(Down).retry_in == 0
    assert made.next(Up).version == "3.1.1"
    assert there.versions == [5, 4]


def test_other_refusals_do_not_change_the_version_and_are_told_in_words(
    line: Callable[..., Line], server: Callable[..., Server]
) -> None:
    there = server(*[CONNACK_NOT_AUTHORIZED] * 8)
    made = line(url=there.url)
    for _ in range(5):
        assert made.next(Down).reason == "the broker refuses us: not authorized"
    assert set(there.versions) == {5}


def test_with_version_5_demanded_there_is_no_fall_back(
    line: Callable[..., Line], server: Callable[..., Server]
) -> None:
    there = server(*[CONNACK_BAD_VERSION] * 4)
    made = line(url=there.url, version="5")
    for _ in range(3):
        assert "unsupported protocol version" in made.next(Down).reason
    assert set(there.versions) == {5}


def test_a_broker_that_answers_no_connect_of_version_5_is_spoken_to_in_3_1_1_after_three(
    line: Callable[..., Line], server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNACK_DEADLINE", 0.1)
    there = server(None, None, None, CONNACK_OK_311)
    made = line(url=there.url)
    for _ in range(3):
        assert made.next(Down).reason == "the broker does not answer CONNECT"
    assert made.next(Up).version == "3.1.1"
    assert there.versions == [5, 5, 5, 4]


def test_a_broker_that_has_accepted_version_5_since_the_start_is_never_asked_for_less(
    line: Callable[..., Line], server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNACK_DEADLINE", 0.1)
    there = server(CONNACK_OK, None, None, None, None, CONNACK_OK)
    made = line(url=there.url)
    assert made.next(Up).version == "5"
    made.connection.restart("a test")
    assert made.next(Up).version == "5"
    assert set(there.versions) == {5}


def test_p09_without_a_broker_it_tries_again_with_full_jitter_and_says_so(
    line: Callable[..., Line], server: Callable[..., Server]
) -> None:
    gone = server()
    gone.close()
    made = line(url=gone.url)
    reasons = {made.next(Down).reason for _ in range(9)}
    assert reasons == {"no broker listens there (connection refused)"}
    assert made.bounds[:8] == [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (0, 32), (0, 60), (0, 60)]


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x20\xff\xff\xff\xff\xff", b"\x00" * 50, b"\x20\x00", b"\x30\x03\x00\x10a"],
)
def test_a_server_that_speaks_something_else_ends_nothing(
    line: Callable[..., Line], server: Callable[..., Server], answer: bytes
) -> None:
    there = server(answer, answer, CONNACK_OK)
    made = line(url=there.url)
    assert made.next(Down).reason
    assert made.next(Up).version == "5"


def test_a_topic_that_is_no_utf8_ends_nothing(line: Callable[..., Line], server: Callable[..., Server]) -> None:
    """A broker should not let it through; one that does must not end the network thread."""
    bad_topic = bytes([0x30, 0x05, 0x00, 0x01, 0xFF, 0x00, 0x78])
    good = bytes([0x30, 0x05, 0x00, 0x01, 0x61, 0x00, 0x78])
    there = server(CONNACK_OK + bad_topic + good, CONNACK_OK)
    made = line(url=there.url)
    assert made.next(Arrived).payload == b"x"


@pytest.mark.broker
def test_a_broker_that_is_started_again_and_again_is_no_other_board(
    line: Callable[..., Line], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only connections that end while the broker stays there look like a name that is used twice."""
    own = Broker(tmp_path).start()
    made = line(url=own.url)
    try:
        for _ in range(5):
            made.next(Up)
            own.stop()
            while made.next(Down).reason != "no broker listens there (connection refused)":
                pass
            own.start()
        made.next(Up)
        assert all(low == 0 for low, _ in made.bounds)
    finally:
        made.connection.stop()
        own.stop()


@pytest.mark.broker
def test_connections_that_end_again_and_again_under_a_broker_that_stays_look_like_another_board(
    line: Callable[..., Line],
) -> None:
    """3.1.1 and some brokers do not say that a session was taken over."""
    made = line()
    for _ in range(4):
        made.next(Up)
        paho = made.connection._client
        assert paho is not None
        sock = paho.socket()
        assert isinstance(sock, socket.socket)
        sock.shutdown(socket.SHUT_RDWR)
        down = made.next(Down)
    assert down.taken_over
    assert made.bounds[-1] == (120.0, 300.0)


def test_a_session_that_is_taken_over_makes_it_back_off_for_minutes_and_say_why(
    line: Callable[..., Line], server: Callable[..., Server]
) -> None:
    there = server(CONNACK_OK + DISCONNECT_TAKEN_OVER)
    down = line(url=there.url).next(Down)
    assert down.taken_over
    assert down.retry_in == 300.0
    assert down.reason == "another board uses this name; give each board its own identity.device"


def test_p10_the_network_thread_shows_progress_while_it_waits_for_the_broker(
    line: Callable[..., Line], server: Callable[..., Server]
) -> None:
    there = server(CONNACK_OK)
    made = line(url=there.url)
    made.next(Up)
    wait_until(lambda: made.connection.idle_for() < 2, 10, "the loop goes round")
    there.close()
    made.next(Down)
    wait_until(lambda: made.connection.idle_for() < 2, 10, "the loop goes round")


@pytest.mark.parametrize("missing", ["password_file", "ca", "cert"])
def test_a_file_that_is_not_there_is_told_and_tried_again(line: Callable[..., Line], missing: str) -> None:
    """It may be put there later; the log says which kind of file."""
    files = {"username": "me", missing: "/nowhere/file"}
    made = line(url="mqtts://127.0.0.1:1", **files, **({"key": "/nowhere/key"} if missing == "cert" else {}))
    for _ in range(2):
        assert made.next(Down).reason.startswith("a password or certificate file cannot be used: ")
