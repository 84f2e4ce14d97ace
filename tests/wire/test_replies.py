"""Outgoing replies, byte by byte as the contract spells them."""

from __future__ import annotations

import json
from typing import get_args

from edged.core.prompt import Reason, Usage
from edged.wire import replies

NOON = 1_795_507_200.0  # 2026-11-24T08:00:00Z


def test_a_time_is_utc_with_milliseconds() -> None:
    assert "2026-11-24T08:00:00.000Z" == replies.rfc3339(NOON)
    assert "2026-11-24T08:00:00.012Z" == replies.rfc3339(NOON + 0.0129)


def test_the_notice() -> None:
    assert b'{"id":"a","accepted":true,"position":3,"eta_ms":1200}' == replies.accepted("a", 3, 1200)
    assert b'{"id":"a","accepted":true,"position":1,"eta_ms":null}' == replies.accepted("a", 1, None)


def test_the_notice_of_a_conflict() -> None:
    document = json.loads(replies.conflict("a"))
    assert document.pop("message")
    assert {"id": "a", "conflict": True} == document


def test_a_chunk() -> None:
    assert '{"id":"a","seq":2,"at":7,"text":"hällo"}'.encode() == replies.chunk("a", 2, 7, "hällo")


def test_a_final_with_everything() -> None:
    payload = replies.answer(
        "a",
        "stop",
        "Tokyo.",
        NOON,
        Usage(31, 24, 17),
        replies.Timing(0.4, 41.0, 388.2, 49.1),
        replies.Receipt("pi", "m", "sha256:0", "q4_1", "native", {"fleet": 7, "device": 12}, 1, throttled=False),
    )
    assert {
        "id": "a",
        "final": True,
        "reason": "stop",
        "text": "Tokyo.",
        "ts": "2026-11-24T08:00:00.000Z",
        "usage": {"prompt_tokens": 31, "cached_tokens": 24, "completion_tokens": 17},
        "timing": {"queue_ms": 0.4, "ttft_ms": 41.0, "total_ms": 388.2, "tokens_per_second": 49.1},
        "receipt": {
            "device": "pi",
            "model": "m",
            "digest": "sha256:0",
            "quantization": "q4_1",
            "backend": "native",
            "config": {"fleet": 7, "device": 12},
            "seed": 1,
            "throttled": False,
        },
    } == json.loads(payload)


def test_a_refusal_carries_a_code_and_a_sentence() -> None:
    document = json.loads(replies.refusal("a", "busy", "queue_full", "try later", NOON, retry_after_ms=1500))
    assert {
        "id": "a",
        "final": True,
        "reason": "busy",
        "text": "",
        "ts": "2026-11-24T08:00:00.000Z",
        "error": {"code": "queue_full", "message": "try later"},
        "retry_after_ms": 1500,
    } == document
    assert "retry_after_ms" not in json.loads(replies.refusal("a", "invalid", "c", "m", NOON))


def test_a_reason_is_one_of_the_contracts_words() -> None:
    assert {
        "stop",
        "length",
        "cancelled",
        "expired",
        "busy",
        "too_long",
        "invalid",
        "poisoned",
        "unavailable",
        "failed",
    } == set(get_args(Reason))
    assert "too_long" == replies.reason("too_long")
    assert "failed" == replies.reason("nonsense")
