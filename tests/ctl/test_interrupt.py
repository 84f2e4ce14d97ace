"""Ctrl-C and a closed terminal, with `edgectl` as a process on a terminal of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.config.schema import build
from edged.ctl.answer import Printer
from edged.ctl.chat import Link
from edged.wire.topics import Topics
from tests.support import ROOT, SECONDS, Broker, Client, Device, running
from tests.terminal import Terminal

pytestmark = pytest.mark.broker
FLEET = "interrupts"


def edgectl(*words: str) -> Terminal:
    return Terminal(sys.executable, "-m", "edged.ctl.main", *words)


@pytest.fixture(scope="module")
def pi(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    watcher = Client(broker.port).subscribe(f"edged/v1/{FLEET}/#")
    made = Device(tmp_path_factory.mktemp("pi"), broker, {"identity": {"fleet": FLEET, "device": "pi"}})
    with running(made):
        watcher.status("online", 30)
        yield made
    for topic in ("status", "health", "config/reported", "config/history"):
        watcher.publish(f"edged/v1/{FLEET}/device/pi/{topic}", b"", retain=True)
    watcher.close()
    broker.forget_session(f"edged-{FLEET}-pi")


@pytest.fixture
def watcher(broker: Broker) -> Iterator[Client]:
    made = Client(broker.port).subscribe(f"edged/v1/{FLEET}/reply/#", f"edged/v1/{FLEET}/device/pi/prompt/+")
    yield made
    made.close()


def test_ctrl_c_cancels_the_prompt_on_the_device(pi: Device, broker: Broker, watcher: Client) -> None:
    words = ("--url", broker.url, "--fleet", FLEET, "--requester", "ctrl-c")
    terminal = edgectl("prompt", "say:begun wait:never say:more", *words)
    terminal.read_until("begun")
    terminal.write("\x03")
    terminal.read_until("— cancelled, 1 token")
    assert 1 == terminal.wait()
    assert "cancelled" == watcher.any_final("ctrl-c")["reason"]
    (line,) = [line for line in pi.log.read_text().splitlines() if '"requester": "ctrl-c"' in line]
    logged = json.loads(line)
    assert ("prompt ended", "cancelled", "info") == (logged["event"], logged["reason"], logged["level"])
    assert "begun" not in pi.log.read_text()


def test_a_refused_prompt_and_a_bad_request_are_logged_without_their_text(pi: Device, watcher: Client) -> None:
    watcher.publish(f"{Topics(FLEET, 'pi').own}/prompt/log", {"id": "bad", "prompt": "sesame", "temperatur": 1})
    assert "invalid" == watcher.any_final("log")["reason"]
    watcher.publish(f"{Topics(FLEET, 'pi').own}/cancel/log", b"sesame")
    watcher.publish(f"{Topics(FLEET, 'pi').own}/prompt/log", {"id": "good", "prompt": "say:open"})
    watcher.final("good")
    lines = [json.loads(line) for line in pi.log.read_text().splitlines() if line.startswith("{")]
    refused = [line for line in lines if line["event"] == "prompt refused"]
    assert [("bad", "log", "invalid", "bad_request", "info")] == [
        (line["id"], line["requester"], line["reason"], line["code"], line["level"]) for line in refused
    ]
    assert ["info"] == [line["level"] for line in lines if line["event"] == "bad request"]
    (ended,) = [line for line in lines if line.get("id") == "good"]
    assert ("prompt ended", "log", "stop", 1, 1) == (
        ended["event"],
        ended["requester"],
        ended["reason"],
        ended["prompt_tokens"],
        ended["completion_tokens"],
    )
    assert {"queue_ms", "ttft_ms", "total_ms"} <= ended.keys()
    assert "sesame" not in pi.log.read_text()
    assert "open" not in {value for line in lines for value in line.values()}


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_the_prompt_is_cancelled_when_the_program_is_to_end(
    pi: Device, broker: Broker, watcher: Client, number: signal.Signals
) -> None:
    requester = f"on-{number.name}"
    terminal = edgectl(
        "prompt", "say:begun wait:never", "--url", broker.url, "--fleet", FLEET, "--requester", requester
    )
    terminal.read_until("begun")
    if number == signal.SIGHUP:
        terminal.close()
    else:
        os.kill(terminal.pid, number)
    assert "cancelled" == watcher.any_final(requester)["reason"]
    assert 1 == terminal.wait()


def test_ctrl_c_in_a_chat_stops_the_answer_and_not_the_chat(
    pi: Device, broker: Broker, watcher: Client, tmp_path: Path
) -> None:
    words = ("--url", broker.url, "--fleet", FLEET, "--requester", "talker")
    terminal = edgectl("chat", *words)
    terminal.read_until("Ctrl-D ends")

    def type_in(text: str, wanted: str) -> None:
        terminal.read_until("› ")
        terminal.write(text)
        terminal.read_until(wanted)

    type_in("say:first\n", "stop, 1 token")
    type_in("say:second wait:never\n", "second")
    terminal.read_until("second")  # once as it was typed, once as the answer
    terminal.write("\x03")
    terminal.read_until("cancelled, 1 token")
    type_in("half a line\x03", "ends the chat")
    type_in("/system Be brief.\n", "system turn: Be brief.")
    type_in("say:two \\\nsay:lines\n", "stop, 2 tokens")
    type_in(f"/save {tmp_path / 'chat.json'}\n", "saved 7 turns")
    type_in("/model\n", "pi: fake, none, fake, context 64 tokens")
    type_in("/nonsense\n", "there is no command /nonsense")
    terminal.read_until("› ")
    terminal.write("\x04")
    assert 0 == terminal.wait()
    turns = json.loads((tmp_path / "chat.json").read_text())["messages"]
    assert [
        ("system", "Be brief."),
        ("user", "say:first"),
        ("assistant", "first "),
        ("user", "say:second wait:never"),
        ("assistant", "second "),
        ("user", "say:two \nsay:lines"),
        ("assistant", "two lines "),
    ] == [(turn["role"], turn["content"]) for turn in turns]
    asked = [json.loads(m.payload) for m in watcher.messages if m.topic.endswith("/prompt/talker")]
    assert [1, 3, 5] == [len(prompt["messages"]) for prompt in asked]
    assert "Be brief." == asked[-1]["system"]


def test_a_chat_reads_turns_from_a_pipe(pi: Device, broker: Broker, watcher: Client) -> None:
    command = [sys.executable, "-m", "edged.ctl.main", "chat", "--url", broker.url, "--fleet", FLEET]
    with subprocess.Popen(
        [*command, "--requester", "pipe"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("say:one\n")
        process.stdin.flush()
        assert "one \n" == process.stdout.readline()
        out, _ = process.communicate('"""\nsay:two\nsay:three\n"""\n/new\nsay:four\n')
    assert "two three \nfour \n" == out
    assert 0 == process.returncode
    asked = [json.loads(m.payload) for m in watcher.messages if m.topic.endswith("/prompt/pipe")]
    assert [1, 3, 1] == [len(prompt["messages"]) for prompt in asked]


def test_a_chat_connects_again_after_its_connection_was_lost(pi: Device, broker: Broker, watcher: Client) -> None:
    screen = io.StringIO()
    link = Link(build({"mqtt": {"url": broker.url}}).mqtt, FLEET, "again")
    try:
        for word in ("one", "two", "three"):
            final = link.ask("pi", {"prompt": f"say:{word}"}, Printer(screen), 20)
            assert final is not None
            assert f"{word} " == final["text"]
            assert link._session is not None
            link._session._connection.restart("test")
    finally:
        link.close()
    asked = {json.loads(m.payload)["id"] for m in watcher.messages if m.topic.endswith("/prompt/again")}
    assert 3 == len(asked)


def test_events_are_printed_as_they_come(pi: Device, broker: Broker, watcher: Client) -> None:
    terminal = edgectl("events", "--follow", "--url", broker.url, "--fleet", FLEET)
    cancels = f"{Topics(FLEET, 'pi').own}/cancel/me"
    until = time.monotonic() + 20 * SECONDS
    while time.monotonic() < until:  # it may not be subscribed yet
        watcher.publish(cancels, b"nonsense")
        with contextlib.suppress(AssertionError):
            terminal.read_until("pi  bad_request: a cancel was ignored", 0.5)
            break
    terminal.write("\x03")
    assert 0 == terminal.wait()


def test_following_events_may_end_at_any_moment_and_by_two_signals(broker: Broker, watcher: Client) -> None:
    topic = "edged/v1/followed/device/pi/config/history"
    watcher.publish(topic, {"decisions": [{"ts": "2026-01-01T00:00:00Z", "layer": "fleet"}]}, retain=True)
    command = [sys.executable, "-m", "edged.ctl.main", "events", "--follow", "--url", broker.url, "--fleet", "followed"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    watcher.publish(topic, b"", retain=True)
    assert (0, "") == (process.returncode, said)


def test_ctrl_c_while_a_push_is_watched_leaves_the_trial(broker: Broker, tmp_path: Path, watcher: Client) -> None:
    layer = tmp_path / "layer.yaml"
    layer.write_text("generation: {max_tokens: 2}\n")
    watcher.subscribe("edged/v1/watched/#")
    words = ("config", "push", str(layer), "--device", "away", "--watch", "--url", broker.url, "--fleet", "watched")
    terminal = edgectl(*words)
    watcher.wait(lambda m: m.topic == "edged/v1/watched/device/away/config" and bool(m.payload))
    terminal.write("\x03")
    terminal.read_until("its trial goes on")
    assert 1 == terminal.wait()
    watcher.publish("edged/v1/watched/device/away/config", b"", retain=True)


def test_top_shows_every_device_until_ctrl_c(pi: Device, broker: Broker) -> None:
    terminal = edgectl("top", "--url", broker.url, "--fleet", FLEET)
    terminal.read_until("1 of 1 online")
    terminal.write("\x03")
    assert 0 == terminal.wait()
