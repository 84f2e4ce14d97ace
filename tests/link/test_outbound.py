"""What waits to be published: a window at a time, again after a reconnect, bounded, in order."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.agent.journal import ReplyTo
from edged.agent.replies import Replies
from edged.link import outbound
from edged.link.connection import Acked, Down, Up
from edged.link.outbound import Outbound, Publication
from tests.link.conftest import Line
from tests.support import Broker


class Taker:
    """Takes publishes and remembers them; `up` False: that session is gone."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, str, bytes, int, bool, bytes | None]] = []
        self.up = True
        self._mid = 0

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
        if not self.up:
            return None
        self._mid += 1
        self.sent.append((session, topic, payload, qos, retain, correlation))
        return self._mid

    @property
    def last(self) -> int:
        """The packet id that was given last."""
        return self._mid

    @property
    def payloads(self) -> list[bytes]:
        return [sent[2] for sent in self.sent]


class Bench:
    """An Outbound with a broker, a clock and what was delivered."""

    def __init__(self) -> None:
        self.now = 0.0
        self.session = 0
        self.broker = Taker()
        self.delivered: list[object] = []
        self.out = Outbound(self.broker, self.delivered.append, lambda: self.now)

    def send(self, payload: bytes, topic: str = "t", token: object = None, *, retain: bool = False) -> bool:
        return self.out.send(Publication(topic=topic, payload=payload, token=token, retain=retain))


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_p09_without_a_connection_everything_waits_and_goes_out_in_order(bench: Bench) -> None:
    assert all(bench.send(b"%d" % i) for i in range(3))
    assert bench.broker.sent == []
    bench.out.up(1, 20, None)
    assert bench.broker.payloads == [b"0", b"1", b"2"]
    assert {(session, qos) for session, _, _, qos, _, _ in bench.broker.sent} == {(1, 1)}


def test_no_more_than_the_window_is_unconfirmed(bench: Bench) -> None:
    bench.out.up(1, 2, None)
    for i in range(4):
        bench.send(b"%d" % i)
    assert bench.broker.payloads == [b"0", b"1"]
    bench.out.acked(1, 1)
    assert bench.broker.payloads == [b"0", b"1", b"2"]
    assert bench.out.backlog == 3


def test_a_confirmation_gives_the_token_back_once(bench: Bench) -> None:
    bench.out.up(1, 20, None)
    bench.send(b"x", token=5)
    bench.send(b"y")
    assert bench.out.holds(5)
    for mid in (1, 2, 1, 99):
        bench.out.acked(1, mid)
    assert bench.delivered == [5]
    assert not bench.out.holds(5)
    assert bench.out.backlog == 0


def test_p09_what_was_not_confirmed_is_sent_again_first_after_a_reconnect(bench: Bench) -> None:
    bench.out.up(1, 2, None)
    for i in range(3):
        bench.send(b"%d" % i, token=i)
    bench.out.acked(1, 1)
    bench.out.down()
    assert [bench.out.holds(i) for i in range(3)] == [False, True, True]
    assert bench.out.backlog == 2
    bench.send(b"3")
    bench.broker.sent.clear()
    bench.out.up(2, 20, None)
    assert bench.broker.payloads == [b"1", b"2", b"3"]


def test_a_confirmation_of_an_old_connection_counts_for_nothing(bench: Bench) -> None:
    bench.out.up(1, 20, None)
    bench.send(b"x", token=1)
    bench.out.down()
    bench.out.acked(1, 1)
    bench.out.up(2, 20, None)
    bench.out.acked(1, 2)
    assert bench.delivered == []
    bench.out.acked(2, 2)
    assert bench.delivered == [1]


def test_a_connection_that_breaks_while_sending_loses_nothing(bench: Bench) -> None:
    bench.out.up(1, 20, None)
    bench.broker.up = False
    bench.send(b"x")
    bench.broker.up = True
    bench.out.up(2, 20, None)
    assert bench.broker.payloads == [b"x"]


