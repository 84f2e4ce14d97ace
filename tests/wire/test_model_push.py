"""Payloads of a model that is sent over the broker."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edged.core.errors import BadValue
from edged.wire import model_push
from edged.wire.model_push import CHUNK, Offer, State

GOOD: dict[str, Any] = {"name": "m.gguf", "size": 3 * CHUNK + 1, "root": "0" * 64}


def parsed(**changed: Any) -> Offer:
    return model_push.parse_offer(json.dumps({**GOOD, **changed}).encode())


def test_an_offer_is_read_as_it_was_written() -> None:
    offers = (
        Offer("m.gguf", 9, "0" * 64, expires_at=10.5),
        Offer("m.gguf", 9, "0" * 64, ("a", "b")),
        Offer("m.gguf", 9, "0" * 64, group="g"),
    )
    for offer in offers:
        assert offer == model_push.parse_offer(json.dumps(model_push.offer(offer)).encode())


def test_whom_an_offer_is_for() -> None:
    cases = [({}, True), ({"devices": ["pi"]}, True), ({"devices": ["pj"]}, False), ({"group": "g"}, True),
             ({"group": "h"}, False)]  # fmt: skip
    assert [expected for _, expected in cases] == [parsed(**to).is_for("pi", ("g",)) for to, _ in cases]


def test_the_sizes_of_chunks() -> None:
    offer = parsed()
    assert (4, [CHUNK, CHUNK, CHUNK, 1]) == (offer.count, [offer.chunk_size(number) for number in range(4)])
    assert [CHUNK + 64, 1 + 64] == [offer.payload_size(0), offer.payload_size(3)]
    assert 128_000 > parsed(size=model_push.MAX_SIZE).payload_size(0)


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "../m.gguf"},
        {"name": ".m.gguf"},
        {"name": "m.bin"},
        {"name": "a/m.gguf"},
        {"name": "m.gguf\n"},
        {"size": 0},
        {"size": -1},
        {"size": model_push.MAX_SIZE + 1},
        {"size": True},
        {"size": 1.5},
        {"root": "0" * 63},
        {"root": "G" * 64},
        {"devices": []},
        {"devices": ["a", "a"]},
        {"devices": ["A"]},
        {"devices": ["a"], "group": "g"},
        {"group": "+"},
        {"expires_at": "soon"},
        {"signature": {}},
        {"unknown": 1},
        {"name": None},
    ],
)
def test_bad_offers(changed: dict[str, Any]) -> None:
    with pytest.raises(BadValue):
        parsed(**changed)


@pytest.mark.parametrize("payload", [b"", b"[]", b"{}", b"\xff", b"{" * 40, b" " * (model_push.MAX_OFFER + 1)])
def test_payloads_that_are_no_offer(payload: bytes) -> None:
    with pytest.raises(BadValue):
        model_push.parse_offer(payload)


@pytest.mark.parametrize(
    "given",
    [None, {}, [[1]], [[1, 2, 3]], [[2, 2]], [[3, 2]], [[-1, 2]], [[True, 2]], [[0.0, 2]], ["ab"], [[0, 1]] * 257],
)
def test_bad_ranges(given: Any) -> None:
    with pytest.raises(BadValue):
        model_push.parse_ranges(json.dumps({"ranges": given}).encode())


def test_ranges_and_states_are_read_as_they_were_written() -> None:
    assert [(0, 2), (3, 4)] == model_push.parse_ranges(model_push.ranges([(0, 2), (3, 4)]))
    state = State("failed", 0.5, "why")
    assert state == model_push.parse_state(model_push.state(state))
    assert [None] * 4 == [model_push.parse_state(p) for p in (b"", b"[]", b'{"state":"?"}', b" " * 5000)]


@pytest.mark.parametrize(
    ("text", "number"), [("0", 0), ("17", 17), ("", None), ("-1", None), ("01", None), ("²", None), ("9" * 99, None)]
)
def test_the_number_of_a_chunk_in_its_topic(text: str, number: int | None) -> None:
    assert number == model_push.parse_number(text)
