"""The `edged` command as a person types it: exit codes, one JSON document, one sentence on stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import Broker, free_port
from tests.tiny import make_gguf


def edged(state: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "EDGED_STATE_DIR": str(state), **variables}
    command = [sys.executable, "-m", "edged", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


def test_a_model_is_pulled_listed_shown_and_removed(tmp_path: Path) -> None:
    state, source = tmp_path / "state", make_gguf(tmp_path / "tiny.gguf")
    pulled = json.loads(edged(state, "model", "pull", str(source), "--json").stdout)
    listed = json.loads(edged(state, "model", "list", "--json").stdout)
    assert [pulled["digest"]] == [model["digest"] for model in listed["models"]]
    assert "smollm2-135m-instruct" in [entry["name"] for entry in listed["catalog"]]
    assert json.loads(edged(state, "model", "show", "tiny.gguf", "--json").stdout)["whole"]
    with Path(pulled["path"]).open("r+b") as file:
        file.write(b"GARBAGE")
    shown = edged(state, "model", "show", "tiny.gguf")
    assert (1, 1) == (shown.returncode, len(shown.stderr.splitlines()))
    assert "edged model remove" in shown.stderr
    assert 0 == edged(state, "model", "remove", "tiny.gguf").returncode
    assert [] == json.loads(edged(state, "model", "list", "--json").stdout)["models"]
    missing = edged(state, "model", "remove", "tiny.gguf")
    assert 1 == missing.returncode
    assert "no model tiny.gguf is in the store" in missing.stderr


def test_doctor_says_what_to_fix(tmp_path: Path) -> None:
    """A broker that is not there is a failure with advice; the exit code says that something must be fixed."""
    answer = edged(tmp_path, "doctor", "--json", EDGED_MQTT_URL=f"mqtt://127.0.0.1:{free_port()}")
    advice = {fact["code"]: fact for fact in json.loads(answer.stdout)["advice"]}
    assert 1 == answer.returncode
    assert "fail" == advice["broker"]["status"]
    assert advice["broker"]["fix"]
    assert {"board", "cpu_features", "memory", "clock", "disk", "engine", "state_dir"} <= advice.keys()


def test_doctor_finds_the_broker(tmp_path: Path, broker: Broker) -> None:
    answer = edged(tmp_path, "doctor", EDGED_MQTT_URL=broker.url)
    assert "answers with MQTT 5" in " ".join(answer.stdout.split())


@pytest.mark.parametrize("program", ["edged", "edged.ctl.main"])
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_a_script_of_the_shell(program: str, shell: str) -> None:
    command = [sys.executable, "-m", program, "completion", shell]
    script = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "completion" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_generate_names_what_is_wrong(tmp_path: Path) -> None:
    wrong = edged(tmp_path, "generate", "nowhere.gguf", "hi", "--temperature", "9")
    assert (2, 1) == (wrong.returncode, len(wrong.stderr.splitlines()))
    missing = edged(tmp_path, "generate", "nowhere.gguf", "hi", "--json")
    assert 1 == missing.returncode
    assert "missing" == json.loads(missing.stdout)["error"]["code"]
