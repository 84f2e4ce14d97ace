"""One connection against a real mosquitto."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edged.link.access import broker_address
from edged.link.attempt import Subscription
from edged.link.events import Acked, Arrived, Down, Up
from tests.link.conftest import CONFIG, PROMPTS, ROOT, STATUS, Line
from tests.support import Broker, Client


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
    assert address == broker_address(url)


# ---- a real broker --------------------------------------------------------------------------------------------------


@pytest.mark.broker
def test_up_means_that_the_subscriptions_stand(line: Callable[..., Line], client: Client) -> None:
    made = line(Subscription(PROMPTS, retained=False))
    up = made.next(Up)
    assert ("5", ()) == (up.version, up.refused)
    assert up.window > 0
    client.publish(f"{ROOT}/prompt/me", b"x", ResponseTopic="r", CorrelationData=b"\0\xff", ContentType="text/plain")
    message = made.next(Arrived)
    assert (f"{ROOT}/prompt/me", b"x", 1, False) == (message.topic, message.payload, message.qos, message.retain)
    assert ("r", b"\0\xff", "text/plain") == (message.response_topic, message.correlation, message.content_type)


@pytest.mark.broker
def test_retained_prompts_stay_away_at_subscribe_and_are_marked_when_live_while_config_always_comes(
    line: Callable[..., Line], client: Client
) -> None:
    client.publish(f"{ROOT}/prompt/old", b"old", retain=True)
    client.publish(CONFIG, b"layer", retain=True)
    try:
        made = line(Subscription(PROMPTS, retained=False), Subscription(CONFIG, retained=True))
        first = made.next(Arrived)
        assert (CONFIG, b"layer", True) == (first.topic, first.payload, first.retain)
        made.connection.acknowledge(first)
        client.publish(f"{ROOT}/prompt/new", b"new", retain=True)
        second = made.next(Arrived)
        assert (f"{ROOT}/prompt/new", True) == (second.topic, second.retain)
        made.connection.acknowledge(second)
        made.connection.restart("a test")
        made.next(Up)
        third = made.next(Arrived)
        assert (CONFIG, b"layer") == (third.topic, third.payload)
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
    assert (b"kept", b"taken") == (kept.payload, taken.payload)
    made.connection.restart("the journal is full")
    assert "the journal is full" == made.next(Down).reason
    made.next(Up)
    again, taken_again = made.next(Arrived), made.next(Arrived)
    assert (b"kept", b"taken") == (again.payload, taken_again.payload)
    made.connection.acknowledge(again)
    made.connection.acknowledge(taken_again)
    made.connection.restart("once more")
    made.next(Up)
    client.publish(f"{ROOT}/prompt/me", b"next")
    assert b"next" == made.next(Arrived).payload


@pytest.mark.broker
def test_an_acknowledgement_of_an_older_connection_confirms_nothing(line: Callable[..., Line], client: Client) -> None:
    made = line(Subscription(PROMPTS, retained=False))
    made.next(Up)
    client.publish(f"{ROOT}/prompt/me", b"first")
    old = made.next(Arrived)
    made.connection.restart("a test")
    made.next(Up)
    assert b"first" == made.next(Arrived).payload
    made.connection.acknowledge(old)
    made.connection.restart("a test")
    made.next(Up)
    new = made.next(Arrived)
    assert b"first" == new.payload
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
    assert Acked(up.session, mid) == made.next(Acked)
    message = client.wait(lambda m: m.topic == f"{ROOT}/reply" and m)
    assert (b"y", b"\0") == (message.payload, message.properties.CorrelationData)
    assert "application/json" == message.properties.ContentType


@pytest.mark.broker
def test_a_clean_stop_leaves_no_will_and_a_cut_does(broker: Broker, client: Client) -> None:
    client.publish(STATUS, b"", retain=True)  # the will of a line in another file of tests may be retained
    client.subscribe(STATUS)
    made = Line(broker.url)
    made.connection.start()
    made.next(Up)
    made.connection.stop()
    client.publish(STATUS, b"marker")
    client.wait(lambda m: m.payload == b"marker")
    assert [b"marker"] == [m.payload for m in client.messages]
    cut = Line(broker.url)
    cut.connection.start()
    cut.next(Up)
    cut.cut()
    client.wait(lambda m: m.payload == b"offline", what="the will")
    cut.next(Up)
    cut.connection.stop()
    client.publish(STATUS, b"", retain=True)


@pytest.mark.broker
def test_it_speaks_3_1_1_when_told_to(line: Callable[..., Line], client: Client) -> None:
    made = line(Subscription(PROMPTS, retained=False), version="3.1.1")
    assert "3.1.1" == made.next(Up).version
    client.publish(f"{ROOT}/prompt/me", b"x")
    message = made.next(Arrived)
    made.connection.acknowledge(message)
    assert (b"x", None) == (message.payload, message.correlation)