def test_a_newer_retained_publication_replaces_the_waiting_one_of_its_topic(bench: Bench) -> None:
    bench.send(b"starting", "status", retain=True)
    bench.send(b"event", "event")
    bench.send(b"online", "status", retain=True)
    bench.send(b"health", "health", retain=True)
    bench.out.up(1, 20, None)
    assert bench.broker.payloads == [b"event", b"online", b"health"]


def test_p09_what_is_buffered_is_bounded_in_bytes_and_the_rest_is_counted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "MAX_BYTES", 100)
    assert bench.send(b"x" * 60)
    assert not bench.send(b"x" * 60)
    assert bench.out.dropped == 1
    bench.out.up(1, 20, None)
    bench.out.acked(1, 1)
    assert bench.send(b"x" * 60)


def test_replaced_and_confirmed_publications_give_their_bytes_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "MAX_BYTES", 100)
    for _ in range(10):
        assert bench.send(b"x" * 60, "health", retain=True)


def test_what_the_broker_would_refuse_for_its_size_is_never_sent(bench: Bench) -> None:
    bench.out.up(1, 20, 1000)
    assert not bench.out.fits("t", b"x" * 1000, None)
    assert bench.out.fits("t", b"x" * 100, None)
    assert not bench.send(b"x" * 1000)
    assert not bench.out.send_now("t", b"x" * 1000, None, None)
    assert bench.broker.sent == []


def test_the_correlation_data_counts_towards_the_brokers_limit(bench: Bench) -> None:
    """It comes from the requester and may be as long as the broker's limit itself."""
    bench.out.up(1, 20, 1000)
    assert not bench.out.fits("t", b"x", b"c" * 900)
    assert not bench.out.send(Publication(topic="t", payload=b"x", correlation=b"c" * 900))
    assert not bench.out.send_now("t", b"x", None, b"c" * 900)
    assert bench.broker.sent == []


def test_what_waits_and_is_too_large_for_a_new_broker_does_not_block_the_rest(bench: Bench) -> None:
    """Queued while the limit was not known; sent, it would end every connection."""
    bench.send(b"x" * 5000, token=1)
    bench.send(b"y", token=2)
    bench.out.up(1, 20, 1000)
    assert bench.broker.payloads == [b"y"]
    assert bench.out.dropped == 1
    assert not bench.out.holds(1)


def test_chunks_are_sent_now_or_never(bench: Bench) -> None:
    assert not bench.out.send_now("t", b"c", None, None)
    bench.out.up(1, 20, None)
    assert bench.out.send_now("t", b"c", "application/json", b"corr")
    assert bench.broker.sent == [(1, "t", b"c", 0, False, b"corr")]


def test_p09_chunks_that_the_socket_does_not_take_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "MAX_FLEETING_BYTES", 100)
    bench.out.up(1, 20, None)
    assert bench.out.send_now("t", b"x" * 60, None, None)
    assert not bench.out.send_now("t", b"x" * 60, None, None)
    bench.out.acked(1, 1)
    assert bench.out.send_now("t", b"x" * 60, None, None)


def test_a_confirmation_that_does_not_come_is_overdue(bench: Bench) -> None:
    bench.out.up(1, 20, None)
    assert not bench.out.overdue()
    bench.send(b"x")
    bench.now = 20.0
    assert not bench.out.overdue()
    bench.now = 20.1
    assert bench.out.overdue()
    bench.out.down()
    assert not bench.out.overdue()


# ---- refused in words -----------------------------------------------------------------------------------------------


def test_what_the_broker_refuses_for_good_is_done_with(bench: Bench) -> None:
    bench.out.up(1, 20, None)
    bench.send(b"x", "closed", token=1)
    bench.out.acked(1, 1, "not authorized")
    assert bench.delivered == [1]
    assert (bench.out.backlog, bench.out.dropped, bench.out.refused_topic) == (0, 1, "closed")


