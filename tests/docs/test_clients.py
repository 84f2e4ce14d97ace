"""The clients of the tutorial, which know `docs/reference/mqtt.md` alone: against a real broker and a real daemon."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest

from tests.support import ROOT, SECONDS, Broker, Client, Device, as_json, free_port, running

CLIENTS = ROOT / "docs" / "tutorial" / "clients"
Start = Callable[..., Any]


@pytest.fixture(scope="module")
def mqttjs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the Node client with MQTT.js beside it."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("needs Node 18 and npm: apt-get install nodejs npm")
    folder = tmp_path_factory.mktemp("mqttjs")
    install = [npm, "install", "--no-audit", "--no-fund", "--silent", "mqtt@5"]
    installed = subprocess.run(install, check=False, cwd=folder, capture_output=True, text=True, timeout=120 * SECONDS)
    if installed.returncode:
        pytest.skip(f"npm cannot install mqtt: {' '.join(installed.stderr.split())[:200]}")
    return Path(shutil.copy(CLIENTS / "ask.mjs", folder))


@pytest.fixture(params=["python", pytest.param("node", marks=pytest.mark.slow)])
def program(request: pytest.FixtureRequest) -> list[str]:
    if request.param == "python":
        return [sys.executable, str(CLIENTS / "ask.py")]
    return ["node", str(request.getfixturevalue("mqttjs"))]


@pytest.fixture
def ask(program: list[str], broker: Broker) -> Start:
    """Starts the client as a process: `with ask("text", "--id", "a") as process`."""

    @contextmanager
    def start(text: str, *options: str, url: str = broker.url) -> Iterator[subprocess.Popen[str]]:
        words = ["--url", url, "--fleet", "test", "--timeout", str(30 * SECONDS), *options, text]
        pipe = subprocess.PIPE
        process = subprocess.Popen([*program, *words], stdout=pipe, stderr=pipe, text=True, encoding="utf-8")
        try:
            yield process
        finally:
            process.kill()
            process.wait(10)

    return start


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """The exit code, and the rest of stdout and stderr."""
    out, errors = process.communicate(timeout=40 * SECONDS)
    return process.returncode, out, errors


class ScriptedDevice:
    """Stands for a device: answers a prompt with what a test says."""

    def __init__(self, client: Client) -> None:
        self.client = client.subscribe("edged/v1/test/device/scripted/#")

    def prompt(self, number: int = 1) -> dict[str, Any]:
        """The `number`th prompt that came."""

        def matches(_message: mqtt.MQTTMessage) -> Any:
            came = [as_json(m) for m in self.client.messages if "/scripted/prompt/" in m.topic]
            return came[number - 1] if len(came) >= number else None

        found: dict[str, Any] = self.client.wait(matches, what=f"prompt {number}")
        return found

    def reply(self, prompt_id: str, **document: Any) -> None:
        topic = f"edged/v1/test/reply/me/scripted/{prompt_id}"
        self.client.publish(topic, {"id": prompt_id, **document}, qos=1)


def test_the_answer_is_shown_while_it_is_written(ask: Start, device: Start) -> None:
    pi = device()
    with ask("say:one wait:go say:two") as process:
        assert "one " == process.stdout.read(4)
        (pi.control / "go").touch()
        assert (0, "two \n", "") == ended(process)


def test_an_error_is_shown_and_is_exit_code_1(ask: Start, device: Start) -> None:
    device()
    with ask("long") as process:
        code, out, errors = ended(process)
    assert (1, "") == (code, out)
    assert re.fullmatch(r"ask: too_long \(too_long\): .+\n", errors)


def test_an_id_that_another_prompt_has_is_an_error(ask: Start, device: Start) -> None:
    device()
    with ask("hello", "--id", "twice") as process:
        assert (0, "hello \n", "") == ended(process)
    with ask("another", "--id", "twice") as process:
        code, _, errors = ended(process)
    assert (1, "ask: conflict") == (code, errors[:13])


def test_an_accepted_prompt_survives_a_kill_of_the_daemon(ask: Start, device: Start) -> None:
    pi = device()
    with ask("say:one wait:go say:two", "--resend", "1000") as process:
        assert "one " == process.stdout.read(4)
        pi.kill()
        (pi.control / "go").touch()
        pi.start()
        assert (0, "two \n", "") == ended(process)


def test_a_prompt_that_was_lost_is_sent_again(ask: Start, device: Start, client: Client, broker: Broker) -> None:
    pi = device()
    pi.kill()
    broker.forget_session("edged-test-pi")  # so that what comes now is kept by nobody
    client.clear()
    with ask("hello", "--resend", "0.5") as process:
        client.wait(lambda m: m.topic.endswith("/prompt/me"), what="the first copy")
        pi.start()
        assert (0, "hello \n", "") == ended(process)
    copies = {m.payload for m in client.messages if m.topic.endswith("/prompt/me")}
    assert 1 == len(copies)


def test_a_client_that_lost_the_broker_goes_on(ask: Start, tmp_path: Path) -> None:
    own = Broker(tmp_path).start()
    pi = Device(tmp_path, own)
    try:
        with running(pi), ask("say:one wait:go say:two", "--resend", "1", url=own.url) as process:
            assert "one " == process.stdout.read(4)
            own.stop()
            own.start()
            (pi.control / "go").touch()
            assert (0, "two \n", "") == ended(process)
    finally:
        own.stop()


def test_replaced_texts_gaps_and_characters_of_two_units(ask: Start, client: Client) -> None:
    scripted = ScriptedDevice(client)
    with ask("hi", "--device", "scripted", "--id", "c") as process:
        scripted.prompt()
        scripted.reply("c", accepted=True, position=1, eta_ms=None)
        scripted.reply("c", seq=0, at=0, text="wr🙂ng ")
        assert "wr🙂ng " == process.stdout.read(6)
        scripted.reply("c", seq=0, at=0, text="r🙂")
        assert "\nr🙂" == process.stdout.read(3)
        scripted.reply("c", seq=1, at=2, text="ght")
        assert "ght" == process.stdout.read(3)
        scripted.reply("c", seq=3, at=9, text="after a gap")
        scripted.reply("other", final=True, reason="stop", text="of another prompt")
        scripted.reply("c", final=True, reason="length", text="r🙂ght and more after a gap")
        scripted.reply("c", final=True, reason="length", text="the same final comes twice")
        assert (0, " and more after a gap\n", "") == ended(process)


def test_busy_is_asked_again_with_the_same_bytes(ask: Start, client: Client) -> None:
    scripted = ScriptedDevice(client)
    with ask("hi", "--device", "scripted", "--id", "b", "--resend", "1000") as process:
        first = scripted.prompt()
        error = {"code": "queue_full", "message": "wait"}
        scripted.reply("b", final=True, reason="busy", text="", error=error, retry_after_ms=50)
        assert first == scripted.prompt(2)
        scripted.reply("b", final=True, reason="stop", text="now")
        assert (0, "now\n", "") == ended(process)


def test_without_an_answer_in_time_the_prompt_is_cancelled(ask: Start, client: Client) -> None:
    scripted = ScriptedDevice(client)
    with ask("hi", "--device", "scripted", "--id", "t", "--timeout", "2") as process:
        scripted.prompt()
        assert {"id": "t"} == scripted.client.document("/scripted/cancel/me", id="t")
        assert (4, "", "ask: no answer within 2 s\n") == ended(process)


def test_a_broker_that_is_not_there_is_exit_code_3(ask: Start) -> None:
    with ask("hi", url=f"mqtt://127.0.0.1:{free_port()}") as process:
        code, out, errors = ended(process)
    assert (3, "", "ask: the broker at") == (code, out, errors[:18])


def test_wrong_usage_is_exit_code_2(ask: Start) -> None:
    with ask("hi", "--colour", "red") as process:
        assert 2 == ended(process)[0]


def test_the_clients_are_short() -> None:
    lengths = {path.name: len(path.read_text("utf-8").splitlines()) for path in CLIENTS.iterdir() if path.is_file()}
    assert {"ask.py": True, "ask.mjs": True} == {name: length <= 120 for name, length in lengths.items()}
