"""One connection against brokers that go away, and servers that refuse, hang or speak nonsense."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from edged.link import attempt
from edged.link.attempt import Subscription
from edged.link.events import Acked, Arrived, Down, Up
from edged.link.tolerant_client import TolerantClient
from tests.link.conftest import (
    CONNACK_BAD_VERSION,
    CONNACK_BAD_VERSION_311,
    CONNACK_NOT_AUTHORIZED,
    CONNACK_OK,
    CONNACK_OK_311,
    DISCONNECT_TAKEN_OVER,
    DISCONNECT_UNSPECIFIED,
    PROMPTS,
    Line,
    Server,
    Wire,
)
from tests.support import SECONDS, Broker, wait_until


@pytest.mark.parametrize("refusal", [CONNACK_BAD_VERSION, CONNACK_BAD_VERSION_311])
def test_a_broker_that_refuses_the_version_is_spoken_to_in_3_1_1_at_once(
    line: Callable[..., Line], server: Callable[..., Server], refusal: bytes
) -> None:
    there = server(refusal, CONNACK_OK_311)
    made = line(url=there.url)
    assert 0 == made.next(Down).retry_in
    assert "3.1.1" == made.next(Up).version
    assert [5, 4] == there.versions


def test_other_refusals_do_not_change_the_version_and_are_told_in_words(
    line: Callable[..., Line], server: Callable[..., Server]
) -> None:
    there = server(*[CONNACK_NOT_AUTHORIZED] * 8)
    made = line(url=there.url)
    for _ in range(5):
        assert "the broker refused the connection: not authorized" == made.next(Down).reason
    assert {5} == set(there.versions)


def test_with_version_5_demanded_there_is_no_fall_back(
    line: Callable[..., Line], server: Callable[..., Server]
) -> None:
    there = server(*[CONNACK_BAD_VERSION] * 4)
    made = line(url=there.url, version="5")
    for _ in range(3):
        assert "unsupported protocol version" in made.next(Down).reason
    assert {5} == set(there.versions)


def test_a_broker_that_answers_no_connect_of_version_5_is_spoken_to_in_3_1_1_after_three(
    line: Callable[..., Line], server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "CONNACK_DEADLINE", 0.1)
    there = server(None, None, None, CONNACK_OK_311)
    made = line(url=there.url)
    for _ in range(3):
        assert "the broker does not answer CONNECT" == made.next(Down).reason
    assert "3.1.1" == made.next(Up).version
    assert [5, 5, 5, 4] == there.versions


def test_a_broker_that_has_accepted_version_5_since_the_start_is_never_asked_for_less(
    line: Callable[..., Line], server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "CONNACK_DEADLINE", 0.1)
    there = server(CONNACK_OK, None, None, None, None, CONNACK_OK)
    made = line(url=there.url)
    assert "5" == made.next(Up).version
    made.connection.restart("a test")
    assert "5" == made.next(Up).version
    assert {5} == set(there.versions)


def test_p09_without_a_broker_it_tries_again_with_full_jitter_and_says_so(
    line: Callable[..., Line], server: Callable[..., Server]
) -> None:
    gone = server()
    gone.close()
    made = line(url=gone.url)
    reasons = {made.next(Down).reason for _ in range(9)}
    assert {"no broker listens there (connection refused)"} == reasons
    assert [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (0, 32), (0, 60), (0, 60)] == made.bounds[:8]


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
    assert "5" == made.next(Up).version


def test_a_topic_that_is_no_utf8_ends_nothing(line: Callable[..., Line], server: Callable[..., Server]) -> None:
    """A broker should not let it through; one that does must not end the network thread."""
    bad_topic = bytes([0x30, 0x05, 0x00, 0x01, 0xFF, 0x00, 0x78])
    good = bytes([0x30, 0x05, 0x00, 0x01, 0x61, 0x00, 0x78])
    there = server(CONNACK_OK + bad_topic + good, CONNACK_OK)
    made = line(url=there.url)
    bad = made.next(Arrived)
    assert ("its topic is not valid UTF-8", b"") == (bad.unreadable, bad.payload)
    assert b"x" == made.next(Arrived).payload


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
        made.cut()
        down = made.next(Down)
    assert down.taken_over
    assert (120.0, 300.0) == made.bounds[-1]


def test_a_session_that_is_taken_over_makes_it_back_off_for_minutes_and_say_why(
    line: Callable[..., Line], server: Callable[..., Server]
) -> None:
    there = server(CONNACK_OK + DISCONNECT_TAKEN_OVER)
    down = line(url=there.url).next(Down)
    assert down.taken_over
    assert not down.closed_by_broker
    assert 300.0 == down.retry_in
    assert "another board uses this name; give each board its own identity.device" == down.reason


def at_a_set_time(line: Callable[..., Line], server: Callable[..., Server]) -> tuple[Server, Line, list[float]]:
    """A connection that is up, and its clock, which is moved by hand."""
    there, now = server(CONNACK_OK), [0.0]
    made = line(url=there.url, clock=lambda: now[0])
    made.next(Up)
    return there, made, now


def test_p10_the_network_thread_shows_progress_while_it_waits_for_the_broker(
    line: Callable[..., Line], server: Callable[..., Server]
) -> None:
    """The clock jumps each time, so that only a round after the jump looks like progress."""
    there, made, now = at_a_set_time(line, server)
    now[0] += 100
    wait_until(lambda: made.connection.idle_for() < 2, 10, "the loop goes round")
    there.close()
    made.next(Down)
    now[0] += 100
    wait_until(lambda: made.connection.idle_for() < 2, 10, "it waits for the next attempt")
    for _ in range(3):
        made.next(Down)


def test_p10_a_network_thread_that_stands_still_shows_no_progress(
    line: Callable[..., Line], server: Callable[..., Server]
) -> None:
    there, made, now = at_a_set_time(line, server)
    made.open.clear()
    there.close()
    attempt = made.connection._attempt
    assert attempt is not None
    wait_until(lambda: attempt._client is None, 10, "the connection ended")
    now[0] += 100
    assert 100 == made.connection.idle_for()
    made.open.set()
    made.next(Down)
    wait_until(lambda: made.connection.idle_for() < 2, 10, "it goes on")


def test_a_broker_that_never_answers_subscribe_is_left_and_tried_again(
    line: Callable[..., Line], server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "SUBACK_DEADLINE", 0.1)
    there = server(*[CONNACK_OK] * 3)
    made = line(Subscription(PROMPTS, retained=False), url=there.url)
    for _ in range(2):
        down = made.next(Down)
        assert ("the broker does not answer SUBSCRIBE", False) == (down.reason, down.closed_by_broker)
    assert {5} == set(there.versions)


def test_a_subscription_that_is_confirmed_in_time_has_no_deadline_after_it(
    line: Callable[..., Line], broker: Broker
) -> None:
    now = [0.0]
    made = line(Subscription(PROMPTS, retained=False), clock=lambda: now[0])
    made.next(Up)
    now[0] += 1000
    wait_until(lambda: made.connection.idle_for() < 2, 10, "the loop goes round")
    made.connection.restart("a test")
    assert "a test" == made.next(Down).reason


def test_only_an_end_that_the_other_side_made_counts_as_closed_by_broker(
    line: Callable[..., Line], server: Callable[..., Server]
) -> None:
    there = server(CONNACK_OK, CONNACK_OK + DISCONNECT_UNSPECIFIED, CONNACK_NOT_AUTHORIZED)
    made = line(url=there.url)
    made.next(Up)
    made.connection.restart("a test")
    assert not made.next(Down).closed_by_broker
    made.next(Up)
    assert made.next(Down).closed_by_broker
    assert not made.next(Down).closed_by_broker


def test_a_stop_in_the_middle_of_connecting_ends_the_thread(
    line: Callable[..., Line], server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a socket there is nothing to disconnect yet."""
    connecting, go_on, connect = threading.Event(), threading.Event(), TolerantClient.connect

    def held(self: TolerantClient, *args: Any, **options: Any) -> Any:
        connecting.set()
        go_on.wait()
        return connect(self, *args, **options)

    monkeypatch.setattr(TolerantClient, "connect", held)
    made = line(url=server(CONNACK_OK).url)
    connecting.wait()
    made.connection.stop(timeout=0)
    go_on.set()
    assert made.connection._thread is not None
    made.connection._thread.join(10 * SECONDS)
    assert not made.connection._thread.is_alive()


