"""What the broker refuses: in words, for good or for now, or by hanging up."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edged.agent.journal import ReplyTo
from edged.agent.replies import Replies
from edged.link import outbound, suspect
from edged.link.events import Acked, Down, Up
from edged.link.outbound import Outbound
from edged.link.publication import Publication
from tests.link.conftest import Line
from tests.link.test_outbound import Bench
from tests.support import Broker


@pytest.fixture
def bench() -> Bench:
    return Bench()


# ---- refused with a reason -------------------------------------------------------------------------------------------


def test_what_the_broker_refuses_for_good_is_done_with(bench: Bench) -> None:
    bench.out.up(1, 20, None)
    bench.send(b"x", "closed", token=1)
    bench.out.acked(1, 1, "not authorized")
    assert [1] == bench.delivered
    assert (0, 1, "closed") == (bench.out.backlog, bench.out.dropped, bench.out.refused_topic)


def test_what_the_broker_refuses_for_now_is_forgotten_and_not_delivered(bench: Bench) -> None:
    """Whoever gave the token sends it again; nothing may keep it from that."""
    bench.out.up(1, 20, None)
    bench.send(b"x", "full", token=1)
    bench.out.acked(1, 1, "quota exceeded", temporary=True)
    assert [] == bench.delivered
    assert not bench.out.holds(1)
    assert (0, 0, "full") == (bench.out.backlog, bench.out.dropped, bench.out.refused_topic)
    assert bench.send(b"x", "full", token=1)
    bench.out.acked(1, 2)
    assert [1] == bench.delivered
    assert bench.out.refused_topic is None


def test_one_without_a_token_that_is_refused_for_now_counts_as_dropped(bench: Bench) -> None:
    bench.out.up(1, 20, None)
    bench.send(b"x")
    bench.out.acked(1, 1, "quota exceeded", temporary=True)
    assert (0, 1) == (bench.out.backlog, bench.out.dropped)


# ---- refused by closing the connection -------------------------------------------------------------------------------


def close_by_broker(bench: Bench, times: int = 1, *, after: float = 0.1) -> None:
    """The broker ends this many connections, each so many seconds after what it was sent."""
    for _ in range(times):
        bench.session += 1
        bench.out.up(bench.session, 20, None)
        bench.now += after
        bench.out.down(closed_by_broker=True)


def test_what_the_broker_closes_three_times_no_longer_blocks_the_rest(bench: Bench) -> None:
    bench.send(b"x" * 5000, "closed", token=1)
    bench.send(b"y", token=2)
    close_by_broker(bench, 3)
    bench.broker.sent.clear()
    bench.out.up(9, 20, None)
    assert [b"y"] == bench.broker.payloads
    assert [] == bench.delivered
    assert not bench.out.holds(1)
    assert 1 == bench.out.dropped


def test_a_long_one_fits_no_more_so_that_a_short_one_goes_out_in_its_place(bench: Bench) -> None:
    replies = Replies(bench.out, lambda: 0.0)
    to, long = ReplyTo("reply", b"c"), b"x" * 5000
    replies.send_final(to, "a", long, 1)
    close_by_broker(bench, 3)
    bench.out.up(9, 20, None)
    assert not bench.out.fits("reply", long, b"c")
    assert bench.out.fits("reply", b"y" * 5000, b"c")
    assert bench.out.fits("other", long, b"c")
    replies.send_final(to, "a", long, 1)
    _, topic, payload, _, _, correlation = bench.broker.sent[-1]
    assert ("reply", b"c") == (topic, correlation)
    assert "too_large_for_broker" == json.loads(payload)["error"]["code"]
    bench.out.acked(9, bench.broker.last)
    assert [1] == bench.delivered


def test_a_short_one_is_set_aside_for_a_while_and_not_delivered(bench: Bench) -> None:
    """Nothing shorter could be said, and the trouble may be the broker's own."""
    bench.send(b"x", "closed", token=1)
    close_by_broker(bench, 3)
    bench.out.up(9, 20, None)
    assert [] == bench.delivered
    assert (0, 1, "closed") == (bench.out.backlog, bench.out.dropped, bench.out.refused_topic)
    assert bench.out.fits("closed", b"x", None)
    assert not bench.send(b"x", "closed", token=1)
    assert bench.send(b"x", "open", token=2)
    bench.now += suspect.SET_ASIDE_FOR + 1
    assert bench.send(b"x", "closed", token=1)