def test_what_the_broker_refuses_for_now_is_forgotten_and_not_delivered(bench: Bench) -> None:
    """Whoever gave the token sends it again; nothing may keep it from that."""
    bench.out.up(1, 20, None)
    bench.send(b"x", "full", token=1)
    bench.out.acked(1, 1, "quota exceeded", temporary=True)
    assert bench.delivered == []
    assert not bench.out.holds(1)
    assert (bench.out.backlog, bench.out.dropped, bench.out.refused_topic) == (0, 0, "full")
    assert bench.send(b"x", "full", token=1)
    bench.out.acked(1, 2)
    assert bench.delivered == [1]
    assert bench.out.refused_topic is None


def test_one_without_a_token_that_is_refused_for_now_counts_as_dropped(bench: Bench) -> None:
    bench.out.up(1, 20, None)
    bench.send(b"x")
    bench.out.acked(1, 1, "quota exceeded", temporary=True)
    assert (bench.out.backlog, bench.out.dropped) == (0, 1)


# ---- refused by hanging up ------------------------------------------------------------------------------------------


def hang_up(bench: Bench, times: int = 1, *, after: float = 0.1) -> None:
    """The broker ends this many connections, each so many seconds after what it was sent."""
    for _ in range(times):
        bench.session += 1
        bench.out.up(bench.session, 20, None)
        bench.now += after
        bench.out.down(hung_up=True)


def test_what_the_broker_hangs_up_on_three_times_no_longer_blocks_the_rest(bench: Bench) -> None:
    bench.send(b"x" * 5000, "closed", token=1)
    bench.send(b"y", token=2)
    hang_up(bench, 3)
    bench.broker.sent.clear()
    bench.out.up(9, 20, None)
    assert bench.broker.payloads == [b"y"]
    assert bench.delivered == []
    assert not bench.out.holds(1)
    assert bench.out.dropped == 1


def test_a_long_one_fits_no_more_so_that_a_short_one_goes_out_in_its_place(bench: Bench) -> None:
    replies = Replies(bench.out, lambda: 0.0)
    to, long = ReplyTo("reply", b"c"), b"x" * 5000
    replies.final(to, "a", long, 1)
    hang_up(bench, 3)
    bench.out.up(9, 20, None)
    assert not bench.out.fits("reply", long, b"c")
    assert bench.out.fits("reply", b"y" * 5000, b"c")
    assert bench.out.fits("other", long, b"c")
    replies.final(to, "a", long, 1)
    _, topic, payload, _, _, correlation = bench.broker.sent[-1]
    assert (topic, correlation) == ("reply", b"c")
    assert json.loads(payload)["error"]["code"] == "too_large_for_broker"
    bench.out.acked(9, bench.broker.last)
    assert bench.delivered == [1]


def test_a_short_one_is_set_aside_for_a_while_and_not_delivered(bench: Bench) -> None:
    """Nothing shorter could be said, and the trouble may be the broker's own."""
    bench.send(b"x", "closed", token=1)
    hang_up(bench, 3)
    bench.out.up(9, 20, None)
    assert bench.delivered == []
    assert (bench.out.backlog, bench.out.dropped, bench.out.refused_topic) == (0, 1, "closed")
    assert bench.out.fits("closed", b"x", None)
    assert not bench.send(b"x", "closed", token=1)
    assert bench.send(b"x", "open", token=2)
    bench.now += outbound.ASIDE_FOR + 1
    assert bench.send(b"x", "closed", token=1)


def test_what_is_set_aside_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "MAX_ASIDE", 2)
    for number in range(3):
        bench.send(b"x", f"{number}", token=number)
        hang_up(bench, 3)
        bench.out.up(9 + number, 20, None)
    assert [bench.send(b"x", f"{number}", token=number) for number in range(3)] == [True, False, False]


def test_its_bytes_are_given_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "MAX_BYTES", 100)
    bench.send(b"x" * 60)
    hang_up(bench, 3)
    bench.out.up(9, 20, None)
    assert bench.send(b"x" * 60)