@pytest.mark.parametrize("missing", ["password_file", "ca", "cert"])
def test_a_file_that_is_not_there_is_told_and_tried_again(line: Callable[..., Line], missing: str) -> None:
    """It may be put there later; the log says which kind of file."""
    files = {"username": "me", missing: "/nowhere/file"}
    made = line(url="mqtts://127.0.0.1:1", **files, **({"key": "/nowhere/key"} if missing == "cert" else {}))
    for _ in range(2):
        assert made.next(Down).reason.startswith("a password or certificate file cannot be used: ")


@pytest.mark.parametrize(
    ("code", "words", "temporary"),
    [
        (0x97, "quota exceeded", True),
        (0x80, "unspecified error", True),
        (0x83, "implementation specific error", True),
        (0x91, "packet identifier in use", True),
        (0x87, "not authorized", False),
        (0x90, "topic name invalid", False),
        (0x10, None, False),  # no one has subscribed: taken all the same
    ],
)
def test_a_refusal_says_whether_it_may_pass(
    wired: tuple[Line, Wire], code: int, words: str | None, temporary: bool
) -> None:
    made, wire = wired
    mid = made.connection.publish(1, "t", b"x", qos=1)
    assert mid is not None
    wire.send(b"\x40\x03" + mid.to_bytes(2, "big") + bytes([code]))
    assert Acked(1, mid, words, temporary=temporary) == made.next(Acked)