def test_what_is_set_aside_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspect, "MAX_SET_ASIDE", 2)
    for number in range(3):
        bench.send(b"x", f"{number}", token=number)
        close_by_broker(bench, 3)
        bench.out.up(9 + number, 20, None)
    assert [True, False, False] == [bench.send(b"x", f"{number}", token=number) for number in range(3)]


def test_its_bytes_are_given_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "MAX_BYTES", 100)
    bench.send(b"x" * 60)
    close_by_broker(bench, 3)
    bench.out.up(9, 20, None)
    assert bench.send(b"x" * 60)


def test_a_suspect_goes_out_alone(bench: Bench) -> None:
    """Else another one, whose confirmation was lost when the connection closed, would be the suspect."""
    bench.send(b"a", token=1)
    bench.send(b"b", token=2)
    close_by_broker(bench)
    bench.broker.sent.clear()
    bench.out.up(9, 20, None)
    assert [b"a"] == bench.broker.payloads
    assert not bench.out.send_now("t", b"chunk", None, None)
    bench.out.acked(9, bench.broker.last)
    assert [b"a", b"b"] == bench.broker.payloads
    assert bench.out.send_now("t", b"chunk", None, None)


def lost(bench: Bench) -> None:
    """The network is lost; the broker did not close the connection."""
    bench.session += 1
    bench.out.up(bench.session, 20, None)
    bench.out.down()


@pytest.mark.parametrize(
    "between",
    [
        pytest.param(lost, id="a connection that was lost"),
        pytest.param(lambda bench: close_by_broker(bench, after=5.1), id="one that ended late"),
        pytest.param(lambda bench: bench.out.down(), id="an attempt that failed"),
    ],
)
def test_p09_a_poor_network_loses_nothing(bench: Bench, between: Callable[[Bench], None]) -> None:
    bench.send(b"x", token=1)
    for _ in range(5):
        close_by_broker(bench, 2)
        between(bench)
    bench.out.up(99, 20, None)
    assert b"x" == bench.broker.payloads[-1]
    bench.out.acked(99, bench.broker.last)
    assert ([1], 0) == (bench.delivered, bench.out.dropped)


def test_a_confirmation_of_any_other_restarts_the_count(bench: Bench) -> None:
    bench.send(b"x", token=1)
    close_by_broker(bench, 2)
    bench.out.up(98, 20, None)
    bench.out.acked(98, bench.broker.last)
    bench.send(b"y", token=2)
    bench.out.down(closed_by_broker=True)
    close_by_broker(bench)
    bench.out.up(99, 20, None)
    assert bench.out.holds(2)
    assert [1] == bench.delivered


def test_a_newer_retained_one_is_not_given_up_for_the_one_that_it_replaced(bench: Bench) -> None:
    bench.send(b"old", "status", retain=True)
    close_by_broker(bench, 3)
    bench.send(b"new", "status", retain=True)
    bench.out.up(9, 20, None)
    assert b"new" == bench.broker.payloads[-1]
    assert 1 == bench.out.backlog


@pytest.mark.broker
@pytest.mark.mosquitto
def test_an_answer_above_the_limit_of_a_3_1_1_broker_does_not_block_the_next(
    line: Callable[..., Line], tmp_path: Path
) -> None:
    """3.1.1 cannot announce a limit: the broker closes the connection whenever it is sent."""
    own = Broker(tmp_path, "max_packet_size 2000\n").start()
    delivered: list[object] = []
    made = line(url=own.url, version="3.1.1")
    out = Outbound(made.connection, delivered.append, time.monotonic)
    try:
        out.send(Publication(topic="a", payload=b"x" * 5000, token=1))
        out.send(Publication(topic="b", payload=b"y", token=2))
        while not delivered:
            event = made.next_event()
            if isinstance(event, Up):
                out.up(event.session, event.window, event.max_packet)
            elif isinstance(event, Down):
                assert not event.taken_over
                out.down(closed_by_broker=event.closed_by_broker)
            elif isinstance(event, Acked):
                out.acked(event.session, event.mid, event.refused, temporary=event.temporary)
        assert [2] == delivered
        assert not out.fits("a", b"x" * 5000, None)
    finally:
        made.connection.stop()
        own.stop()
