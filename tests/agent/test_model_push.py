"""A model sent over a real broker to three daemons at once, with `edgectl model push` as a person runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, Broker, Client, Device, as_json, running, wait_until
from tests.tiny import make_gguf

pytestmark = [pytest.mark.broker, pytest.mark.mosquitto]
NAMES = ("pi-1", "pi-2", "pi-3")
CONFIG = {"trial": {"probation": "300ms"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with 3 MB of filling after it, which a GGUF file may have."""
    path = make_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")
    with path.open("ab") as file:
        file.write(os.urandom(3_000_000))
    return path


@pytest.fixture
def fleet(broker: Broker, tmp_path: Path, client: Client) -> Iterator[list[Device]]:
    client.subscribe("edged/v1/test/#")
    with ExitStack() as stack:
        devices = []
        for name in NAMES:
            device = Device(tmp_path / name, broker, CONFIG, name=name)
            (device.control / "real-models").touch()
            devices.append(stack.enter_context(running(device)))
        for device in devices:
            online(client, device)
        yield devices
    for device in devices:
        broker.forget_session(f"edged-test-{device.name}")
        for topic in ("status", "health", "config", "config/reported", "config/history"):
            client.publish(f"{device.root}/{topic}", b"", retain=True)


def online(client: Client, device: Device) -> None:
    client.wait(lambda m: m.topic == f"{device.root}/status" and m.payload == b"online", 30, device.name)


class Push:
    """`edgectl model push` as a process."""

    def __init__(self, broker: Broker, model: Path, *options: str) -> None:
        command = [sys.executable, "-m", "edged.ctl.main", "model", "push", str(model), "--fleet", "test"]
        command += ["--url", broker.url, "--json", *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)

    def end(self) -> tuple[int, dict[str, Any]]:
        """The exit code, and the document."""
        output, _ = self._process.communicate(timeout=60)
        return self._process.returncode, json.loads(output)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


def chunks(client: Client) -> list[int]:
    """The numbers of the chunks that came so far, in order."""
    return [int(m.topic.rsplit("/", 1)[1]) for m in list(client.messages) if "/chunk/" in m.topic]


def stored(device: Device, digest: str) -> bytes:
    return (device.folder / "state" / "models" / digest.replace(":", "-") / "tiny.gguf").read_bytes()


def test_p06_a_model_arrives_whole_in_three_devices_one_of_which_is_killed_in_the_middle(
    broker: Broker, fleet: list[Device], client: Client, model: Path
) -> None:
    push = Push(broker, model, "--rate", "1MB", *(word for name in NAMES for word in ("--device", name)))
    client.wait(lambda m: m.topic.endswith("/chunk/40"), 30, "most of the chunks")
    (ranges,) = wait_until(lambda: list(fleet[1].folder.glob("state/models/partial/*.ranges")), 5, "a partial file")
    wait_until(lambda: b"[[0, 3" in ranges.read_bytes(), 5, "the first chunks are saved")
    client.clear()
    fleet[1].kill()
    fleet[1].start()
    code, document = push.end()
    assert (0, {name: {"state": "stored", "reason": ""} for name in NAMES}) == (code, document["devices"])
    assert [model.read_bytes()] * 3 == [stored(device, document["digest"]) for device in fleet]
    assert 32 > len(chunks(client)), "the killed device resumed, and asked for what it missed alone"
    assert [] == [path for device in fleet for path in device.folder.glob("state/models/partial/*.push")]
    assert 3 == len({m.topic for m in list(client.messages) if as_json(m).get("code") == "model_received"})

    # The model is there, so a layer may name it; prompts are answered meanwhile and after it.
    client.publish(f"{fleet[1].root}/prompt/me", {"id": "before", "prompt": "x"})
    layer = {"revision": 1, "settings": {"model": {"source": document["digest"]}}}
    client.publish(f"{fleet[1].root}/config", layer, retain=True)
    report = client.document("/pi-2/config/reported", 30, phase="applied", layer="device")
    assert {"device": 1} == report["in_force"]
    assert "stop" == client.final("before")["reason"]


def test_a_killed_sender_is_started_again_and_sends_only_the_rest(
    broker: Broker, fleet: list[Device], client: Client, model: Path
) -> None:
    first = Push(broker, model, "--rate", "1MB", "--device", "pi-1")
    client.wait(lambda m: m.topic.endswith("/chunk/36"), 30, "most of the chunks")
    first.kill()
    client.clear()
    code, document = Push(broker, model, "--rate", "1MB", "--device", "pi-1", "--device", "pi-2").end()
    assert (0, {"pi-1", "pi-2"}) == (code, set(document["devices"]))
    assert [model.read_bytes()] * 2 == [stored(device, document["digest"]) for device in fleet[:2]]
    assert not list(fleet[2].folder.glob("state/models/*")), "a device that was not addressed has nothing"


def test_p09_forged_messages_change_nothing_and_prompts_are_answered(
    broker: Broker, fleet: list[Device], client: Client, model: Path
) -> None:
    device = fleet[0]
    push = Push(broker, model, "--rate", "1MB", "--device", device.name)
    topic = client.wait(lambda m: m.topic if m.topic.endswith("/chunk/3") else None, 30, "a chunk")
    base = topic.rsplit("/", 2)[0]
    for number in range(48):
        client.publish(f"{base}/chunk/{number}", bytes(65_536 + 6 * 32), qos=0)
    for number, payload in (("49", b"x"), ("-1", b"x"), ("x", b""), ("0", b""), ("0", bytes(200_000)), ("1/2", b"")):
        client.publish(f"{base}/chunk/{number}", payload)
    for payload in (b"", b"{", b'{"ranges":[[5,1]]}', b'{"ranges":[[0,99999999]]}', b"\xff"):
        client.publish(f"{base}/sending", payload)
        client.publish(f"{base}/offer", payload)
        client.publish("edged/v1/test/model/none/offer", payload)
    for number in range(3000):
        offer = {"name": "x.gguf", "size": 10**9, "root": "0" * 64, "devices": ["pi-9"]}
        client.publish(f"edged/v1/test/model/sha256:{number:064x}/offer", offer, qos=0)
    client.publish(f"{device.root}/prompt/me", {"id": "meanwhile", "prompt": "x"})
    assert "stop" == client.final("meanwhile", 10)["reason"]
    code, document = push.end()
    assert (0, "stored") == (code, document["devices"][device.name]["state"])
    assert model.read_bytes() == stored(device, document["digest"])
    assert 60_000 > int((Path("/proc") / str(device.pid) / "status").read_text().split("VmHWM:")[1].split()[0])
