"""Finals on their way out: one that the broker would refuse is replaced by an error that it takes."""

from __future__ import annotations

import json

from edged.agent.journal import ReplyTo
from edged.agent.replies import Replies
from edged.link.outbound import Outbound
from tests.link.test_outbound import Taker

SMALL = b'{"id":"a","final":true}'
LARGE = b'{"id":"a","final":true,"text":"' + b"x" * 2000 + b'"}'


def out(max_packet: int | None) -> tuple[Replies, Taker]:
    broker = Taker()
    outbound = Outbound(broker, lambda _token: None, lambda: 0.0)
    outbound.up(1, 20, max_packet)
    return Replies(outbound, lambda: 0.0), broker


def test_a_final_goes_out_as_it_is_stored_with_its_correlation() -> None:
    replies, broker = out(None)
    replies.send_final(ReplyTo("t", b"c"), "a", LARGE, 1)
    assert broker.sent == [(1, "t", LARGE, 1, False, b"c")]


def test_p08_a_final_that_is_too_large_for_the_broker_is_an_error_and_never_cut() -> None:
    replies, broker = out(1000)
    replies.send_final(ReplyTo("t", b"c"), "a", LARGE, 1)
    ((_, _, payload, _, _, correlation),) = broker.sent
    final = json.loads(payload)
    assert (final["id"], final["reason"], final["error"]["code"]) == ("a", "failed", "too_large_for_broker")
    assert correlation == b"c"


def test_a_final_that_only_its_correlation_makes_too_large_goes_without_it() -> None:
    replies, broker = out(1000)
    replies.send_final(ReplyTo("t", b"c" * 990), "a", SMALL, 1)
    ((_, _, payload, _, _, correlation),) = broker.sent
    assert json.loads(payload)["final"] is True
    assert correlation is None
