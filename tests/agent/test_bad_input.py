"""Every line of bad input, through a real broker: a final with a clear error, or a counted event."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import Client, Device, as_json

pytestmark = pytest.mark.broker

BODIES: dict[str, tuple[bytes, str]] = {
    "broken": (b'{"id":"broken","prompt":', "not valid JSON"),
    "utf8": (b'{"id":"utf8","prompt":"\xff\xfe"}', "UTF-8"),
    "type": (b'{"id":"type","prompt":5}', "prompt"),
    "unknown": (b'{"id":"unknown","prompt":"x","temprature":1}', "temperature"),
    "both": (b'{"id":"both","prompt":"x","messages":[{"role":"user","content":"x"}]}', "exactly one"),
    "neither": (b'{"id":"neither"}', "exactly one"),
    "empty": (b'{"id":"empty","prompt":" "}', "empty"),
    "no-turns": (b'{"id":"no-turns","messages":[]}', "empty"),
    "deep": (b'{"id":"deep","prompt":' + b"[" * 10_000 + b"]" * 10_000 + b"}", "nested"),
    "twice": (b'{"id":"twice","prompt":"x","prompt":"y"}', "twice"),
    "nan": (b'{"id":"nan","prompt":"x","temperature":NaN}', "NaN"),
    "overflow": (b'{"id":"overflow","prompt":"x","temperature":1e999}', "too large"),
    "surrogate": (b'{"id":"surrogate","prompt":"\\ud800"}', "surrogate"),
    "model": (b'{"id":"model","prompt":"x","model":"other"}', "does not"),
    "format": (b'{"id":"format","prompt":"x","format":{"type":"regex","pattern":"a"}}', "does not"),
    "negative": (b'{"id":"negative","prompt":"x","max_tokens":-1}', "max_tokens"),
    "zero": (b'{"id":"zero","prompt":"x","max_tokens":0}', "max_tokens"),
    "boolean": (b'{"id":"boolean","prompt":"x","max_tokens":true}', "max_tokens"),
    "huge": (b'{"id":"huge","prompt":"x","seed":1' + b"0" * 300 + b"}", "seed"),
    "too-many": (b'{"id":"too-many","prompt":"x","max_tokens":1025}', "limits.max_tokens"),
    "array": (b'{"id":"array","prompt":"x","stop":"a"}', "stop"),
}


@pytest.fixture
def asked(device: Callable[..., Device]) -> Device:
    return device()


def test_every_bad_body_gets_a_final_that_says_what_is_wrong(asked: Device, client: Client) -> None:
    for body, _ in BODIES.values():
        client.publish(f"{asked.root}/prompt/me", body)
    for prompt_id, (_, said) in BODIES.items():
        final = client.final(prompt_id)
        assert "invalid" == final["reason"], prompt_id
        assert said in final["error"]["message"], prompt_id
    client.publish(f"{asked.root}/prompt/me", {"id": "good", "prompt": "still here"})
    assert "still here " == client.final("good")["text"]


@pytest.mark.parametrize(
    "payload", [b"", b"  ", b"\xff\xfe", b'{"prompt":"' + b"x" * 64_000 + b'"}', b'{"id":"a b","prompt":"x"}']
)
def test_a_body_without_a_usable_id_is_answered_under_a_made_up_one(
    asked: Device, client: Client, payload: bytes
) -> None:
    client.publish(f"{asked.root}/prompt/me", payload)
    final = client.any_final("me")
    assert "invalid" == final["reason"]
    assert final["id"].startswith("auto-")
    assert final["error"]["message"]


def test_a_prompt_over_the_context_and_one_that_is_retained(asked: Device, client: Client) -> None:
    client.publish(f"{asked.root}/prompt/me", {"id": "over", "prompt": "long"})
    assert "too_long" == client.final("over")["reason"]
    client.publish(f"{asked.root}/prompt/me", {"id": "kept", "prompt": "x"}, retain=True)
    final = client.final("kept")
    client.publish(f"{asked.root}/prompt/me", b"", retain=True)
    assert "invalid" == final["reason"]
    assert "retain" in final["error"]["message"]


def test_a_response_topic_of_somebody_else_is_refused_on_the_own_topic(asked: Device, client: Client) -> None:
    body = {"id": "theirs", "prompt": "x"}
    client.publish(
        f"{asked.root}/prompt/me", body, ResponseTopic="edged/v1/test/reply/you/x", CorrelationData=b"\x00\xff"
    )
    final = client.final("theirs")
    assert "invalid" == final["reason"]
    assert [m.topic for m in client.messages if as_json(m).get("id") == "theirs" and "reply" in m.topic] == [
        "edged/v1/test/reply/me/pi/theirs"
    ]
    assert not [m for m in client.messages if m.topic.startswith("edged/v1/test/reply/you")]


def test_p01_a_thousand_prompts_against_a_queue_of_64(asked: Device, client: Client) -> None:
    """Each gets exactly one final: those that fit an answer, the others `busy` with when to ask again."""
    for index in range(1000):
        client.publish(f"{asked.root}/prompt/many", {"id": f"n{index}", "prompt": "wait:go x"}, qos=0)
    finals: dict[str, list[dict[str, Any]]] = {}

    def all_busy(_message: Any) -> bool:
        finals.clear()
        for message in client.messages:
            document = as_json(message)
            if document.get("final"):
                finals.setdefault(document["id"], []).append(document)
        return len(finals) >= 936

    client.wait(all_busy, 60, "936 finals")
    assert {"busy"} == {documents[0]["reason"] for documents in finals.values()}
    assert all(documents[0]["retry_after_ms"] >= 1000 for documents in finals.values())
    (asked.control / "go").touch()
    client.wait(lambda m: all_busy(m) and len(finals) == 1000, 60, "1,000 finals")
    assert 64 == sum(documents[0]["reason"] == "stop" for documents in finals.values())
    assert {1} == {len(documents) for documents in finals.values()}


def test_what_gets_no_reply_is_counted_and_told(asked: Device, client: Client) -> None:
    """A requester outside its pattern, cancels that cannot be read: an event `bad_request` each, nothing else."""
    client.publish(f"{asked.root}/prompt/a b", "hello")
    client.publish(f"{asked.root}/cancel/me", "hello")
    client.publish(f"{asked.root}/cancel/me", {"id": "x"}, retain=True)
    event = client.wait(lambda m: m.topic.endswith("/event") and as_json(m).get("count") == 3 and as_json(m))
    client.publish(f"{asked.root}/cancel/me", b"", retain=True)
    assert "bad_request" == event["code"]
    assert not [m for m in client.messages if "/reply/" in m.topic]


def test_300_mutated_layers_are_rejected_and_change_nothing(asked: Device, client: Client) -> None:
    good: dict[str, Any] = {"revision": 5, "settings": {"generation": {"max_tokens": 9}, "limits": {"queue": 8}}}
    client.publish(f"{asked.root}/config", good, retain=True)
    in_force = client.wait(lambda m: m.topic.endswith("/reported") and as_json(m).get("revision") == 5 and as_json(m))
    assert ("applied", {"device": 5}) == (in_force["phase"], in_force["in_force"])
    for number, payload in enumerate(mutated(good)):
        client.clear()
        client.publish(f"{asked.root}/config", payload, retain=True)
        report = client.wait(
            lambda m: m.topic.endswith("/reported") and as_json(m), 10, f"a report of {number}: {payload!r}"
        )
        assert "rejected" == report["phase"], payload
        assert report["reason"], payload
        assert {"device": 5} == report["in_force"], payload
    client.publish(f"{asked.root}/prompt/me", {"id": "go-on", "prompt": "fine"})
    final = client.final("go-on")
    assert {"device": 5} == final["receipt"]["config"]
    client.publish(f"{asked.root}/config", b"", retain=True)
    removed = client.wait(
        lambda m: m.topic.endswith("/reported") and as_json(m).get("phase") == "applied" and as_json(m)
    )
    assert {} == removed["in_force"]


def mutated(good: dict[str, Any]) -> list[bytes]:
    """300 payloads that no device may apply."""
    bad_values: list[Any] = [None, True, -1, 0, 2**53, 1.5, "x", "9", [], {}, [1], "é\u202e", {"a": 1}, 10**30, ""]
    bad: list[bytes] = []
    for section, key in (
        ("generation", "max_tokens"),
        ("generation", "top_k"),
        ("limits", "queue"),
        ("generation", "seed"),
    ):
        for value in bad_values:
            if key in {"top_k", "seed"} and value == 0 and value is not False:
                continue
            bad.append(json.dumps({**good, "settings": {section: {key: value}}}).encode())
    for value in bad_values:
        if value not in ({}, 0) and not isinstance(value, int):
            bad.append(json.dumps({**good, "settings": value}).encode())
        if value != 0 or value is False:
            bad.append(json.dumps({**good, "revision": value}).encode())
        bad.append(json.dumps({**good, "settings": {"telemetry": {"interval": value}}}).encode())
        bad.append(json.dumps({**good, "settings": {"log": {"level": value}}}).encode())
        bad.append(json.dumps({**good, "settings": {"model": {"context": value}}}).encode())
    for key in ("identity", "mqtt", "trust", "state_dir", "generaton", "Generation", "", "\u202e", "golden", "a" * 300):
        values: list[Any] = [{}, {"fleet": "x"}, "x", 1, [{"prompt": "x"}]]
        bad += [json.dumps({**good, "settings": {key: value}}).encode() for value in values]
    for extra in ("expires_at", "rollout", "signature", "revison", "Settings", "x"):
        bad += [json.dumps({**good, extra: value}).encode() for value in (1, "x", {}, [], True)]
    whole = json.dumps(good).encode()
    bad += [whole[:cut] for cut in range(1, len(whole) - 1, 1)]
    bad += [
        b"[" * 10_000,
        b"\xff",
        b"null",
        b"1",
        b'"x"',
        b"[]",
        b"{}",
        whole + b"}",
        whole.replace(b"9", b"NaN"),
        b" ",
    ]
    bad += [whole.replace(b'"limits"', b'"generation"'), b'{"revision":5,' + whole[1:]]
    return bad[:300]
