"""Properties that are not used, in any number: they cost no time and change nothing else of a message."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edged.link.events import Arrived
from edged.link.inbound_properties import without_repeatable
from tests.link.conftest import Line, Wire
from tests.support import SECONDS

TEXT = st.text(st.characters(codec="utf-8", min_codepoint=32, max_codepoint=126), max_size=200)


def properties(pairs: list[tuple[str, str]], values: dict[str, object]) -> Properties:
    made = Properties(PacketTypes.PUBLISH)
    for name, value in values.items():
        setattr(made, name, value)
    if pairs:
        made.UserProperty = pairs
    return made


def body(qos: int, packed: bytes, payload: bytes = b"payload") -> bytes:
    return b"\0\x01t" + (b"\0\x07" if qos else b"") + packed + payload


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2),
    st.lists(st.tuples(TEXT, TEXT), max_size=5),
    st.fixed_dictionaries(
        {},
        optional={
            "ResponseTopic": TEXT,
            "ContentType": TEXT,
            "CorrelationData": st.binary(max_size=200),
            "MessageExpiryInterval": st.integers(0, 2**32 - 1),
            "PayloadFormatIndicator": st.integers(0, 1),
            "TopicAlias": st.integers(1, 65535),
        },
    ),
)
def test_only_user_properties_are_taken_out(qos: int, pairs: list[tuple[str, str]], values: dict[str, object]) -> None:
    packed = bytes(properties(pairs, values).pack())
    expected = body(qos, bytes(properties([], values).pack()))
    assert expected == bytes(without_repeatable(0x30 | qos << 1, bytearray(body(qos, packed))))


def test_subscription_identifiers_are_taken_out() -> None:
    packed = b"\x07" + b"\x0b\x05" + b"\x0b\xff\x01" + b"\x01\x01"
    assert bytes(without_repeatable(0x32, bytearray(body(1, packed)))) == body(1, b"\x02\x01\x01")


@pytest.mark.parametrize(
    "packed",
    [
        b"\x01",  # nothing follows
        b"\xff\xff\xff\xff\x01",  # a length of five bytes
        b"\x05\x26\0\x09ab",  # a text longer than the properties
        b"\x02\x26\0",
        b"\x06\x26\0\x01\0\0\0",  # NUL
        b"\x06\x26\0\x01\xff\0\0",  # not UTF-8
        b"\x01\x7f",  # an identifier that there is not
        b"\x02\x11\0",  # one that belongs in other packets
    ],
)
def test_what_cannot_be_read_is_an_error(packed: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        without_repeatable(0x32, bytearray(body(1, packed, b"")))


def test_a_message_with_a_hundred_thousand_user_properties_arrives_within_seconds(wired: tuple[Line, Wire]) -> None:
    """Before, the network thread was busy with it for longer than the keep-alive."""
    made, wire = wired
    values = {"ContentType": "application/json", "CorrelationData": b"c"}
    user = b"\x26\0\0\0\0" * 100_000
    own = bytes(properties([], values).pack())[1:]
    packed = _length(len(user + own)) + user + own
    packet = body(1, packed)
    began = time.monotonic()
    wire.send(b"\x32" + _length(len(packet)) + packet)
    message = made.next(Arrived)
    assert time.monotonic() - began < 3 * SECONDS
    assert (message.payload, message.content_type, message.correlation) == (b"payload", "application/json", b"c")


def _length(count: int) -> bytes:
    digits = []
    while count >= 128:
        digits.append(count & 127 | 128)
        count >>= 7
    return bytes([*digits, count])
