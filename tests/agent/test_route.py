"""A prompt's route through a real broker: repeats, cancels, order, draining, kills, and clients that others wrote."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest

from tests.support import SECONDS, Broker, Client, Device, as_json, running, wait_until

pytestmark = pytest.mark.broker
Make = Callable[..., Device]


@pytest.fixture(scope="module")
def shared(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """One device for the tests that leave it as they found it; each uses ids of its own."""
    watcher = Client(broker.port).subscribe("edged/v1/test/device/shared/status")
    with running(Device(tmp_path_factory.mktemp("shared"), broker, name="shared")) as made:
        watcher.status("online", 30)
        yield made
    watcher.close()
    broker.forget_session("edged-test-shared")


@pytest.fixture
def asker(shared: Device, client: Client) -> Client:
    """A client that receives everything of the shared device."""
    client.subscribe("edged/v1/test/reply/#", f"{shared.root}/event", f"{shared.root}/status", f"{shared.root}/health")
    client.clear()
    return client


def seen(client: Client, prompt_id: str, **facts: Any) -> dict[str, Any]:
    """The first reply about this prompt with these values."""

    def matches(message: mqtt.MQTTMessage) -> Any:
        document = as_json(message)
        about = "/reply/" in message.topic and document.get("id") == prompt_id
        return document if about and facts.items() <= document.items() else None

    found: dict[str, Any] = client.wait(matches, 20, f"a reply to {prompt_id} with {facts}")
    return found


def began(client: Client, prompt_id: str) -> None:
    seen(client, prompt_id, seq=0)


# ---- one prompt -----------------------------------------------------------------------------------------------------


def test_a_plain_text_prompt_gets_a_notice_chunks_and_one_final(shared: Device, asker: Client) -> None:
    asker.publish(f"{shared.root}/prompt/plain", "say:Tokyo is it")
    final = asker.any_final("plain")
    documents = asker.replies(final["id"])
    assert documents[0] == {"id": final["id"], "accepted": True, "position": 1, "eta_ms": documents[0]["eta_ms"]}
    assert [d["seq"] for d in documents[1:-1]] == list(range(len(documents) - 2))
    assert documents[-1] == final
    assert final["text"] == "Tokyo is it "
    assert final["receipt"]["device"] == "shared"
    assert {m.topic for m in asker.messages if as_json(m).get("id") == final["id"]} == {
        f"edged/v1/test/reply/plain/shared/{final['id']}"
    }


def test_replies_have_the_quality_and_content_type_of_the_contract(shared: Device, asker: Client) -> None:
    asker.publish(f"{shared.root}/prompt/me", {"id": "qos", "prompt": "a b"})
    asker.final("qos")
    about = [m for m in asker.messages if as_json(m).get("id") == "qos"]
    assert {m.qos for m in about if not as_json(m).get("final")} == {0}
    assert [m.qos for m in about if as_json(m).get("final")] == [1]
    assert {m.properties.ContentType for m in about} == {"application/json"}
    assert not any(m.retain for m in about)


def test_p08_a_prompt_that_does_not_fit_is_refused_with_the_models_words(shared: Device, asker: Client) -> None:
    asker.publish(f"{shared.root}/prompt/me", {"id": "too-long", "prompt": "long"})
    final = asker.final("too-long")
    assert (final["reason"], final["text"]) == ("too_long", "")
    assert "99" in final["error"]["message"]
    assert "64" in final["error"]["message"]


def test_an_answer_ends_with_length_at_its_max_tokens(shared: Device, asker: Client) -> None:
    asker.publish(f"{shared.root}/prompt/me", {"id": "length", "prompt": "a b c d", "max_tokens": 2})
    final = asker.final("length")
    assert (final["reason"], final["text"]) == ("length", "a b ")


def test_a_response_topic_that_the_broker_would_not_take_does_not_end_the_connection(
    shared: Device, asker: Client
) -> None:
    """mosquitto throws out whoever publishes to a topic of more than 200 levels: that would be the device, for good."""
    deep = "edged/v1/test/reply/me/" + "a/" * 300 + "x"
    asker.publish(f"{shared.root}/prompt/me", {"id": "deep", "prompt": "x"}, ResponseTopic=deep)
    final = asker.final("deep")
    assert (final["reason"], final["error"]["code"]) == ("invalid", "response_topic")
    asker.publish(f"{shared.root}/prompt/me", {"id": "after-deep", "prompt": "x"})
    asker.final("after-deep")
    assert not [m for m in asker.messages if m.payload == b"offline"]


# ---- the same prompt again ------------------------------------------------------------------------------------------


def test_p03_a_finished_prompt_again_gets_its_final_byte_for_byte(shared: Device, asker: Client) -> None:
    body = json.dumps({"id": "bytes", "prompt": "one\u00e4 two"}, ensure_ascii=False).encode()
    asker.publish(f"{shared.root}/prompt/me", body)
    asker.final("bytes")
    asker.publish(f"{shared.root}/prompt/me", body, ResponseTopic="edged/v1/test/reply/me/second", CorrelationData=b"2")
    again = asker.wait(lambda m: m.topic == "edged/v1/test/reply/me/second" and m)
    (first,) = [
        m for m in asker.messages if m.topic == "edged/v1/test/reply/me/shared/bytes" and as_json(m).get("final")
    ]
    assert again.payload == first.payload
    assert again.properties.CorrelationData == b"2"
    received = (shared.control / "received").read_text().splitlines()
    assert received.count("one\u00e4 two") == 1


def test_p03_another_body_under_a_used_id_gets_the_notice_and_nothing_else(shared: Device, asker: Client) -> None:
    asker.publish(f"{shared.root}/prompt/me", {"id": "used", "prompt": "first wait:used-go last"})
    began(asker, "used")
    for body in ({"id": "used", "prompt": "second"}, {"id": "used", "prompt": 5}):
        asker.clear()
        asker.publish(f"{shared.root}/prompt/me", body)
        seen(asker, "used", conflict=True)
    (shared.control / "used-go").touch()
    assert asker.final("used")["text"] == "first last "
    assert [sorted(d) for d in asker.replies("used") if "conflict" in d] == [["conflict", "id", "message"]]
    assert len(asker.finals("used")) == 1


# ---- cancels and deadlines ------------------------------------------------------------------------------------------


def test_cancel_all_ends_what_runs_and_leaves_others_alone(shared: Device, asker: Client) -> None:
    for prompt_id in ("all-1", "all-2"):
        asker.publish(f"{shared.root}/prompt/canceller", {"id": prompt_id, "prompt": "a wait:never"})
        began(asker, prompt_id)
    asker.publish(f"{shared.root}/prompt/other", {"id": "all-1", "prompt": "b wait:all-go c", "stream": False})
    asker.publish(f"{shared.root}/cancel/canceller", {"all": True})
    assert [asker.final(i)["reason"] for i in ("all-1", "all-2")] == ["cancelled", "cancelled"]
    (shared.control / "all-go").touch()
    assert asker.any_final("other")["text"] == "b c "
    asker.publish(f"{shared.root}/prompt/canceller", {"id": "all-1", "prompt": "a wait:never"})
    seen(asker, "all-1", reason="cancelled", text="a ")


def test_a_will_may_be_a_cancel(shared: Device, asker: Client, broker: Broker) -> None:
    """A requester that vanishes needs no answer any more."""
    vanishing = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    vanishing.will_set(f"{shared.root}/cancel/vanishing", b'{"all":true}', qos=1)
    vanishing.connect("127.0.0.1", broker.port)
    vanishing.loop_start()
    vanishing.publish(f"{shared.root}/prompt/vanishing", b'{"id":"gone","prompt":"a wait:never"}', qos=1)
    began(asker, "gone")
    sock = vanishing.socket()
    assert sock is not None
    vanishing.on_disconnect = lambda client, *_: client.loop_stop()
    sock.close()
    assert asker.final("gone")["reason"] == "cancelled"
    vanishing.loop_stop()


def test_a_message_that_expires_while_it_waits_is_expired(shared: Device, asker: Client) -> None:
    asker.publish(f"{shared.root}/prompt/me", {"id": "expiry", "prompt": "x wait:never"}, MessageExpiryInterval=1)
    began(asker, "expiry")
    final = asker.final("expiry")
    assert (final["reason"], final["text"]) == ("expired", "x ")
    assert "error" not in final


# ---- clients that others wrote --------------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("mosquitto_rr"), reason="needs mosquitto-clients")
def test_mosquitto_rr_prints_exactly_the_final(shared: Device, broker: Broker) -> None:
    command = ["mosquitto_rr", "-V", "mqttv5", "-p", str(broker.port), "-q", "1", "-W", "20"]
    command += ["-t", f"{shared.root}/prompt/me", "-e", "edged/v1/test/reply/me/rr-own", "-m", "say:The say:end"]
    printed = subprocess.run(command, capture_output=True, check=True, timeout=30).stdout
    assert printed.count(b"\n") == 1
    final = json.loads(printed)
    assert (final["final"], final["text"]) == (True, "The end ")


@pytest.mark.skipif(not shutil.which("mosquitto_pub"), reason="needs mosquitto-clients")
@pytest.mark.parametrize("version", ["mqttv5", "mqttv311", "mqttv31"])
def test_mosquitto_pub_of_any_version_asks(shared: Device, broker: Broker, asker: Client, version: str) -> None:
    command = [
        "mosquitto_pub",
        "-V",
        version,
        "-p",
        str(broker.port),
        "-q",
        "1",
        "-t",
        f"{shared.root}/prompt/{version}",
    ]
    subprocess.run([*command, "-m", "What is it?"], check=True, timeout=20)
    assert asker.any_final(version)["text"] == "What is it? "


def test_a_3_1_1_client_asks_streams_and_cancels(shared: Device, broker: Broker) -> None:
    old = Client(broker.port, protocol=mqtt.MQTTv311).subscribe("edged/v1/test/reply/old/#")
    old.publish(f"{shared.root}/prompt/old", {"id": "v3", "prompt": "a wait:never"})
    began(old, "v3")
    old.publish(f"{shared.root}/cancel/old", {"id": "v3"})
    assert old.final("v3")["reason"] == "cancelled"
    old.close()


# ---- many -----------------------------------------------------------------------------------------------------------


def test_p01_a_thousand_at_quality_1_against_a_queue_of_64_get_exactly_a_thousand_finals(
    shared: Device, asker: Client
) -> None:
    prompts = [{"id": f"q{i}", "prompt": f"wait:crowd-go {i}", "stream": False} for i in range(1000)]
    for part in range(8):
        asker.publish_all(f"{shared.root}/prompt/crowd{part}", prompts[part::8])

    def answered() -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for message in list(asker.messages):
            if "/reply/crowd" in message.topic:
                document = as_json(message)
                found.setdefault(document["id"], []).append(document["reason"])
        return found

    wait_until(lambda: len(answered()) == 936, 60, "936 are busy")
    (shared.control / "crowd-go").touch()
    wait_until(lambda: len(answered()) == 1000, 60, "all are answered")
    asker.publish(f"{shared.root}/prompt/me", {"id": "after-crowd", "prompt": "x"})
    asker.final("after-crowd")
    finals = answered()
    assert {len(reasons) for reasons in finals.values()} == {1}
    assert sorted(reasons[0] for reasons in finals.values()) == ["busy"] * 936 + ["stop"] * 64


def test_what_came_while_the_device_was_off_is_all_answered_when_it_is_on_again(device: Make, client: Client) -> None:
    """More than a broker sends before it wants confirmations: each must be confirmed, or the rest never comes."""
    made = device({"limits": {"queue": 1000, "per_requester": {"queue": 1000}}})
    assert made.stop() == 0
    client.publish_all(f"{made.root}/prompt/me", [{"id": f"b{i}", "prompt": f"x{i}"} for i in range(250)])
    made.start()
    for i in range(250):
        assert client.final(f"b{i}")["text"] == f"x{i} "
    client.publish_all(f"{made.root}/prompt/me", [{"id": f"c{i}", "prompt": f"y{i}"} for i in range(150)])
    for i in range(150):
        client.final(f"c{i}")
    assert [len(client.finals(f"b{i}")) for i in range(250)] == [1] * 250


def test_the_best_priority_goes_first_and_equals_in_order_of_arrival(device: Make, client: Client) -> None:
    made = device({"model": {"source": "wait"}}, until="starting")
    for number, priority in enumerate([9, 5, 0, 5, 1]):
        client.publish(f"{made.root}/prompt/me", {"id": f"p{number}", "prompt": f"n{number}", "priority": priority})
        notice = seen(client, f"p{number}", accepted=True)
        assert notice["position"] == [1, 1, 1, 3, 2][number]
    (made.control / "load").touch()
    for number in range(5):
        client.final(f"p{number}")
    assert (made.control / "received").read_text().split() == ["n2", "n4", "n1", "n3", "n0"]


def test_a_queued_prompt_can_be_cancelled_and_expires_while_the_model_loads(device: Make, client: Client) -> None:
    made = device({"model": {"source": "wait"}}, until="starting")
    client.publish(f"{made.root}/prompt/me", {"id": "queued", "prompt": "x"})
    client.publish(f"{made.root}/prompt/me", {"id": "late", "prompt": "x", "deadline_ms": 200})
    client.publish(f"{made.root}/cancel/me", {"id": "queued"})
    assert client.final("queued")["reason"] == "cancelled"
    assert client.final("late")["reason"] == "expired"
    (made.control / "load").touch()
    client.status("online")
    assert not (made.control / "received").exists()


# ---- stopping -------------------------------------------------------------------------------------------------------


def test_p02_draining_refuses_what_is_new_and_ends_within_ten_seconds_whatever_runs(
    device: Make, client: Client
) -> None:
    """What runs and does not end, and what waits, is answered after the next start."""
    made = device()
    client.publish(f"{made.root}/prompt/me", {"id": "runs", "prompt": "a wait:go b"})
    began(client, "runs")
    assert made.process is not None
    stopped = time.monotonic()
    made.process.send_signal(signal.SIGTERM)
    client.status("draining")
    client.publish(f"{made.root}/prompt/me", {"id": "new", "prompt": "x"})
    assert client.final("new")["reason"] == "unavailable"
    client.clear()
    client.status("offline", 10)
    assert time.monotonic() - stopped < 10 * SECONDS
    assert made.process.wait(5) == 0
    (made.control / "go").touch()
    made.start()
    assert client.final("runs")["text"] == "a b "
    assert len(client.finals("runs")) == 1


def test_draining_lets_what_runs_come_to_its_end(device: Make, client: Client) -> None:
    made = device()
    client.publish(f"{made.root}/prompt/me", {"id": "runs", "prompt": "a wait:go b"})
    began(client, "runs")
    assert made.process is not None
    made.process.send_signal(signal.SIGTERM)
    client.status("draining")
    (made.control / "go").touch()
    assert client.final("runs")["text"] == "a b "
    client.status("offline")
    assert made.process.wait(10) == 0
    wait_until(lambda: not Path(f"/proc/{made.pid}").exists(), 5, "no process is left")


# ---- kills ----------------------------------------------------------------------------------------------------------


def test_p11_a_worker_killed_in_the_middle_of_a_reply_costs_no_prompt_its_one_final(
    device: Make, client: Client
) -> None:
    made = device()
    client.clear()
    client.publish(f"{made.root}/prompt/me", {"id": "cut", "prompt": "begun wait:go done"})
    began(client, "cut")
    (worker,) = made.worker_pids()
    os.kill(worker, signal.SIGKILL)
    died = client.document("/event", code="worker_died")
    assert "SIGKILL" in died["message"]
    wait_until(
        lambda: client.replies("cut")[-1].get("seq") == 0 and len(client.replies("cut")) == 3, 20, "it begins anew"
    )
    (made.control / "go").touch()
    assert client.final("cut")["text"] == "begun done "
    client.publish(f"{made.root}/prompt/me", {"id": "next", "prompt": "well"})
    assert client.final("next")["text"] == "well "
    assert len(client.finals("cut")) == 1
    assert [m.payload for m in client.messages if m.topic.endswith("/status")] == []


def test_p11_a_worker_that_hangs_is_replaced_and_mqtt_never_notices(device: Make, client: Client) -> None:
    patches = ("edged.agent.supervisor:HANG_DEADLINE=1.0", "edged.agent.supervisor:PING_EVERY=0.3")
    made = device(patches=patches)
    client.clear()
    client.publish(f"{made.root}/prompt/me", {"id": "hang", "prompt": "a hang"})
    final = client.final("hang", 30)
    assert (final["reason"], final["error"]["code"]) == ("poisoned", "worker_died")
    assert "made no progress" in final["error"]["message"]
    client.publish(f"{made.root}/prompt/me", {"id": "after", "prompt": "well"})
    assert client.final("after")["text"] == "well "
    assert len(client.finals("hang")) == 1
    assert [m.payload for m in client.messages if m.topic.endswith("/status")] == []


def test_p02_what_was_finished_but_not_delivered_is_delivered_after_a_kill(tmp_path: Path) -> None:
    """The final is in the journal, the broker is away, the agent is killed: both come back, the final comes once."""
    broker = Broker(tmp_path, "persistence false\n").start()
    client = Client(broker.port).subscribe("edged/v1/test/#")
    made = Device(tmp_path, broker)
    try:
        with running(made):
            client.status("online", 30)
            client.publish(f"{made.root}/prompt/me", {"id": "kept", "prompt": "a wait:go b"})
            began(client, "kept")
            client.close()
            broker.stop()
            wait_until(lambda: "not connected" in made.log.read_text(), 10, "the device notices")
            (made.control / "go").touch()
            wait_until(lambda: b"a b " in (tmp_path / "state" / "journal.db-wal").read_bytes(), 10, "the final is kept")
            made.kill()
            broker.start()
            client = Client(broker.port).subscribe("edged/v1/test/#")
            made.start()
            assert client.final("kept", 30)["text"] == "a b "
            client.publish(f"{made.root}/prompt/me", {"id": "next", "prompt": "x"})
            client.final("next")
            assert len(client.finals("kept")) == 1
            assert (made.control / "received").read_text().count("a wait:go b") == 1
    finally:
        client.close()
        broker.stop()
