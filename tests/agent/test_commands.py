"""Commands of operators on a running daemon: each gets one final, and does what it says."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from edged.agent import diagnostics
from edged.config.schema import build
from tests.support import ROOT, Broker, Client, Device, as_json, wait_until

pytestmark = pytest.mark.broker
Make = Callable[..., Device]
OWNED = {"commands": {"allow": ["ops"]}}


def order(client: Client, made: Device, prompt_id: str, name: str) -> dict[str, Any]:
    client.publish(f"{made.root}/command/ops", {"id": prompt_id, "command": name})
    return client.final(prompt_id)


def edgectl(broker: Broker, *words: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edged.ctl.main", *words, "--url", broker.url, "--fleet", "test"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=folder, env=environment)


def test_a_drained_device_refuses_prompts_until_it_is_resumed_also_after_a_restart(
    device: Make, client: Client
) -> None:
    made = device(OWNED)
    client.publish(f"{made.root}/prompt/me", {"id": "open", "prompt": "wait:go x"})
    client.wait(lambda m: as_json(m).get("accepted") and as_json(m)["id"] == "open")
    assert "1 open prompt will still be answered" in order(client, made, "d", "drain")["text"]
    client.status("draining")
    client.publish(f"{made.root}/prompt/me", {"id": "late", "prompt": "x"})
    assert "unavailable" == client.final("late")["reason"]
    (made.control / "go").touch()
    assert "stop" == client.final("open")["reason"]
    made.kill()
    client.clear()
    made.start()
    client.status("draining")
    client.wait(lambda m: "drained" in str(as_json(m).get("findings")), 20, "the finding drained")
    client.publish(f"{made.root}/prompt/me", {"id": "late", "prompt": "x"})
    assert "unavailable" == client.final("late")["reason"]
    assert "the device accepts prompts again" == order(client, made, "r", "resume")["text"]
    client.status("online")
    client.clear()
    client.publish(f"{made.root}/prompt/me", {"id": "late", "prompt": "x"})
    assert "stop" == client.final("late")["reason"]


def test_the_model_is_unloaded_and_loaded_by_command(device: Make, client: Client) -> None:
    """Also where `keep_alive` is `forever`: it stays unloaded until something needs it."""
    made = device(OWNED)
    client.publish(f"{made.root}/prompt/me", {"id": "open", "prompt": "wait:go x"})
    client.wait(lambda m: as_json(m).get("accepted"))
    refused = order(client, made, "u1", "unload")
    assert ("busy", "in_use") == (refused["reason"], refused["error"]["code"])
    (made.control / "go").touch()
    client.final("open")
    assert "was unloaded" in order(client, made, "u2", "unload")["text"]
    wait_until(lambda: made.worker_pids() == [], 10, "the worker process is gone")
    client.wait(lambda m: as_json(m).get("model", {}).get("loaded") is False, 20, "health without a model in memory")
    assert "not in memory" in order(client, made, "u3", "unload")["text"]
    assert "is being loaded" in order(client, made, "l1", "load")["text"]
    wait_until(lambda: len(made.worker_pids()) == 1, 10, "a worker process")
    client.publish(f"{made.root}/prompt/me", {"id": "after", "prompt": "x"})
    assert "stop" == client.final("after")["reason"]
    assert "the model is loaded" == order(client, made, "l2", "load")["text"]


def test_reload_applies_what_can_be_and_names_what_takes_a_restart(device: Make, client: Client) -> None:
    made = device(OWNED)
    path = made.folder / "edged.yaml"

    def write(**changes: Any) -> None:
        path.write_text(yaml.safe_dump({**made.config, **changes}))

    assert "nothing has changed in the device's file" == order(client, made, "r1", "reload")["text"]
    write(generation={"max_tokens": 1}, commands={"allow": ["ops", "other"]})
    assert "applied: commands, generation" == order(client, made, "r2", "reload")["text"]
    client.publish(f"{made.root}/prompt/me", {"id": "short", "prompt": "one two"})
    assert "length" == client.final("short")["reason"]
    client.publish(f"{made.root}/command/other", {"id": "o", "command": "load"})
    assert "stop" == client.final("o")["reason"]
    write(generation={"max_tokens": 5}, identity={"fleet": "test", "device": "pi", "groups": ["a"]})
    refused = order(client, made, "r3", "reload")
    assert ("failed", "restart_needed") == (refused["reason"], refused["error"]["code"])
    assert refused["error"]["message"].startswith("identity changed")
    path.write_text("limits: {queue: none}\n")
    refused = order(client, made, "r4", "reload")
    assert ("config", True) == (refused["error"]["code"], "limits.queue" in refused["error"]["message"])
    client.publish(f"{made.root}/prompt/me", {"id": "short2", "prompt": "one two"})
    assert "length" == client.final("short2")["reason"]


def test_diagnostics_have_log_config_health_and_versions_and_no_texts(
    device: Make, client: Client, broker: Broker, tmp_path: Path
) -> None:
    system = {"generation": {"system": "SECRET-SYSTEM"}, "golden": [{"prompt": "SECRET-GOLDEN", "expect": "x"}]}
    made = device({**OWNED, **system})
    client.publish(f"{made.root}/prompt/me", {"id": "p", "prompt": "SECRET-PROMPT"})
    client.final("p")
    ran = edgectl(broker, "command", "diagnostics", "--device", "pi", "--requester", "ops", folder=tmp_path)
    assert (0, "written to pi-diagnostics.tar.gz") == (ran.returncode, ran.stderr.strip()[-32:]), ran.stderr
    with tarfile.open(tmp_path / "pi-diagnostics.tar.gz") as tar:
        contents = {m.name: file.read() for m in tar.getmembers() if (file := tar.extractfile(m)) is not None}
    names = ("versions.json", "config.json", "reported.json", "health.json", "log.txt")
    assert {f"edged-diagnostics/{name}" for name in names} == set(contents)
    assert b"SECRET" not in b"".join(contents.values())
    assert b"prompt ended" in contents["edged-diagnostics/log.txt"]
    assert "fake" == json.loads(contents["edged-diagnostics/health.json"])["model"]["name"]


def test_edgectl_shows_what_a_command_did(device: Make, broker: Broker) -> None:
    device(OWNED)
    words = ("--device", "pi", "--requester")
    ran = edgectl(broker, "command", "load", *words, "ops")
    assert (0, "pi: the model is loaded\n") == (ran.returncode, ran.stdout)
    refused = edgectl(broker, "command", "load", *words, "me", "--json")
    assert (1, "not_allowed") == (refused.returncode, json.loads(refused.stdout)["error"]["code"])


def test_forget_removes_the_retained_topics_of_a_device_that_is_offline(
    device: Make, client: Client, broker: Broker
) -> None:
    made = device()
    ran = edgectl(broker, "forget", "pi", "--yes")
    assert (1, True) == (ran.returncode, "is connected" in ran.stderr)
    made.stop()
    ran = edgectl(broker, "forget", "pi")
    assert (1, True) == (ran.returncode, "nothing was removed; give --yes" in ran.stderr)
    assert f"{made.root}/config/reported" in ran.stdout.split()
    assert 0 == edgectl(broker, "forget", "pi", "--yes").returncode
    assert "retains nothing" in edgectl(broker, "forget", "pi", "--yes").stderr


def test_an_archive_is_what_was_put_in() -> None:
    settings = build({"generation": {"system": "Be brief."}, "mqtt": {"username": "pi"}})
    packed = diagnostics.archive(diagnostics.files(settings, {}, b"{}", b"line\n", None, {}), 1_000_000.0)
    assert packed == diagnostics.archive(diagnostics.files(settings, {}, b"{}", b"line\n", None, {}), 1_000_000.0)
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(diagnostics.encoded(packed)))) as tar:
        config = tar.extractfile("edged-diagnostics/config.json")
        assert config is not None
        assert "(9 characters)" == json.load(config)["generation"]["system"]
