"""One connection against brokers that go away, and servers that refuse, hang or speak nonsense."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edged.link import connection as module
from edged.link.connection import (
    Arrived,
    Down,
    Up,
)
from tests.link.conftest import (
    CONNACK_BAD_VERSION,
    CONNACK_BAD_VERSION_311,
    CONNACK_NOT_AUTHORIZED,
    CONNACK_OK,
    CONNACK_OK_311,
    DISCONNECT_TAKEN_OVER,
    Line,
    Server,
)
from tests.support import Broker, wait_until


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
        made.cut()
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