def test_a_suspect_goes_out_alone(bench: Bench) -> None:
    """Else a confirmation that the hang-up swallowed would make an innocent one look guilty."""
    bench.send(b"a", token=1)
    bench.send(b"b", token=2)
    hang_up(bench)
    bench.broker.sent.clear()
    bench.out.up(9, 20, None)
    assert bench.broker.payloads == [b"a"]
    assert not bench.out.send_now("t", b"chunk", None, None)
    bench.out.acked(9, bench.broker.last)
    assert bench.broker.payloads == [b"a", b"b"]
    assert bench.out.send_now("t", b"chunk", None, None)


def lost(bench: Bench) -> None:
    """The connection goes, and nobody hung up."""
    bench.session += 1
    bench.out.up(bench.session, 20, None)
    bench.out.down()


@pytest.mark.parametrize(
    "between",
    [
        pytest.param(lost, id="a connection that was lost"),
        pytest.param(lambda bench: hang_up(bench, after=5.1), id="one that ended late"),
        pytest.param(lambda bench: bench.out.down(), id="an attempt that failed"),
    ],
)
def test_p09_a_poor_network_loses_nothing(bench: Bench, between: Callable[[Bench], None]) -> None:
    bench.send(b"x", token=1)
    for _ in range(5):
        hang_up(bench, 2)
        between(bench)
    bench.out.up(99, 20, None)
    assert bench.broker.payloads[-1] == b"x"
    bench.out.acked(99, bench.broker.last)
    assert (bench.delivered, bench.out.dropped) == ([1], 0)


def test_a_confirmation_of_any_other_begins_the_count_anew(bench: Bench) -> None:
    bench.send(b"x", token=1)
    hang_up(bench, 2)
    bench.out.up(98, 20, None)
    bench.out.acked(98, bench.broker.last)
    bench.send(b"y", token=2)
    bench.out.down(hung_up=True)
    hang_up(bench)
    bench.out.up(99, 20, None)
    assert bench.out.holds(2)
    assert bench.delivered == [1]


def test_a_newer_retained_one_is_not_given_up_for_the_one_that_it_replaced(bench: Bench) -> None:
    bench.send(b"old", "status", retain=True)
    hang_up(bench, 3)
    bench.send(b"new", "status", retain=True)
    bench.out.up(9, 20, None)
    assert bench.broker.payloads[-1] == b"new"
    assert bench.out.backlog == 1


@pytest.mark.broker
@pytest.mark.mosquitto
def test_an_answer_above_the_limit_of_a_3_1_1_broker_does_not_block_the_next(
    line: Callable[..., Line], tmp_path: Path
) -> None:
    """3.1.1 has no word for a limit: the broker just closes, whenever it is sent."""
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
                out.down(hung_up=event.hung_up)
            elif isinstance(event, Acked):
                out.acked(event.session, event.mid, event.refused, temporary=event.temporary)
        assert delivered == [2]
        assert not out.fits("a", b"x" * 5000, None)
    finally:
        made.connection.stop()
        own.stop()


@given(st.lists(st.sampled_from(["send", "ack", "down", "late", "up"]), max_size=40))
def test_p09_nothing_is_lost_whatever_happens_to_the_connection(steps: list[str]) -> None:
    """At the end, with a connection that holds, every token is delivered exactly once."""
    bench = Bench()
    session, token, confirmed = 0, 0, 0
    for step in steps:
        if step == "send":
            token += 1
            bench.send(b"%d" % token, token=token)
        elif step == "up":
            session += 1
            bench.out.up(session, 2, None)
        elif step == "down":
            bench.out.down()
        elif step == "late":
            bench.now += 6
            bench.out.down(hung_up=True)
        else:
            confirmed += 1
            bench.out.acked(session, confirmed)
    session += 1
    bench.out.up(session, 2, None)
    for mid in range(1, bench.broker.last + token + 1):
        bench.out.acked(session, mid)
    assert sorted(bench.delivered, key=str) == sorted(range(1, token + 1), key=str)
    assert bench.out.backlog == 0
