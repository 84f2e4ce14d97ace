"""The promises that only a running device shows: kills, restarts, duplicates, deadlines, the broker gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import Broker, Client, Device, as_json, running, stopped, wait_until

pytestmark = pytest.mark.broker
Make = Callable[..., Device]


def finals(client: Client, prompt_id: str) -> list[dict[str, object]]:
    return [document for document in client.documents(prompt_id) if document.get("final")]


def began(client: Client, prompt_id: str) -> None:
    client.wait(lambda m: as_json(m).get("id") == prompt_id and "seq" in as_json(m), 20, f"a chunk of {prompt_id}")


def accepted(client: Client, prompt_id: str) -> None:
    client.wait(lambda m: as_json(m).get("id") == prompt_id and as_json(m).get("accepted"), 20, f"{prompt_id} accepted")


def test_p02_ten_accepted_prompts_survive_a_kill_of_the_agent(device: Make, client: Client) -> None:
    """Started again, all ten are answered once; the worker of the killed agent ends within 5 s."""
    made = device()
    for index in range(10):
        client.publish(f"{made.root}/prompt/me", {"id": f"k{index}", "prompt": f"wait:go answer{index}"})
        accepted(client, f"k{index}")
    orphans = made.worker_pids()
    made.kill()
    wait_until(
        lambda: not [pid for pid in orphans if Path(f"/proc/{pid}").exists()], 5, "the worker ends with its agent"
    )
    (made.control / "go").touch()
    made.start()
    for index in range(10):
        assert f"answer{index} " == client.final(f"k{index}")["text"]
    client.publish(f"{made.root}/prompt/me", {"id": "last", "prompt": "x"})
    client.final("last")
    assert [1] * 10 == [len(finals(client, f"k{index}")) for index in range(10)]


def test_p03_a_duplicate_gets_the_stored_final_and_another_body_a_notice(device: Make, client: Client) -> None:
    made = device()
    body = {"id": "same", "prompt": "one two"}
    client.publish(f"{made.root}/prompt/me", body)
    first = client.final("same")
    client.clear()
    client.publish(f"{made.root}/prompt/me", body)
    assert first == client.final("same")
    client.clear()
    client.publish(f"{made.root}/prompt/me", {"id": "same", "prompt": "other"})
    client.wait(lambda m: as_json(m).get("conflict"), 10, "the notice of conflict")
    client.publish(f"{made.root}/prompt/me", {"id": "next", "prompt": "x"})
    client.final("next")
    assert not finals(client, "same")


def test_p03_a_duplicate_of_a_running_prompt_gets_the_text_so_far(device: Make, client: Client) -> None:
    made = device()
    body = {"id": "run", "prompt": "first wait:go second"}
    client.publish(f"{made.root}/prompt/me", body)
    began(client, "run")
    client.clear()
    client.publish(f"{made.root}/prompt/me", body)
    client.wait(
        lambda m: as_json(m).get("id") == "run" and as_json(m).get("at") == 0 and as_json(m)["text"] == "first "
    )
    (made.control / "go").touch()
    assert "first second " == client.final("run")["text"]
    assert 1 == len(finals(client, "run"))


def test_p11_the_worker_crashes_once_then_twice(device: Make, client: Client) -> None:
    """Once: tried again, one final. Twice: `poisoned`. A prompt beside it is not counted, and MQTT stays connected."""
    made = device()
    client.clear()
    client.publish(f"{made.root}/prompt/me", {"id": "beside", "prompt": "start wait:go end"})
    began(client, "beside")
    client.publish(f"{made.root}/prompt/me", {"id": "once", "prompt": "say:a die-once say:b"})
    (made.control / "go").touch()
    assert "a b " == client.final("once")["text"]
    assert "start end " == client.final("beside")["text"]
    client.publish(f"{made.root}/prompt/me", {"id": "poison", "prompt": "say:a die"})
    final = client.final("poison", 15)
    assert ("poisoned", "worker_died") == (final["reason"], final["error"]["code"])
    client.publish(f"{made.root}/prompt/me", {"id": "after", "prompt": "well"})
    assert "well " == client.final("after")["text"]
    assert [1, 1, 1] == [len(finals(client, name)) for name in ("once", "beside", "poison")]
    assert not [m for m in client.messages if m.topic.endswith("/status")]


def test_p09_what_was_finished_without_the_broker_is_delivered_later(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    broker = Broker(folder, "persistence false\n").start()
    client = Client(broker.port).subscribe("edged/v1/test/#")
    made = Device(tmp_path, broker)
    try:
        with running(made):
            client.wait(lambda m: m.payload == b"online", 30, "status online")
            client.publish(f"{made.root}/prompt/me", {"id": "away", "prompt": "before wait:go after"})
            began(client, "away")
            client.close()
            broker.stop()
            wait_until(lambda: "not connected" in made.log.read_text(), 10, "the device notices")
            (made.control / "go").touch()
            with stopped(made):  # this broker forgot our subscription: it must stand before the final comes
                broker.start()
                client = Client(broker.port).subscribe("edged/v1/test/#")
            assert "before after " == client.final("away", 30)["text"]
            client.wait(lambda m: m.topic.endswith("/status") and m.payload == b"online", 30, "status online again")
            assert 0 == made.stop()
    finally:
        client.close()
        broker.stop()


def test_p09_a_broker_that_is_away_at_the_start_is_waited_for(tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    made = Device(tmp_path, broker)
    with running(made):
        wait_until(lambda: "no broker listens there" in made.log.read_text(), 10, "it says so")
        broker.start()
        client = Client(broker.port).subscribe("edged/v1/test/#")
        client.wait(lambda m: m.payload == b"online", 60, "status online")
        client.close()
        assert 0 == made.stop()
    broker.stop()


def test_deadlines_cancels_and_priorities(device: Make, client: Client) -> None:
    made = device()
    prompt = f"{made.root}/prompt/me"
    client.publish(prompt, {"id": "late", "prompt": "some wait:never", "deadline_ms": 300})
    client.publish(prompt, {"id": "expiring", "prompt": "wait:never"}, MessageExpiryInterval=1)
    client.publish(prompt, {"id": "past", "prompt": "x", "expires_at": "2020-01-01T00:00:00Z"})
    client.publish(prompt, {"id": "running", "prompt": "text wait:never"})
    client.publish(f"{made.root}/prompt/you", {"id": "theirs", "prompt": "wait:go x"})
    began(client, "running")
    client.publish(f"{made.root}/cancel/me", {"id": "running"})
    final = client.final("running")
    assert ("cancelled", "text ") == (final["reason"], final["text"])
    assert {"expired"} == {client.final(name)["reason"] for name in ("late", "expiring", "past")}
    client.publish(f"{made.root}/cancel/me", {"all": True})
    (made.control / "go").touch()
    assert "stop" == client.final("theirs")["reason"]
    client.publish(prompt, {"id": "late", "prompt": "again"})
    client.wait(lambda m: as_json(m).get("id") == "late" and as_json(m).get("reason") == "stop", 10, "a freed id works")


def test_a_response_topic_gets_one_message_with_its_correlation(device: Make, client: Client) -> None:
    made = device()
    where, data = "edged/v1/test/reply/me/own/topic", b"\x00\xff any bytes"
    client.publish(f"{made.root}/prompt/me", {"id": "rr", "prompt": "a b c"}, ResponseTopic=where, CorrelationData=data)
    client.final("rr")
    (message,) = [m for m in client.messages if m.topic == where]
    assert data == message.properties.CorrelationData
    assert "application/json" == message.properties.ContentType


def test_draining_leaves_what_waits_for_the_next_start(device: Make, client: Client) -> None:
    made = device({"model": {"source": "wait"}}, until="starting")
    client.publish(f"{made.root}/prompt/me", {"id": "waits", "prompt": "later"})
    accepted(client, "waits")
    assert 0 == made.stop()
    client.wait(lambda m: m.topic.endswith("/status") and m.payload == b"offline", 10, "status offline")
    (made.control / "load").touch()
    made.start()
    assert "later " == client.final("waits")["text"]


def test_p06_without_a_usable_model_the_device_is_safe_and_says_why(device: Make, client: Client) -> None:
    made = device({"model": {"source": "broken"}}, until="safe")
    client.publish(f"{made.root}/prompt/me", {"id": "x", "prompt": "hello"})
    final = client.final("x")
    assert "unavailable" == final["reason"]
    assert "remove it" in final["error"]["message"]
    health = client.wait(lambda m: m.topic.endswith("/health") and as_json(m).get("state") == "failing" and as_json(m))
    assert "model_tampered" == health["findings"][0]["code"]


def test_a_status_of_offline_is_published_over(device: Make, client: Client) -> None:
    made = device()
    client.clear()  # before the publish: the device's answer may come before the broker's acknowledgement of it
    client.publish(f"{made.root}/status", b"offline", retain=True)
    client.wait(lambda m: m.topic.endswith("/status") and m.payload == b"online", 10, "status online again")


def test_a_layer_changes_the_next_reply_and_survives_a_restart(device: Make, client: Client) -> None:
    made = device()
    client.publish(f"{made.root}/config", {"revision": 7, "settings": {"limits": {"max_tokens": 5}}}, retain=True)
    report = client.wait(lambda m: m.topic.endswith("/reported") and as_json(m).get("revision") == 7 and as_json(m))
    assert "applied" == report["phase"]
    client.publish(f"{made.root}/prompt/me", {"id": "six", "prompt": "x", "max_tokens": 6})
    assert "limits.max_tokens" in client.final("six")["error"]["message"]
    client.publish(f"{made.root}/config", b"", retain=True)
    client.wait(
        lambda m: m.topic.endswith("/reported") and as_json(m).get("in_force") == {} and as_json(m).get("layer")
    )
    client.publish(f"{made.root}/prompt/me", {"id": "seven", "prompt": "x", "max_tokens": 6})
    assert {} == client.final("seven")["receipt"]["config"]
    client.publish(f"{made.root}/config", {"revision": 8, "settings": {"mqtt": {"url": "mqtt://x"}}}, retain=True)
    report = client.wait(lambda m: m.topic.endswith("/reported") and as_json(m).get("revision") == 8 and as_json(m))
    assert "rejected" == report["phase"]
    assert "mqtt" in report["reason"]
