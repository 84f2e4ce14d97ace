"""Kills in every state: worker, agent and broker go away at random while requesters do what the contract says."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.support import Broker, Client, Device, as_json, running, wait_until

pytestmark = [pytest.mark.broker, pytest.mark.slow]
FREED = {"busy", "invalid", "too_long", "unavailable", "expired"}


class Requesters:
    """Ask, and ask again with the same bytes until there is a final; whatever the broker forgets."""

    def __init__(self, broker: Broker, root: str, count: int, draw: random.Random) -> None:
        self.broker = broker
        self.topic = f"{root}/prompt/me"
        words = ["a b c", "say:slow wait:50ms say:done", "x", "long"]
        self.asked = {f"c{i}": {"id": f"c{i}", "prompt": f"{draw.choice(words)} {i}"} for i in range(count)}
        self.finals: dict[str, set[bytes]] = {}
        self.client: Client | None = None

    def connect(self) -> None:
        self.client = Client(self.broker.port).subscribe("edged/v1/test/reply/#")

    def disconnect(self) -> None:
        self.collect()
        if self.client is not None:
            self.client.close()
            self.client = None

    def collect(self) -> None:
        for message in list(self.client.messages) if self.client is not None else []:
            document = as_json(message)
            if document.get("final") and document["reason"] not in FREED:
                self.finals.setdefault(document["id"], set()).add(message.payload)

    def ask(self, some: int, draw: random.Random) -> None:
        """Send some of those that have no final yet; half of them for the second time or more."""
        if self.client is None:
            return
        self.collect()
        waiting = [i for i in self.asked if i not in self.finals]
        for prompt_id in draw.sample(waiting, min(some, len(waiting))):
            self.client._client.publish(self.topic, str(self.asked[prompt_id]).replace("'", '"'), qos=1)


def wait_until_started(made: Device) -> None:
    """Before it says so a process has not taken SIGTERM over yet, and no program could."""
    mine = f'"pid": {made.pid},'
    wait_until(lambda: any(mine in line for line in made.log.read_text().splitlines()), 20, "the device has started")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_p01_p02_p03_p11_kills_at_random_end_in_one_final_for_each(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    broker = Broker(tmp_path, "persistence false\nmax_queued_messages 100000\n").start()
    patches = ("edged.link.back_off:BACK_OFF_CAP=0.2", "edged.link.back_off:TAKE_OVER_BACK_OFF=(0.1, 0.2)")
    made = Device(tmp_path, broker, {"limits": {"queue": 30}}, patches=patches)
    requesters = Requesters(broker, made.root, 150, draw)
    requesters.connect()
    (made.control / "50ms").touch()
    with running(made):
        until = time.monotonic() + 20
        while time.monotonic() < until:
            requesters.ask(15, draw)
            time.sleep(draw.uniform(0.05, 0.5))
            event = draw.choice(["worker", "worker", "agent", "stop", "broker", "nothing", "nothing"])
            if event == "worker":
                for pid in made.worker_pids():
                    os.kill(pid, signal.SIGKILL)
            elif event == "agent":
                made.kill()
                made.start()
            elif event == "stop":
                wait_until_started(made)
                assert made.stop() == 0
                made.start()
            elif event == "broker":
                requesters.disconnect()
                broker.stop()
                time.sleep(draw.uniform(0, 0.3))
                broker.start()
                requesters.connect()
        until = time.monotonic() + 60
        while len(requesters.finals) < len(requesters.asked) and time.monotonic() < until:
            requesters.ask(15, draw)
            time.sleep(0.3)
        requesters.collect()
        wait_until_started(made)
        assert made.stop() == 0
    requesters.disconnect()
    broker.stop()
    assert set(requesters.finals) == set(requesters.asked)
    assert {i: f for i, f in requesters.finals.items() if len(f) != 1} == {}
    for prompt_id, (payload,) in ((i, tuple(f)) for i, f in requesters.finals.items()):
        number = prompt_id[1:]
        assert f" {number} ".encode() in payload or b'"poisoned"' in payload or b'"too_long"' in payload
