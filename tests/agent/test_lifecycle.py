"""A device's life: failing starts, brokers that come and go, a name that is used twice, memory and processor use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support import ROOT, Broker, Client, Device, as_json, running, stopped, wait_until

pytestmark = pytest.mark.broker
Make = Callable[..., Device]
QUICK_RETRY = ("edged.agent.supervisor:RETRY_SAFE=(0.2, 0.2)",)


# ---- the start ------------------------------------------------------------------------------------------------------


def test_a_second_daemon_in_the_same_state_folder_is_refused_in_one_sentence(device: Make) -> None:
    made = device()
    command = [sys.executable, "-m", "edged", "run", "--config", str(made.folder / "edged.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    second = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment, check=False)
    assert second.returncode == 1
    assert second.stderr.strip().splitlines()[-1].startswith("edged: another edged runs in ")


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("limits: {queu: 5}\n", 2, 'edged.yaml:1: limits.queu: unknown key (did you mean "queue"?)'),
        ("state_dir: /proc/nowhere\n", 2, "state_dir: /proc/nowhere cannot be used"),
    ],
)
def test_a_config_that_cannot_be_used_ends_the_start_with_one_sentence(
    tmp_path: Path, text: str, code: int, said: str
) -> None:
    path = tmp_path / "edged.yaml"
    path.write_text(text)
    command = [sys.executable, "-m", "edged", "run", "--config", str(path)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("EDGED_")} | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment, check=False)
    assert ended.returncode == code
    assert ended.stdout == ""
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_p02_a_damaged_journal_is_moved_away_and_reported(device: Make, client: Client) -> None:
    made = device()
    client.publish(f"{made.root}/prompt/me", {"id": "a", "prompt": "x"})
    client.final("a")
    made.kill()
    for name in ("journal.db", "journal.db-wal"):
        (made.folder / "state" / name).write_bytes(b"nonsense" * 1000)
    client.clear()
    made.start()
    event = client.document("/event", code="journal_damaged")
    assert "journal.damaged" in event["message"]
    client.publish(f"{made.root}/prompt/me", {"id": "a", "prompt": "y"})
    assert client.final("a")["text"] == "y "


def test_sigint_ends_it_as_clean_as_sigterm(device: Make, client: Client) -> None:
    made = device()
    workers = made.worker_pids()
    assert made.process is not None
    made.process.send_signal(signal.SIGINT)
    client.status("offline")
    assert made.process.wait(10) == 0
    assert not [pid for pid in workers if psutil.pid_exists(pid)]


# ---- the model ------------------------------------------------------------------------------------------------------


def test_p06_a_device_without_a_usable_model_stays_connected_and_recovers_when_it_is_repaired(
    device: Make, client: Client
) -> None:
    made = device({"model": {"source": "repaired"}}, until="safe", patches=QUICK_RETRY)
    health = client.document("/health", state="failing")
    assert health["model"]["error"] == {"code": "tampered", "message": "the model is broken; remove it"}
    assert [f["code"] for f in health["findings"]] == ["model_tampered"]
    assert health["findings"][0]["advice"] == "the model is broken; remove it"
    client.publish(f"{made.root}/prompt/me", {"id": "a", "prompt": "x"})
    assert client.final("a")["reason"] == "unavailable"
    client.clear()
    (made.control / "repaired").touch()
    client.status("online")
    assert client.document("/health", state="ok")["model"]["state"] == "online"
    client.publish(f"{made.root}/prompt/me", {"id": "a", "prompt": "x"})
    client.wait(lambda m: as_json(m).get("id") == "a" and as_json(m).get("reason") == "stop")


def test_a_worker_that_ends_while_it_loads_ends_in_safe(device: Make, client: Client) -> None:
    patches = ("edged.agent.supervisor:RESTART_WAITS=(0.0, 0.0, 0.0)",)
    device({"model": {"source": "crash"}}, until="safe", patches=patches)
    finding = client.document("/health", state="failing")["findings"][0]
    assert finding["code"] == "model_worker_died"
    assert "exit code 3" in finding["advice"]


# ---- the broker -----------------------------------------------------------------------------------------------------


def test_p09_events_are_kept_while_the_broker_is_away(tmp_path: Path) -> None:
    broker = Broker(tmp_path, "persistence false\n").start()
    client = Client(broker.port).subscribe("edged/v1/test/#")
    made = Device(tmp_path, broker)
    try:
        with running(made):
            client.status("online", 30)
            client.close()
            broker.stop()
            wait_until(lambda: "not connected" in made.log.read_text(), 10, "the device notices")
            (worker,) = made.worker_pids()
            os.kill(worker, signal.SIGKILL)
            wait_until(lambda: "the worker process ended" in made.log.read_text(), 10, "the exit is noticed")
            with stopped(made):  # the event is not retained: the client must be there before it
                broker.start()
                client = Client(broker.port).subscribe("edged/v1/test/#")
            assert "SIGKILL" in client.document("/event", 30, code="worker_died")["message"]
            client.status("online")
            client.publish(f"{made.root}/prompt/me", {"id": "a", "prompt": "x"})
            assert client.final("a")["text"] == "x "
            assert made.stop() == 0
    finally:
        client.close()
        broker.stop()


def test_everything_that_needs_no_version_5_works_in_3_1_1(device: Make, client: Client, broker: Broker) -> None:
    client.publish("edged/v1/test/device/pi/prompt/old", {"id": "stale", "prompt": "x"}, retain=True)
    made = device({"mqtt": {"url": broker.url, "version": "3.1.1"}, "telemetry": {"interval": "200ms"}})
    client.publish(f"{made.root}/prompt/old", b"", retain=True)
    assert client.document("/health", state="ok")["mqtt"]["version"] == "3.1.1"
    assert "retained" in client.document("/event", code="bad_request")["message"]
    client.publish(f"{made.root}/prompt/me", {"id": "a", "prompt": "a b wait:go c"})
    client.wait(lambda m: as_json(m).get("id") == "a" and "seq" in as_json(m))
    (made.control / "go").touch()
    assert client.final("a")["text"] == "a b c "
    client.publish(f"{made.root}/prompt/me", {"id": "b", "prompt": "x wait:never"})
    client.wait(lambda m: as_json(m).get("id") == "b" and "seq" in as_json(m))
    client.publish(f"{made.root}/cancel/me", {"id": "b"})
    assert client.final("b")["reason"] == "cancelled"
    client.publish(f"{made.root}/config", {"revision": 1, "settings": {"generation": {"max_tokens": 1}}}, retain=True)
    assert client.document("/config/reported", revision=1)["phase"] == "applied"
    client.clear()
    client.publish(f"{made.root}/status", b"offline", retain=True)
    client.status("online")
    assert client.document("/telemetry")["queue"]["answered"] == 2
    assert client.replies("stale") == []
    assert made.stop() == 0
    client.wait(lambda m: m.payload == b"offline" and m.topic.endswith("/status"))


def test_the_will_says_offline_when_the_agent_is_killed(device: Make, client: Client) -> None:
    made = device()
    client.clear()
    made.kill()
    client.status("offline")
    assert [m.retain for m in client.messages if m.topic.endswith("/status")] == [True]


def test_a_name_that_is_used_twice_is_reported_and_given_up_for_a_while(
    device: Make, client: Client, broker: Broker
) -> None:
    patches = ("edged.link.back_off:TAKE_OVER_BACK_OFF=(0.5, 1.0)", "edged.link.back_off:BACK_OFF_CAP=0.1")
    made = device(patches=patches)
    for taken in range(1, 5):
        log = made.log.read_text
        wait_until(lambda: log().count('"event": "connected"') == taken, 20, "it is there (again)")  # noqa: B023
        broker.take_over("edged-test-pi")  # another board of the same name comes and goes
    wait_until(lambda: "another board uses this name" in made.log.read_text(), 20, "it says so in its log")
    event = client.document("/event", code="name_taken")
    assert "identity.device" in event["message"]
    client.publish(f"{made.root}/prompt/me", {"id": "back", "prompt": "x"})
    assert client.final("back")["text"] == "x "


def test_mqtt_url_is_taken_from_the_environment(broker: Broker, tmp_path: Path, client: Client) -> None:
    client.subscribe("edged/v1/test/#")
    made = Device(tmp_path, broker, {"mqtt": {"url": "mqtt://127.0.0.1:1"}}, name="env")
    made.variables["EDGED_MQTT_URL"] = broker.url
    with running(made):
        client.wait(lambda m: m.topic == f"{made.root}/status" and m.payload == b"online", 30)
        assert made.stop() == 0
    broker.forget_session("edged-test-env")
    client.publish(f"{made.root}/status", b"", retain=True)


# ---- memory and processor time --------------------------------------------------------------------------------------


def test_the_agent_alone_stays_below_60_mb_and_imports_no_model_code(device: Make, client: Client) -> None:
    made = device()
    client.publish(f"{made.root}/prompt/me", {"id": "a", "prompt": "x"})
    client.final("a")
    process = psutil.Process(made.pid)
    assert process.memory_info().rss <= 60_000_000
    mapped = {Path(entry.path).name for entry in process.memory_maps() if entry.path.endswith(".so")}
    assert not [name for name in mapped if "torch" in name]


@pytest.mark.slow
def test_the_agent_takes_at_most_one_percent_of_a_core_when_nothing_is_asked(device: Make, client: Client) -> None:
    """Ten seconds of the interval that a device has by default."""
    made = device({"telemetry": {"interval": "10s"}})
    client.document("/health", state="ok")
    time.sleep(2)  # the start's own work is not idleness
    process = psutil.Process(made.pid)
    before = sum(process.cpu_times()[:2])
    time.sleep(10)
    assert sum(process.cpu_times()[:2]) - before <= 0.1


def test_nothing_listens_on_a_port(device: Make) -> None:
    """The device dials out and takes no connections."""
    made = device()
    listening: list[Any] = [
        c for p in (made.pid, *made.worker_pids()) for c in psutil.Process(p).net_connections() if c.status == "LISTEN"
    ]
    assert listening == []
