"""`model.keep_alive`: an idle model is unloaded, and loaded again when a prompt or a trial needs it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import Broker, Client, Device, as_json, running, stopped, wait_until
from tests.tiny import make_gguf

pytestmark = pytest.mark.broker
Make = Callable[..., Device]
AT_ONCE = {"model": {"keep_alive": "0s"}, "trial": {"probation": "300ms"}}


def model_is(client: Client, **facts: Any) -> dict[str, Any]:
    """A health document whose model section says this."""

    def matches(message: Any) -> Any:
        model = as_json(message).get("model", {}) if message.topic.endswith("/health") else {}
        return model if facts.items() <= model.items() else None

    found: dict[str, Any] = client.wait(matches, 20, f"health with the model {facts}")
    return found


def ask(client: Client, made: Device, prompt_id: str, prompt: str = "x") -> None:
    client.publish(f"{made.root}/prompt/me", {"id": prompt_id, "prompt": prompt})


def statuses(client: Client) -> set[bytes]:
    return {m.payload for m in list(client.messages) if m.topic.endswith("/status")}


def test_an_idle_model_is_unloaded_and_a_prompt_loads_it_again(device: Make, client: Client) -> None:
    """The process is gone, the status stays online, the notice comes at once and counts the load."""
    made = device(AT_ONCE)
    assert "fake" == model_is(client, loaded=False, state="online")["name"]
    wait_until(lambda: made.worker_pids() == [], 10, "the worker process is gone")
    for number in range(2):
        client.clear()
        ask(client, made, f"p{number}", "a b c")
        assert "stop" == client.final(f"p{number}")["reason"]
        model_is(client, loaded=True)
        model_is(client, loaded=False, restarts=0)
    notices = [document for document in client.documents("p1") if document.get("accepted")]
    assert [1] == [notice["position"] for notice in notices]
    assert notices[0]["eta_ms"] > 30, "a Python process cannot be started in less"
    assert set() == statuses(client)
    client.wait(lambda m: as_json(m).get("worker") == {"rss_bytes": None}, 20, "telemetry without a worker")


def test_p01_every_prompt_is_answered_once_while_the_model_comes_and_goes(device: Make, client: Client) -> None:
    made = device(AT_ONCE)
    for number in range(12):
        ask(client, made, f"p{number}")
        if number % 3 == 0:
            client.final(f"p{number}")
    assert {"stop"} == {client.final(f"p{number}")["reason"] for number in range(12)}
    assert [1] * 12 == [len(client.finals(f"p{number}")) for number in range(12)]


def test_a_change_of_keep_alive_alone_is_applied_in_place(device: Make, client: Client) -> None:
    """`forever` loads the model at once."""
    made = device()
    push = {"revision": 1, "settings": {"model": {"keep_alive": "0s"}}}
    client.publish(f"{made.root}/config", push, retain=True)
    client.document("/config/reported", phase="applied", revision=1)
    model_is(client, loaded=False)
    client.clear()
    client.publish(f"{made.root}/config", {"revision": 2, "settings": {}}, retain=True)
    model_is(client, loaded=True)
    assert not [m for m in list(client.messages) if as_json(m).get("phase") == "trial"]


def test_a_push_while_the_model_is_unloaded_is_tried_and_the_new_model_is_unloaded_too(
    device: Make, client: Client
) -> None:
    made = device(AT_ONCE)
    model_is(client, loaded=False)
    client.publish(f"{made.root}/config", {"revision": 1, "settings": {"model": {"source": "good"}}}, retain=True)
    client.document("/config/reported", phase="waiting", revision=1)
    client.document("/config/reported", phase="applied", revision=1)
    model_is(client, loaded=False, name="good")
    ask(client, made, "after")
    assert "good" == client.final("after")["receipt"]["model"]


def test_a_push_that_is_rolled_back_leaves_an_idle_model_unloaded(device: Make, client: Client) -> None:
    made = device(AT_ONCE)
    model_is(client, loaded=False)
    client.publish(f"{made.root}/config", {"revision": 1, "settings": {"model": {"source": "broken"}}}, retain=True)
    client.document("/config/reported", phase="rolled_back", revision=1)
    client.clear()
    ask(client, made, "after")
    assert "fake" == client.final("after")["receipt"]["model"]
    model_is(client, loaded=False)


def test_a_model_that_cannot_be_loaded_after_an_idle_time_makes_the_device_safe(
    device: Make, client: Client, tmp_path: Path
) -> None:
    control = tmp_path / "control" / "repaired"
    control.parent.mkdir()
    control.touch()
    made = device({"model": {"source": "repaired", "keep_alive": "0s"}})
    model_is(client, loaded=False)
    control.unlink()
    ask(client, made, "p")
    final = client.final("p")
    assert ("unavailable", "no_model") == (final["reason"], final["error"]["code"])
    client.status("safe")


def test_p02_a_worker_that_dies_while_it_loads_after_an_idle_time_is_started_again(
    device: Make, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "control").mkdir()
    load = tmp_path / "control" / "load"
    load.touch()
    made = device({"model": {"source": "wait", "keep_alive": "0s"}})
    model_is(client, loaded=False)
    wait_until(lambda: made.worker_pids() == [], 10, "the worker process is gone")
    load.unlink()
    ask(client, made, "p")
    (pid,) = wait_until(made.worker_pids, 10, "a worker is started")
    os.kill(pid, signal.SIGKILL)
    client.document("/event", code="worker_died")
    load.touch()
    assert "stop" == client.final("p")["reason"]


def test_p02_a_stop_while_the_model_is_unloaded_is_clean_and_a_prompt_is_answered_after_the_next_start(
    device: Make, client: Client
) -> None:
    made = device(AT_ONCE)
    model_is(client, loaded=False)
    with stopped(made):
        ask(client, made, "waits")
        os.kill(made.pid, signal.SIGTERM)
    assert 0 == made.stop()
    client.status("offline")
    made.start()
    assert client.final("waits")["reason"] in {"stop", "unavailable"}, "accepted before the stop, or refused"
    made.stop()


@pytest.mark.usefixtures("device")  # subscribes, and clears what is retained
def test_the_memory_of_a_real_model_is_returned_while_it_is_idle(
    broker: Broker, client: Client, tmp_path: Path
) -> None:
    config = {"model": {"source": str(make_gguf(tmp_path / "tiny.gguf")), "keep_alive": "0s"}}
    with running(Device(tmp_path, broker, config, fake=False)) as made:
        model_is(client, loaded=False, state="online")
        wait_until(lambda: made.worker_pids() == [], 10, "the worker process is gone")
        client.publish(f"{made.root}/prompt/me", {"id": "p", "prompt": "the", "max_tokens": 4})
        assert "length" == client.final("p")["reason"]
        wait_until(lambda: made.worker_pids() == [], 10, "the worker process is gone again")
