"""`scripts/run` after the installation: a broker, the daemon and a client start together and end together."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from tests.support import ROOT, Broker, mosquitto, wait_until
from tests.terminal import Terminal
from tests.tiny import make_gguf

FIRST_LIGHT = str(ROOT / "scripts" / "first_light.py")
pytestmark = pytest.mark.skipif(mosquitto() is None, reason="needs mosquitto")


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables: a model of a megabyte, and readings that come soon."""
    path = make_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")
    return {"EDGED_MODEL_SOURCE": str(path), "EDGED_TELEMETRY_INTERVAL": "200ms"}


def processes_of(folder: Path) -> list[int]:
    """Every process with this folder in its command."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A state folder; nothing that was started for it stays."""
    yield tmp_path / "edged"
    for pid in processes_of(tmp_path / "edged"):
        os.kill(pid, signal.SIGKILL)


def started(folder: Path, model: dict[str, str]) -> tuple[Terminal, str]:
    """A run on a terminal, which serves; and what it has shown."""
    terminal = Terminal(sys.executable, FIRST_LIGHT, "--folder", str(folder), variables=model)
    return terminal, terminal.read_until("serving until Ctrl-C", 60)


def test_the_client_uses_the_credentials_of_the_config(tmp_path: Path, folder: Path, model: dict[str, str]) -> None:
    program = Path(str(mosquitto())).parent.parent / "bin" / "mosquitto_passwd"
    if not program.exists():
        pytest.skip("needs mosquitto_passwd")
    users, secret = tmp_path / "users", tmp_path / "secret"
    subprocess.run([str(program), "-c", "-b", str(users), "pi", "correct horse"], check=True, capture_output=True)
    secret.write_text("correct horse\n")
    broker = Broker(tmp_path, f"allow_anonymous false\npassword_file {users}\nuser root\n").start()
    environment = {name: text for name, text in os.environ.items() if not name.startswith("EDGED_")}
    environment |= {**model, "EDGED_MQTT_URL": broker.url, "EDGED_MQTT_USERNAME": "pi"}
    environment["EDGED_MQTT_PASSWORD_FILE"] = str(secret)
    command = [sys.executable, FIRST_LIGHT, "--once", "--folder", str(folder)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=False)
        assert 0 == done.returncode, done.stderr
        assert "username: pi" in (folder / "edged.yaml").read_text()
        secret.write_text("wrong\n")
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=False)
        assert 1 == done.returncode
        assert "the broker refuses the client: " in done.stderr
    finally:
        broker.stop()
    assert [] == processes_of(folder)


def test_everything_ends_when_the_terminal_is_closed(folder: Path, model: dict[str, str]) -> None:
    terminal, shown = started(folder, model)
    assert "None" not in shown
    for line in shown.splitlines():
        assert "info" not in line or re.search(r"^\S*[\d:]{8}|waiting for the model", line), line
    assert 2 < len(processes_of(folder))
    terminal.close()
    assert 0 == terminal.wait()
    assert [] == processes_of(folder)


@pytest.mark.slow
def test_a_broker_that_a_killed_run_left_is_used_and_its_end_is_noticed(folder: Path, model: dict[str, str]) -> None:
    killed, _ = started(folder, model)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    left = json.loads((folder / "broker.json").read_text())["pid"]
    wait_until(lambda: set(processes_of(folder)) <= {left}, 20, "the daemon has ended")
    if not processes_of(folder):
        pytest.skip("mosquitto ended with its parent: it changes its user only when root starts it")
    terminal, shown = started(folder, model)
    assert "that an earlier run has left" in shown
    os.kill(left, signal.SIGKILL)
    terminal.read_until("scripts/run: the broker has ended")
    assert 1 == terminal.wait()
    assert [] == processes_of(folder)


def test_log_lines_wait_for_the_end_of_an_answer() -> None:
    import screen

    file = io.StringIO()
    tested = screen.Screen()
    tested.console = Console(file=file, force_terminal=True, color_system=None, width=40)
    tested.log("before")
    tested.part("The capital of Japan ")
    tested.log("prompt ended")
    tested.part("is To")
    tested.end("kyo.")
    tested.log("after")
    assert "before\nThe capital of Japan is Tokyo.\nprompt ended\nafter\n" == file.getvalue()


def test_mosquittos_clients_get_the_options_that_reach_the_broker() -> None:
    import first_light

    assert "-h 127.0.0.1 -p 18830" == first_light.access_of({"url": "mqtt://127.0.0.1:18830"})
    given = {"url": "mqtts://[::1]", "username": "a b", "password_file": "/p", "ca": "/ca", "cert": "/c", "key": "/k"}
    wanted = "-h ::1 -p 8883 -u 'a b' -P \"$(head -n1 /p)\" --cafile /ca --cert /c --key /k"
    assert wanted == first_light.access_of(given)


def test_a_broker_that_was_named_and_does_not_listen_is_one_sentence(folder: Path) -> None:
    folder.mkdir()
    (folder / "edged.yaml").write_text("identity: {device: pi}\n")
    environment = {**os.environ, "EDGED_MQTT_URL": "mqtt://127.0.0.1:1"}
    command = [sys.executable, FIRST_LIGHT, "--once", "--folder", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert 1 == done.returncode
    assert "scripts/run: no broker listens at mqtt://127.0.0.1:1 (EDGED_MQTT_URL); " in done.stderr
    assert "unset EDGED_MQTT_URL" in done.stderr
    assert "identity: {device: pi}\n" == (folder / "edged.yaml").read_text()


def test_a_daemon_that_was_killed_is_reported_with_the_signal(tmp_path: Path) -> None:
    import first_light

    for code, says in ((-9, "the daemon was killed by SIGKILL"), (2, "the daemon has ended with exit code 2; ")):
        process = subprocess.Popen(["sh", "-c", f"kill {code} $$" if code < 0 else f"exit {code}"])
        process.wait()
        assert says in str(first_light.ended(None, process, tmp_path))


def test_a_process_that_another_run_started_is_known_by_its_start(tmp_path: Path) -> None:
    import private_broker

    assert private_broker.left_from_before(tmp_path) is None
    with subprocess.Popen(["sleep", "60"]) as process:
        private_broker.record(tmp_path, process.pid, 1)  # nothing listens there
        other = private_broker.LeftProcess(process.pid, "12345")
        other.kill()  # the pid was given to another process
        assert process.poll() is None
        assert private_broker.left_from_before(tmp_path) is None
        assert -signal.SIGTERM == process.wait(10)
