"""Messages that paho cannot read: acknowledged, reported, and no reason to leave the broker."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edged.config.keys import check_file
from edged.core.errors import BadValue
from edged.link import attempt
from edged.link.attempt import Subscription
from edged.link.events import Arrived, Down, Up
from tests.link.conftest import CONFIG, PROMPTS, ROOT, Line, Wire
from tests.support import Broker, Client, Device, running


def publish_packet(qos: int, text: bytes, mid: int = 7) -> bytes:
    """A PUBLISH of v5 to the topic `t` with these bytes as its content type."""
    properties = b"\x03" + len(text).to_bytes(2, "big") + text
    body = b"\0\x01t" + (mid.to_bytes(2, "big") if qos else b"") + bytes([len(properties)]) + properties + b"payload"
    return bytes([0x30 | qos << 1, len(body)]) + body


@pytest.mark.parametrize("text", [b"\xef\xbb\xbfx", b"\xff", b"a\0b", b"\xed\xa0\x80"])
@pytest.mark.parametrize("qos", [0, 1])
def test_a_string_that_paho_does_not_like_makes_one_unreadable_message(
    wired: tuple[Line, Wire], qos: int, text: bytes
) -> None:
    made, wire = wired
    wire.send(publish_packet(qos, text) + publish_packet(1, b"good", mid=8))
    bad, good = made.next(Arrived), made.next(Arrived)
    assert ("t", qos, b"") == (bad.topic, bad.qos, bad.payload)
    assert bad.unreadable
    assert (b"payload", "good", None) == (good.payload, good.content_type, good.unreadable)
    made.connection.acknowledge(bad)
    made.connection.acknowledge(good)
    if qos:
        assert b"\x40\x02\0\x07" == wire.read(4)
    assert b"\x40\x02\0\x08" == wire.read(4)


def test_one_at_qos_2_goes_through_the_whole_handshake(wired: tuple[Line, Wire]) -> None:
    """We subscribe at QoS 1, so only a broker with an old session of ours could send it."""
    made, wire = wired
    wire.send(publish_packet(2, b"\xff"))
    assert b"\x50\x02\0\x07" == wire.read(4)
    wire.send(b"\x62\x02\0\x07")
    bad = made.next(Arrived)
    assert bad.unreadable
    made.connection.acknowledge(bad)
    assert b"\x70\x02\0\x07" == wire.read(4)


@pytest.mark.parametrize("packet", [b"\x32\x04\0\x01t\0", b"\x36\x05\0\x01t\0\x07", b"\x30\x00"])
def test_one_without_even_a_topic_and_a_packet_id_ends_the_connection(wired: tuple[Line, Wire], packet: bytes) -> None:
    """Nothing could be acknowledged: this is no broker, or the stream is torn."""
    made, wire = wired
    wire.send(packet)
    down = made.next(Down)
    assert down.reason
    assert not down.closed_by_broker


@pytest.mark.broker
@pytest.mark.mosquitto
def test_a_retained_message_with_a_byte_order_mark_keeps_no_one_off_the_broker(
    line: Callable[..., Line], client: Client
) -> None:
    client.publish(CONFIG, b"layer", retain=True, UserProperty=("note", "\ufeffx"))
    try:
        made = line(Subscription(PROMPTS, retained=False), Subscription(CONFIG, retained=True))
        made.next(Up)
        bad = made.next(Arrived)
        assert (CONFIG, False) == (bad.topic, bad.retain)
        assert "FEFF" in (bad.unreadable or "")
        made.connection.acknowledge(bad)
        client.publish(f"{ROOT}/prompt/me", b"next", ContentType="text/plain\ufeff")
        client.publish(f"{ROOT}/prompt/me", b"last")
        unreadable, last = made.next(Arrived), made.next(Arrived)
        assert (True, b"last") == (bool(unreadable.unreadable), last.payload)
        made.connection.acknowledge(unreadable)
        made.connection.acknowledge(last)
        made.connection.restart("a test")
        assert "a test" == made.next(Down).reason
        made.next(Up)
        assert CONFIG == made.next(Arrived).topic
        client.publish(f"{ROOT}/prompt/me", b"after")
        assert b"after" == made.next(Arrived).payload
    finally:
        client.publish(CONFIG, b"", retain=True)


@pytest.mark.broker
def test_a_device_answers_reports_or_counts_one_and_keeps_its_config(broker: Broker, tmp_path: Path) -> None:
    """Its payload is not read, so it is neither a prompt nor the empty layer that would remove what is in force."""
    made = Device(tmp_path, broker, name="unreadable")
    listener, sender = Client(broker.port), Client(broker.port)  # the listener must not get what is sent: it is paho
    listener.subscribe(f"{made.root}/status", f"{made.root}/event", f"{made.root}/config/reported")
    listener.subscribe("edged/v1/test/reply/#")
    try:
        with running(made):
            listener.status("online")
            layer = {"revision": 1, "settings": {"generation": {"max_tokens": 64}}}
            sender.publish(f"{made.root}/config", layer)
            listener.document("/config/reported", phase="applied", revision=1)
            sender.publish(f"{made.root}/config", layer | {"revision": 2}, UserProperty=("note", "\ufeff"))
            sender.publish(f"{made.root}/prompt/me", {"id": "bad", "prompt": "x"}, ContentType="text/plain\ufeff")
            sender.publish(f"{made.root}/prompt/me", {"id": "good", "prompt": "x"})
            sender.publish(f"{made.root}/cancel/me", {"all": True}, UserProperty=("note", "\ufeff"))
            assert listener.document("/config/reported", phase="rejected")["revision"] is None
            assert {"device": 1} == listener.final("good")["receipt"]["config"]
            refused = listener.wait(lambda m: "/auto-" in m.topic and json.loads(m.payload), what="a refusal")
            assert ("invalid", "unreadable") == (refused["reason"], refused["error"]["code"])
            told = listener.document("/event", code="bad_request", count=1)
            assert told["message"].startswith(f"a message to {made.root}/cancel/me was ignored: ")
            assert [] == listener.documents("bad")
            assert 1 == made.log.read_text().count('"event": "connected"')
    finally:
        for topic in ("status", "health", "config/reported"):
            sender.publish(f"{made.root}/{topic}", b"", retain=True)
        broker.forget_session("edged-test-unreadable")
        listener.close()
        sender.close()


# ---- what is too large for any setting ------------------------------------------------------------------------------


def test_the_largest_packet_is_above_the_largest_prompt_that_can_be_set_and_not_far() -> None:
    largest = 16_000_000
    assert largest == check_file({"limits": {"prompt_bytes": f"{largest}B"}})["limits"]["prompt_bytes"]
    with pytest.raises(BadValue):
        check_file({"limits": {"prompt_bytes": f"{largest + 1}B"}})
    assert largest + 500_000 < attempt.MAX_PACKET < largest + 2_000_000


@pytest.mark.broker
@pytest.mark.mosquitto
def test_the_broker_keeps_back_what_is_larger_than_any_setting_takes(
    line: Callable[..., Line], client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "MAX_PACKET", 2000)
    made = line(Subscription(PROMPTS, retained=False))
    made.next(Up)
    client.publish(f"{ROOT}/prompt/me", b"x" * 2100)
    client.publish(f"{ROOT}/prompt/me", b"y" * 1900)
    assert b"y" * 1900 == made.next(Arrived).payload
