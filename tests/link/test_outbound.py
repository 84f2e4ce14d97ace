"""What waits to be published: a window at a time, again after a reconnect, bounded, in order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.link import outbound
from edged.link.outbound import Outbound
from edged.link.publication import Publication


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
    assert [] == bench.broker.sent
    bench.out.up(1, 20, None)
    assert [b"0", b"1", b"2"] == bench.broker.payloads
    assert {(1, 1)} == {(session, qos) for session, _, _, qos, _, _ in bench.broker.sent}


def test_no_more_than_the_window_is_unconfirmed(bench: Bench) -> None:
    bench.out.up(1, 2, None)
    for i in range(4):
        bench.send(b"%d" % i)
    assert [b"0", b"1"] == bench.broker.payloads
    bench.out.acked(1, 1)
    assert [b"0", b"1", b"2"] == bench.broker.payloads
    assert 3 == bench.out.backlog


def test_a_confirmation_gives_the_token_back_once(bench: Bench) -> None:
    bench.out.up(1, 20, None)
    bench.send(b"x", token=5)
    bench.send(b"y")
    assert bench.out.holds(5)
    for mid in (1, 2, 1, 99):
        bench.out.acked(1, mid)
    assert [5] == bench.delivered
    assert not bench.out.holds(5)
    assert 0 == bench.out.backlog


def test_p09_what_was_not_confirmed_is_sent_again_first_after_a_reconnect(bench: Bench) -> None:
    bench.out.up(1, 2, None)
    for i in range(3):
        bench.send(b"%d" % i, token=i)
    bench.out.acked(1, 1)
    bench.out.down()
    assert [False, True, True] == [bench.out.holds(i) for i in range(3)]
    assert 2 == bench.out.backlog
    bench.send(b"3")
    bench.broker.sent.clear()
    bench.out.up(2, 20, None)
    assert [b"1", b"2", b"3"] == bench.broker.payloads


def test_a_confirmation_of_an_old_connection_counts_for_nothing(bench: Bench) -> None:
    bench.out.up(1, 20, None)
    bench.send(b"x", token=1)
    bench.out.down()
    bench.out.acked(1, 1)
    bench.out.up(2, 20, None)
    bench.out.acked(1, 2)
    assert [] == bench.delivered
    bench.out.acked(2, 2)
    assert [1] == bench.delivered


def test_a_connection_that_breaks_while_sending_loses_nothing(bench: Bench) -> None:
    bench.out.up(1, 20, None)
    bench.broker.up = False
    bench.send(b"x")
    bench.broker.up = True
    bench.out.up(2, 20, None)
    assert [b"x"] == bench.broker.payloads


def test_a_newer_retained_publication_replaces_the_waiting_one_of_its_topic(bench: Bench) -> None:
    bench.send(b"starting", "status", retain=True)
    bench.send(b"event", "event")
    bench.send(b"online", "status", retain=True)
    bench.send(b"health", "health", retain=True)
    bench.out.up(1, 20, None)
    assert [b"event", b"online", b"health"] == bench.broker.payloads


def test_p09_what_is_buffered_is_bounded_in_bytes_and_the_rest_is_counted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "MAX_BYTES", 100)
    assert bench.send(b"x" * 60)
    assert not bench.send(b"x" * 60)
    assert 1 == bench.out.dropped
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
    assert [] == bench.broker.sent


def test_the_correlation_data_counts_towards_the_brokers_limit(bench: Bench) -> None:
    """It comes from the requester and may be as long as the broker's limit itself."""
    bench.out.up(1, 20, 1000)
    assert not bench.out.fits("t", b"x", b"c" * 900)
    assert not bench.out.send(Publication(topic="t", payload=b"x", correlation=b"c" * 900))
    assert not bench.out.send_now("t", b"x", None, b"c" * 900)
    assert [] == bench.broker.sent


def test_what_waits_and_is_too_large_for_a_new_broker_does_not_block_the_rest(bench: Bench) -> None:
    """Queued while the limit was not known; sent, it would end every connection."""
    bench.send(b"x" * 5000, token=1)
    bench.send(b"y", token=2)
    bench.out.up(1, 20, 1000)
    assert [b"y"] == bench.broker.payloads
    assert 1 == bench.out.dropped
    assert not bench.out.holds(1)


def test_chunks_are_sent_now_or_never(bench: Bench) -> None:
    assert not bench.out.send_now("t", b"c", None, None)
    bench.out.up(1, 20, None)
    assert bench.out.send_now("t", b"c", "application/json", b"corr")
    assert [(1, "t", b"c", 0, False, b"corr")] == bench.broker.sent


def test_p09_chunks_that_the_socket_does_not_take_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "MAX_QOS0_BYTES", 100)
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
            bench.out.down(closed_by_broker=True)
        else:
            confirmed += 1
            bench.out.acked(session, confirmed)
    session += 1
    bench.out.up(session, 2, None)
    for mid in range(1, bench.broker.last + token + 1):
        bench.out.acked(session, mid)
    assert sorted(range(1, token + 1), key=str) == sorted(bench.delivered, key=str)
    assert 0 == bench.out.backlog
