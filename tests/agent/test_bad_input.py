"""Every line of bad input, through a real broker: a final with a clear error, or a counted event."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import Client, Device, as_json, wait_until

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
    "format": (b'{"id":"format","prompt":"x","format":{"type":"regex","patern":"a"}}', 'did you mean "pattern"'),
    "schema": (
        b'{"id":"schema","prompt":"x","format":{"type":"json_schema","schema":{"type":"string","minLenght":3}}}',
        "minLength",
    ),
    "stop-too": (
        b'{"id":"stop-too","prompt":"x","stop":["."],"format":{"type":"choice","choices":["a"]}}',
        "combined with format",
    ),
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


@pytest.mark.mosquitto
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


@pytest.mark.mosquitto
def test_p01_a_thousand_prompts_against_a_queue_of_64(asked: Device, client: Client) -> None:
    """Each gets exactly one final: those that fit an answer, the others `busy` with when to ask again."""
    for index in range(1000):
        client.publish(f"{asked.root}/prompt/many{index % 8}", {"id": f"n{index}", "prompt": "wait:go x"}, qos=0)

    def finals() -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {}
        for message in list(client.messages):
            if "/reply/" in message.topic and (document := as_json(message)).get("final"):
                found.setdefault(document["id"], []).append(document)
        return found

    wait_until(lambda: len(finals()) >= 936, 60, "936 finals", every=0.3)
    assert {"busy"} == {documents[0]["reason"] for documents in finals().values()}
    assert all(documents[0]["retry_after_ms"] >= 1000 for documents in finals().values())
    (asked.control / "go").touch()
    wait_until(lambda: len(finals()) == 1000, 60, "1,000 finals", every=0.3)
    client.publish(f"{asked.root}/prompt/me", {"id": "after", "prompt": "x"})
    client.final("after")
    answered = finals()
    assert 64 == sum(answered[f"n{index}"][0]["reason"] == "stop" for index in range(1000))
    assert {1} == {len(documents) for documents in answered.values()}


@pytest.mark.mosquitto
def test_what_gets_no_reply_is_counted_and_reported(asked: Device, client: Client) -> None:
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
    payloads = mutated(good)
    assert 300 == len(payloads)
    client.clear()
    client.publish_all(f"{asked.root}/config", payloads, retain=True)

    def events() -> list[dict[str, Any]]:
        return [as_json(m) for m in list(client.messages) if m.topic.endswith("/event")]

    wait_until(lambda: len(events()) >= 300, 60, "an event for each", every=0.3)
    assert ["config_rejected"] * 300 == [event["code"] for event in events()]
    assert all(event["message"].removeprefix("device: ") for event in events())
    reports = [as_json(m) for m in list(client.messages) if m.topic.endswith("/reported")]
    assert {"rejected"} == {report["phase"] for report in reports}
    assert all({"device": 5} == report["in_force"] for report in reports)
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
        values: list[Any] = [{}, {"fleet": "x"}, "x", 1, [{"prompt": "x", "within": "0s"}]]
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


def mangled(number: int, draw: random.Random) -> bytes:
    """A good prompt with a few bytes changed, cut out, doubled or put in."""
    body = {"id": f"m{number}", "messages": [{"role": "user", "content": "é"}], "max_tokens": 5, "stop": ["x"]}
    raw = bytearray(json.dumps(body).encode())
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(raw))
        piece = bytes(draw.choices(b'{}[]",:\\u0123e-. \x00\xff\xc3', k=draw.randint(1, 4)))
        end = at + draw.choice([0, 1, len(piece), 20])
        raw[at:end] = draw.choice([piece, raw[at:end] * 2, b""])
    return bytes(raw)


def test_p01_300_mangled_prompts_get_one_answer_each(asked: Device, client: Client) -> None:
    """A final, or the notice of a conflict where the change made two ids the same."""
    draw = random.Random(7)
    payloads = [mangled(number, draw) for number in range(300)]
    client.publish_all(f"{asked.root}/prompt/me", payloads)
    client.publish_all(f"{asked.root}/cancel/me", payloads[:50])

    def answers() -> list[dict[str, Any]]:
        found = [as_json(m) for m in list(client.messages) if "/reply/" in m.topic]
        return [document for document in found if document.get("final") or document.get("conflict")]

    wait_until(lambda: len(answers()) >= 300, 60, "300 answers", every=0.3)
    client.publish(f"{asked.root}/prompt/me", {"id": "good", "prompt": "still here"})
    assert "still here " == client.final("good")["text"]
    assert 301 == len(answers())
    assert {"invalid", "stop"} >= {document.get("reason", "stop") for document in answers()} - {"busy", "cancelled"}
