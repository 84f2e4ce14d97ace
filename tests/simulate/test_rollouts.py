"""Roll-outs with the real decisions of some devices at a real broker, and several operators."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import yaml

from edged.agent import logs
from edged.ctl.main import main
from edged.simulate.device import SimulatedDevice
from edged.simulate.fleet import Fleet
from edged.wire.rollouts import belongs
from tests.support import Broker, Client, as_json, wait_until

pytestmark = pytest.mark.broker
FLEET, COUNT = "rolling", 8
SEED = "s"  # two of the devices are among the first 40 %, none among the first 1 %
GOOD = {"generation": {"max_tokens": 33}}
BEFORE = {"telemetry": {"interval": "7s"}, "golden": [{"prompt": "x", "expect": {"regex": "T"}, "within": "9s"}]}
BAD = {"model": {"context": 1024}, "golden": [{"prompt": "Capital of Japan?", "expect": "Kyoto"}]}


@pytest.fixture
def fleet(broker: Broker, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    monkeypatch.setattr("edged.ctl.rollout.secrets.token_hex", lambda _bytes: SEED)
    logs.configure("error", "console")  # what is printed is the operators'
    made = Fleet(FLEET, COUNT, {"url": broker.url}, tmp_path / "devices", 0.2)
    made.start()
    assert made.wait(SimulatedDevice.settled, 20) is not None
    yield made
    made.stop()
    client.subscribe(f"edged/v1/{FLEET}/#")
    client.publish(f"edged/v1/{FLEET}/z", b"")
    client.wait(lambda message: message.topic.endswith("/z"))
    for topic in {message.topic for message in client.messages if message.retain}:
        client.publish(topic, b"", retain=True)
    for device in made.devices:
        broker.forget_session(f"edged-{FLEET}-{device.name}")
    structlog.reset_defaults()


def write(folder: Path, settings: dict[str, Any]) -> str:
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def edgectl(broker: Broker, *words: str) -> int:
    return main(("rollout", *words, "--url", broker.url, *(() if "--fleet" in words else ("--fleet", FLEET))))


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def retained(client: Client) -> dict[str, Any]:
    """The retained message of the topic that the client has subscribed to."""
    found: dict[str, Any] = client.wait(lambda message: as_json(message) if message.retain else None)
    return found


def with_tokens(fleet: Fleet, count: int) -> set[str]:
    return {one.name for one in fleet.devices if one.config.in_force.settings.generation.max_tokens == count}


def test_a_good_push_goes_through_every_stage(
    fleet: Fleet, broker: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, GOOD)
    assert 0 == edgectl(broker, "start", path, "--stages", "40,100", "--soak", "1s", "--id", "good", "--json")
    first = document(capsys)
    assert ("running", 40.0, "fleet") == (first["state"], first["percent"], first["layer"])
    assert 0 == edgectl(broker, "run", "good", "--json")
    last = document(capsys)
    assert ("done", 100.0, COUNT) == (last["state"], last["percent"], last["devices"]["applied"])
    assert COUNT == len(with_tokens(fleet, 33))
    assert 0 == edgectl(broker, "list", "--json")
    assert ["done"] == [one["state"] for one in document(capsys)["rollouts"]]


def test_p04_a_bad_push_stops_at_its_first_stage_and_says_why_in_one_line(
    fleet: Fleet, broker: Broker, client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client.publish(f"edged/v1/{FLEET}/config", {"revision": 4, "settings": BEFORE}, retain=True)
    wait_until(lambda: all(one.config.in_force.revisions for one in fleet.devices), 10, "the settings of before")
    path = write(tmp_path, BAD)
    assert 0 == edgectl(broker, "start", path, "--stages", "50,100", "--soak", "20s", "--id", "bad", "--json")
    capsys.readouterr()
    assert 1 == edgectl(broker, "run")
    fleet.wait(lambda device: device.settled() and not device.on_trial, 10)
    capsys.readouterr()
    assert 1 == edgectl(broker, "watch", "bad")
    line = capsys.readouterr().out.splitlines()[0]
    assert 1 == edgectl(broker, "watch", "bad", "--json")
    found = document(capsys)
    assert "stopped" == found["state"]
    assert 'the golden prompt "Capital of Japan?" was answered "Tokyo"' in found["why"]
    assert line.startswith("bad: stopped at 50 % of fleet: ")
    assert line.endswith(found["why"])
    client.subscribe(f"edged/v1/{FLEET}/config")
    layer = retained(client)
    assert (7, BEFORE) == (layer["revision"], layer["rollout"]["previous"])  # 4, the stage, and 2 for the halt
    assert {2048} == {one.config.in_force.settings.model.context for one in fleet.devices}
    assert {one.name for one in fleet.devices if one.tries} == set(found["devices"]["failed"])
    assert len(found["devices"]["failed"]) < COUNT


def test_two_operators_one_starts_and_is_killed_the_other_halts_and_resumes(
    fleet: Fleet, broker: Broker, client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, GOOD)
    assert 0 == edgectl(broker, "start", path, "--stages", "40,100", "--soak", "60s", "--id", "two", "--json")
    capsys.readouterr()
    client.subscribe(f"edged/v1/{FLEET}/config")
    seed = retained(client)["rollout"]["seed"]
    first = {one.name for one in fleet.devices if belongs(seed, one.name, 40)}
    words = ("rollout", "run", "two", "--url", broker.url, "--fleet", FLEET)
    laptop = subprocess.Popen([sys.executable, "-m", "edged.commands.edgectl", *words], stdout=subprocess.PIPE)
    assert laptop.stdout is not None
    laptop.stdout.readline()
    laptop.kill()
    laptop.wait()
    wait_until(lambda: with_tokens(fleet, 33) == first, 10, "the first stage")
    assert 0 == edgectl(broker, "halt", "--reason", "lunch", "--json")
    halted = document(capsys)
    assert ("halted", "lunch", first) == (halted["state"], halted["why"], with_tokens(fleet, 33))
    assert 1 == edgectl(broker, "run", "two", "--json")
    assert "lunch" == document(capsys)["why"]
    assert 0 == edgectl(broker, "resume", "--json")
    assert "running" == document(capsys)["state"]
    assert first == with_tokens(fleet, 33)


def test_a_halt_wins_over_a_stage_that_is_published_at_the_same_moment(
    fleet: Fleet, broker: Broker, client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, GOOD)
    assert 0 == edgectl(broker, "start", path, "--stages", "1,100", "--soak", "60s", "--id", "race", "--json")
    topic = f"edged/v1/{FLEET}/config"
    client.subscribe(topic)
    layer = retained(client)
    late = {**layer, "revision": layer["revision"] + 1}

    def publish_late() -> None:
        client.wait(lambda message: json.loads(message.payload)["rollout"].get("halted"))
        client.publish(topic, late, retain=True)

    other = threading.Thread(target=publish_late)
    other.start()
    assert 0 == edgectl(broker, "halt", "race", "--json")
    other.join()
    assert 1 == edgectl(broker, "run", "race", "--once", "--json")  # however late the stage came
    client.clear()
    client.subscribe(topic)
    last = retained(client)
    assert (True, True) == (last["rollout"]["halted"], last["revision"] > late["revision"])


def test_a_stage_whose_command_was_killed_between_schedule_and_layer_is_completed_by_the_next(
    fleet: Fleet, broker: Broker, client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, GOOD)
    assert 0 == edgectl(broker, "start", path, "--stages", "1,100", "--soak", "60s", "--id", "cut", "--json")
    topic = f"edged/v1/{FLEET}/rollout/cut"
    client.subscribe(topic)
    schedule = retained(client)
    long_ago = {"since": "2026-01-01T00:00:00.000Z", "percent": 100}
    client.publish(topic, {**schedule, **long_ago}, retain=True)
    assert 0 == edgectl(broker, "run", "--once", "--json")
    wait_until(lambda: len(with_tokens(fleet, 33)) == COUNT, 10, "the last stage")
    assert 0 == edgectl(broker, "list", "--json")
