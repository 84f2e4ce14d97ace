"""Config pushes through a real broker: what changes live, what is rejected, what survives."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edged import __version__
from tests.support import Broker, Client, Device, running, wait_until

pytestmark = pytest.mark.broker
FLEET, KITCHEN = "edged/v1/test/config", "edged/v1/test/group/kitchen/config"


@pytest.fixture
def made(device: Callable[..., Device], client: Client) -> Iterator[Device]:
    """A device in the group `kitchen`; the layers that a test pushed are removed at its end."""
    yield device({"identity": {"fleet": "test", "device": "pi", "groups": ["kitchen"]}})
    for topic in (FLEET, KITCHEN):
        client.publish(topic, b"", retain=True)


def push(client: Client, topic: str, revision: int, **settings: Any) -> dict[str, Any]:
    """Push a layer and wait for its report."""
    client.clear()
    client.publish(topic, {"revision": revision, "settings": settings}, retain=True)
    return client.document("/config/reported", revision=revision)


def answer(client: Client, made: Device, prompt_id: str, **body: Any) -> dict[str, Any]:
    client.publish(f"{made.root}/prompt/me", {"id": prompt_id, "prompt": "a b c d e f", **body})
    return client.final(prompt_id)


def test_before_any_push_the_owners_file_is_reported(made: Device, client: Client) -> None:
    report = client.document("/config/reported")
    assert report.pop("reason")
    assert report.pop("ts")
    assert report == {"phase": "applied", "layer": None, "revision": None, "in_force": {}, "version": __version__}
    assert all(m.retain for m in client.messages if m.topic.endswith("/config/reported"))


@pytest.mark.skipif(not shutil.which("mosquitto_pub"), reason="needs mosquitto-clients")
def test_a_layer_pushed_with_mosquitto_pub_changes_the_next_reply(made: Device, broker: Broker, client: Client) -> None:
    layer = '{"revision":12,"settings":{"generation":{"max_tokens":3}}}'
    command = ["mosquitto_pub", "-r", "-q", "1", "-p", str(broker.port), "-t", f"{made.root}/config", "-m", layer]
    subprocess.run(command, check=True, timeout=20)
    report = client.document("/config/reported", revision=12)
    assert (report["phase"], report["layer"], report["in_force"]) == ("applied", "device", {"device": 12})
    final = answer(client, made, "three")
    assert (final["text"], final["reason"]) == ("a b c ", "length")
    assert final["receipt"]["config"] == {"device": 12}
    assert client.document("/event", code="config_applied")["revision"] == 12


def test_what_a_prompt_says_itself_wins_over_a_layer(made: Device, client: Client) -> None:
    push(client, f"{made.root}/config", 1, generation={"max_tokens": 3})
    assert answer(client, made, "own", max_tokens=5)["text"] == "a b c d e "


def test_the_device_wins_over_its_group_over_the_fleet_and_a_removal_restores(made: Device, client: Client) -> None:
    push(client, f"{made.root}/config", 3, generation={"max_tokens": 3})
    push(client, KITCHEN, 2, generation={"max_tokens": 2, "system": "K"})
    report = push(client, FLEET, 1, generation={"max_tokens": 1, "system": "F"})
    assert report["in_force"] == {"device": 3, "group:kitchen": 2, "fleet": 1}
    assert answer(client, made, "d", prompt="system b")["text"] == "K b "
    for name, topic, text in (("g", f"{made.root}/config", "K b "), ("f", KITCHEN, "F "), ("o", FLEET, "system b b ")):
        client.clear()
        client.publish(topic, b"", retain=True)
        assert client.document("/config/reported")["reason"] == "the layer was removed"
        assert answer(client, made, name, prompt="system b")["text"] == text
    assert client.document("/config/reported")["in_force"] == {}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mqtt": {"url": "mqtt://evil"}}, "mqtt: is the owner's"),
        ({"identity": {"device": "x"}}, "identity: is the owner's"),
        ({"generation": {"max_tokns": 3}}, 'generation.max_tokns: unknown key (did you mean "max_tokens"?)'),
        ({"model": {"source": "nowhere"}}, "'nowhere' is not in this device's catalog"),
    ],
)
def test_p04_a_bad_layer_is_rejected_by_name_and_what_runs_goes_on(
    made: Device, client: Client, settings: dict[str, Any], said: str
) -> None:
    push(client, f"{made.root}/config", 1, generation={"max_tokens": 2})
    report = push(client, f"{made.root}/config", 2, **settings)
    assert (report["phase"], report["layer"], report["in_force"]) == ("rejected", "device", {"device": 1})
    assert said in report["reason"]
    assert answer(client, made, "on")["text"] == "a b "
    assert client.document("/event", code="config_rejected")["revision"] == 2


def test_limits_and_the_telemetry_interval_change_in_place(made: Device, client: Client) -> None:
    push(client, f"{made.root}/config", 1, telemetry={"interval": "100ms"}, limits={"queue": 1, "prompt_bytes": "100B"})
    client.clear()
    client.publish(f"{made.root}/prompt/me", {"id": "one", "prompt": "wait:go"})
    client.publish(f"{made.root}/prompt/me", {"id": "two", "prompt": "x"})
    client.publish(f"{made.root}/prompt/me", {"id": "three", "prompt": "x" * 100})
    assert client.final("two")["reason"] == "busy"
    assert "limits.prompt_bytes (100)" in client.final("three")["error"]["message"]

    def readings() -> int:
        return sum(m.topic.endswith("/telemetry") for m in list(client.messages))

    wait_until(lambda: readings() >= 5, 4, "five readings in less than the time of five at the old interval")
    (made.control / "go").touch()
    client.final("one")


def test_the_log_level_changes_in_place(made: Device, client: Client) -> None:
    push(client, f"{made.root}/config", 1, log={"level": "error"})
    push(client, f"{made.root}/config", 2, limits={"queue": 5})
    log = [json.loads(line) for line in made.log.read_text().splitlines() if line.startswith("{")]
    assert [entry.get("revision") for entry in log if entry["event"] == "config push"][-1:] == [2]
    push(client, f"{made.root}/config", 3, log={"level": "error"})
    push(client, f"{made.root}/config", 4, log={"level": "error"}, limits={"queue": 6})
    log = [json.loads(line) for line in made.log.read_text().splitlines() if line.startswith("{")]
    assert 4 not in [entry.get("revision") for entry in log]


def test_what_was_pushed_while_the_device_was_off_holds_when_it_is_on_again(made: Device, client: Client) -> None:
    push(client, f"{made.root}/config", 1, generation={"max_tokens": 1})
    assert made.stop() == 0
    client.publish(f"{made.root}/config", {"revision": 2, "settings": {"generation": {"max_tokens": 2}}}, retain=True)
    client.clear()
    made.start()
    assert client.document("/config/reported", revision=2)["phase"] == "applied"
    assert answer(client, made, "two")["text"] == "a b "


def test_p04_layers_survive_a_restart_with_another_broker_that_has_none(tmp_path: Path) -> None:
    """Nothing but the disk can have kept them; nothing was pushed anew, so nothing changed."""
    broker = Broker(tmp_path).start()
    client = Client(broker.port).subscribe("edged/v1/test/#")
    made = Device(tmp_path, broker)
    try:
        with running(made):
            client.status("online", 30)
            push(client, f"{made.root}/config", 9, generation={"max_tokens": 2})
            made.kill()
            client.close()
            broker.stop()
            empty = Broker(tmp_path)
            empty.port = broker.port
            empty.start()
            client = Client(empty.port).subscribe("edged/v1/test/#")
            made.start()
            report = client.document("/config/reported", revision=9)
            assert (report["phase"], report["in_force"]) == ("applied", {"device": 9})
            assert answer(client, made, "kept")["text"] == "a b "
            assert made.stop() == 0
            empty.stop()
    finally:
        client.close()
        broker.stop()


def test_p04_a_damaged_file_of_layers_costs_nothing_but_the_layers(made: Device, client: Client) -> None:
    """The broker still has them and sends them at the next connect."""
    push(client, f"{made.root}/config", 1, generation={"max_tokens": 2})
    assert made.stop() == 0
    (made.folder / "state" / "layers.json").write_bytes(b"\0" * 100)
    client.clear()
    made.start()
    assert client.document("/config/reported", revision=1)["phase"] == "applied"
    assert answer(client, made, "two")["text"] == "a b "


def test_p04_a_rejected_layer_that_stays_at_the_broker_is_rejected_at_every_start(made: Device, client: Client) -> None:
    push(client, f"{made.root}/config", 4, generation={"max_tokens": 2})
    push(client, f"{made.root}/config", 5, generation={"max_tokens": 0})
    for name in ("one", "two"):
        assert made.stop() == 0
        client.clear()
        made.start()
        client.status("online")
        report = client.document("/config/reported", revision=5)
        assert (report["phase"], report["in_force"]) == ("rejected", {"device": 4})
        assert answer(client, made, name)["text"] == "a b "


def test_a_roll_out_waits_on_the_device_which_begins_by_itself(made: Device, client: Client) -> None:
    def pushed(revision: int, **rollout: Any) -> dict[str, Any]:
        layer = {"revision": revision, "settings": {"generation": {"max_tokens": 3}}}
        rollout = {"id": "r", "seed": "s", "previous": {"generation": {"max_tokens": 4}}, **rollout}
        client.clear()
        client.publish(FLEET, {**layer, "rollout": rollout}, retain=True)
        return client.document("/config/reported", revision=revision)

    report = pushed(1, percent=0)
    assert ("waiting", {}) == (report["phase"], report["in_force"])
    assert "a b c d " == answer(client, made, "before")["text"]
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 2))
    assert "waiting" == pushed(2, percent=100, not_before=soon)["phase"]
    assert {"fleet": 2} == client.document("/config/reported", revision=2, phase="applied")["in_force"]
    assert "a b c " == answer(client, made, "after")["text"]
