"""The real model behind a real broker, asked with the clients that people use. One daemon serves the whole file."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT, Broker, Client, Device, as_json, running, wait_until

pytestmark = [pytest.mark.broker, pytest.mark.real_model]
GREEDY = {"temperature": 0, "max_tokens": 40}


def with_models(folder: Path, store: Path) -> Path:
    """A state folder of its own whose models are links to the fetched ones."""
    state = folder / "state"
    shutil.copytree(store / "models", state / "models", copy_function=os.link)
    return state


@pytest.fixture(scope="module")
def real(broker: Broker, tmp_path_factory: pytest.TempPathFactory, real_store: Path) -> Iterator[tuple[Device, Client]]:
    folder = tmp_path_factory.mktemp("real")
    with_models(folder, real_store)
    client = Client(broker.port).subscribe("edged/v1/real/#")
    config = {"identity": {"fleet": "real", "device": "pi"}, "model": {"context": 512}}
    device = Device(folder, broker, config, fake=False)
    device.root = "edged/v1/real/device/pi"
    with running(device):
        client.wait(lambda m: m.topic.endswith("/status") and m.payload == b"online", 60, "status online")
        yield device, client
        assert 0 == device.stop()
    client.close()


@pytest.mark.mosquitto
def test_mosquitto_pub_is_answered_with_chunks_and_one_final(real: tuple[Device, Client], broker: Broker) -> None:
    device, client = real
    question = "What is the capital of Japan?"
    where = ["-h", "127.0.0.1", "-p", str(broker.port)]
    topic = f"{device.root}/prompt/pub"
    subprocess.run(["mosquitto_pub", *where, "-q", "1", "-t", topic, "-m", question], check=True)
    final = client.any_final("pub", 60)
    replies = client.documents(final["id"])
    assert ["accepted"] == [key for key in replies[0] if key == "accepted"]
    assert any("seq" in document for document in replies)
    assert 1 == sum(bool(document.get("final")) for document in replies)
    assert {"stop", "length"} >= {final["reason"]}
    assert ("q4_1", "native") == (final["receipt"]["quantization"], final["receipt"]["backend"])


@pytest.mark.skipif(not shutil.which("mosquitto_rr"), reason="needs mosquitto-clients")
def test_mosquitto_rr_prints_the_final_and_exits(real: tuple[Device, Client], broker: Broker) -> None:
    device, _ = real
    body = json.dumps({"prompt": "What is the capital of Japan?", **GREEDY})
    where = ["-h", "127.0.0.1", "-p", str(broker.port), "-V", "mqttv5", "-q", "1", "-W", "60"]
    command = ["mosquitto_rr", *where, "-t", f"{device.root}/prompt/rr", "-e", "edged/v1/real/reply/rr/x", "-m", body]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=90).stdout)
    assert answer["final"]
    assert "The capital of Japan is Tokyo." == answer["text"]


def test_chunks_put_together_are_the_final(real: tuple[Device, Client]) -> None:
    device, client = real
    client.publish(f"{device.root}/prompt/me", {"id": "whole", "prompt": "Count from one to twenty.", **GREEDY})
    final = client.final("whole", 60)
    text = ""
    for document in client.documents("whole"):
        if "seq" in document:
            text = text[: document["at"]] + document["text"]
    assert final["text"].startswith(text)
    assert final["usage"]["completion_tokens"] <= 40


def test_the_same_seed_gives_the_same_text(real: tuple[Device, Client]) -> None:
    device, client = real
    for prompt_id in ("seed-a", "seed-b"):
        body = {"id": prompt_id, "prompt": "Tell me something.", "seed": 11, "temperature": 1, "max_tokens": 20}
        client.publish(f"{device.root}/prompt/me", body)
    first, second = client.final("seed-a", 60), client.final("seed-b", 60)
    assert first["text"] == second["text"]
    assert 11 == first["receipt"]["seed"]


def test_p08_a_prompt_over_the_context_is_refused_with_both_figures(real: tuple[Device, Client]) -> None:
    device, client = real
    client.publish(f"{device.root}/prompt/me", {"id": "long", "prompt": "word " * 600})
    final = client.final("long", 60)
    assert "too_long" == final["reason"]
    assert "512" in final["error"]["message"]
    assert any(
        figure > 600
        for figure in map(int, "".join(c if c.isdigit() else " " for c in final["error"]["message"]).split())
    )


def test_a_short_prompt_never_waits_for_a_long_one(real: tuple[Device, Client]) -> None:
    device, client = real
    client.publish(f"{device.root}/prompt/me", {"id": "slow", "prompt": "Write a long story.", "max_tokens": 300})
    client.wait(lambda m: as_json(m).get("id") == "slow" and "seq" in as_json(m), 60, "the long one's first chunk")
    client.publish(
        f"{device.root}/prompt/me", {"id": "quick", "prompt": "Say hello.", "temperature": 0, "max_tokens": 5}
    )
    client.final("quick", 60)
    assert not any(document.get("final") for document in client.documents("slow"))
    client.publish(f"{device.root}/cancel/me", {"id": "slow"})
    final = client.final("slow", 60)
    assert "cancelled" == final["reason"]
    assert final["text"]


def test_p02_the_worker_is_killed_in_the_middle_of_a_reply(real: tuple[Device, Client]) -> None:
    """One final within 60 s, the next prompt is answered, the agent stays connected."""
    device, client = real
    client.clear()
    client.publish(f"{device.root}/prompt/me", {"id": "kill", "prompt": "Write a story.", "seed": 3, "max_tokens": 60})
    client.wait(lambda m: as_json(m).get("id") == "kill" and "seq" in as_json(m), 60, "the first chunk")
    for pid in device.worker_pids():
        os.kill(pid, signal.SIGKILL)
    assert client.final("kill", 60)["reason"] in {"stop", "length"}
    client.publish(f"{device.root}/prompt/me", {"id": "after", "prompt": "Name the capital of France.", **GREEDY})
    assert "Paris" in client.final("after", 60)["text"]
    assert 1 == sum(bool(document.get("final")) for document in client.documents("kill"))
    assert not [m for m in client.messages if m.topic.endswith("/status")]


def test_the_agent_is_small_and_knows_no_torch(real: tuple[Device, Client]) -> None:
    device, _ = real
    status = Path(f"/proc/{device.pid}/status").read_text()
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
    assert resident <= 60_000
    assert "torch" not in Path(f"/proc/{device.pid}/maps").read_text()


def test_edgectl_prompt_streams_in_the_terminal(real: tuple[Device, Client], broker: Broker) -> None:
    words = ["prompt", "--url", broker.url, "--fleet", "real", "--temperature", "0", "What is the capital of Japan?"]
    answer = subprocess.run(
        [sys.executable, "-m", "edged.ctl.main", *words],
        capture_output=True,
        text=True,
        timeout=90,
        cwd=ROOT,
        check=False,
    )
    assert (0, "The capital of Japan is Tokyo.\n") == (answer.returncode, answer.stdout)


def test_p06_a_tampered_model_is_not_used(broker: Broker, tmp_path: Path, real_store: Path) -> None:
    """Status `safe`, connected, prompts get `unavailable`, health says what to do; mended, it comes back by itself."""
    state = tmp_path / "state"
    shutil.copytree(real_store / "models", state / "models")
    (path,) = state.glob("models/sha256-*/*.gguf")
    with path.open("r+b") as file:
        file.seek(50_000_000)
        file.write(b"tampered")
    client = Client(broker.port).subscribe("edged/v1/bad/#")
    device = Device(tmp_path, broker, {"identity": {"fleet": "bad", "device": "pi"}}, fake=False)
    device.root = "edged/v1/bad/device/pi"
    with running(device):
        client.wait(lambda m: m.topic.endswith("/status") and m.payload == b"safe", 60, "status safe")
        client.publish(f"{device.root}/prompt/me", {"id": "x", "prompt": "hello"})
        final = client.final("x")
        assert "unavailable" == final["reason"]
        health = client.wait(lambda m: m.topic.endswith("/health") and as_json(m)["state"] == "failing" and as_json(m))
        assert "edged model" in health["findings"][0]["advice"]
        wait_until(lambda: not device.worker_pids(), 10, "no worker keeps memory")
        assert 0 == device.stop()
    client.close()


def test_generate_answers_without_a_broker(real_store: Path) -> None:
    words = ["generate", "smollm2-135m-instruct", "What is the capital of Japan?", "--temperature", "0", "--json"]
    environment = {**os.environ, "EDGED_STATE_DIR": str(real_store)}
    answer = subprocess.run(
        [sys.executable, "-m", "edged", *words], capture_output=True, env=environment, timeout=90, check=True
    )
    assert "The capital of Japan is Tokyo." == json.loads(answer.stdout)["text"]


def test_scripts_run_once_goes_the_whole_way() -> None:
    """The README's first command, as a stranger would type it; it leaves no process behind."""
    answer = subprocess.run(
        [str(ROOT / "scripts" / "run"), "--once"], capture_output=True, text=True, timeout=600, check=False
    )
    assert 0 == answer.returncode, answer.stderr
    assert "Tokyo" in answer.stdout
    assert "telemetry" in answer.stdout
    left = subprocess.run(
        ["pgrep", "-f", str(ROOT / ".edged" / "edged.yaml")], capture_output=True, text=True, check=False
    )
    assert "" == left.stdout
