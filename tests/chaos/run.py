"""One run: a broker, a proxy, a device with an instant model, requesters who never give up, and faults at random."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.oracle import Oracle
from tests.chaos.proxy import Proxy
from tests.support import Broker, Client, Device, as_json

WINDOW = 64  # prompts that are open at a time
AGAIN = 2.0  # seconds after which a prompt without a final is sent again
SETTLE = 60.0  # seconds that are given to the rest after the last fault
REPEATED = 30  # answered prompts that are sent once more at the end
TWICE = 0.1  # of the prompts are sent twice at once
FAULTS = ("worker", "worker", "agent", "agent", "broker", "pause_agent", "pause_worker", "cut", "delay", "half_open")
_PATCHES = ("edged.link.back_off:BACK_OFF_CAP=0.2", "edged.link.back_off:TAKE_OVER_BACK_OFF=(0.1, 0.2)")
_LIMITS = {"queue": 1000, "per_requester": {"queue": 1000, "running": 64}}


@dataclass
class Chaos:
    """See the module; `run` returns what was done and found."""

    folder: Path
    seed: int
    seconds: float
    settle: float = SETTLE
    oracle: Oracle = field(default_factory=Oracle)
    done: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self.broker = Broker(self.folder, "persistence false\nmax_queued_messages 100000\n")
        self.client: Client | None = None
        self._due: dict[str, float] = {}

    def run(self) -> dict[str, object]:
        self.broker.start()
        proxy = Proxy(self.broker.port).start()
        device = Device(self.folder, self.broker, {"limits": _LIMITS}, patches=_PATCHES)
        device.config["mqtt"] = {"url": proxy.url}
        device.start()
        try:
            self._connect(device)
            begun = time.monotonic()
            fault_at = begun + 2.0
            while (now := time.monotonic()) < begun + self.seconds:
                self._ask(device.root, new=True)
                if now >= fault_at:
                    self._fault(self.draw.choice(FAULTS), device, proxy)
                    fault_at = time.monotonic() + self.draw.uniform(0.05, 0.8)
                time.sleep(0.01)
            self._settle(device.root)
            for prompt_id in [i for i, it in self.oracle.asked.items() if it.finals][-REPEATED:]:
                self.oracle.expect_again(prompt_id)
                self._send(device.root, prompt_id)
            self._settle(device.root)
        finally:
            device.kill()
            self._disconnect()
            proxy.stop()
            self.broker.stop()
        return self._result(time.monotonic() - begun)

    def _settle(self, root: str) -> None:
        """Wait until everything has its final, for a time."""
        until = time.monotonic() + self.settle
        while self.oracle.open and time.monotonic() < until:
            self._ask(root, new=False)
            time.sleep(0.02)
        self._collect()

    def _result(self, seconds: float) -> dict[str, object]:
        lost, doubled, wrong = self.oracle.lost, self.oracle.doubled, self.oracle.wrong
        return {
            "seed": self.seed,
            "seconds": round(seconds, 1),
            "prompts": len(self.oracle.asked),
            **{name: self.done[name] for name in ("sent_again", *dict.fromkeys(FAULTS))},
            "lost": len(lost),
            "doubled": len(doubled),
            "wrong": len(wrong),
            "examples": (lost + doubled + wrong)[:5],
        }

    # ---- requesters -------------------------------------------------------------------------------------------------

    def _connect(self, device: Device) -> None:
        self.client = Client(self.broker.port).subscribe(f"{device.root.split('/device/')[0]}/reply/#")

    def _disconnect(self) -> None:
        if self.client is not None:
            self._collect()
            self.client.close()
            self.client = None

    def _collect(self) -> None:
        if self.client is None:
            return
        with self.client._changed:
            messages = list(self.client.messages)
            self.client.messages.clear()
        for message in messages:
            self.oracle.seen(as_json(message), message.payload)

    def _ask(self, root: str, *, new: bool) -> None:
        """Send what has had no final for a while again, with the same bytes; and new prompts."""
        self._collect()
        now = time.monotonic()
        for prompt_id in list(self.oracle.open):
            if now >= self._due[prompt_id]:
                self.done["sent_again"] += 1
                self._send(root, prompt_id)
        while new and len(self.oracle.open) < WINDOW:
            prompt_id = f"c{len(self.oracle.asked)}"
            self.oracle.sent(prompt_id, f"{prompt_id} {self.draw.choice(('a', 'b c', 'd e f'))}")
            self._send(root, prompt_id)
            if self.draw.random() < TWICE:
                self.done["sent_again"] += 1
                self._send(root, prompt_id)

    def _send(self, root: str, prompt_id: str) -> None:
        assert self.client is not None
        self._due[prompt_id] = time.monotonic() + AGAIN
        body = json.dumps({"id": prompt_id, "prompt": self.oracle.asked[prompt_id].text})
        self.client._client.publish(f"{root}/prompt/r{int(prompt_id[-1]) % 4}", body, qos=1)

    # ---- faults -----------------------------------------------------------------------------------------------------

    def _fault(self, name: str, device: Device, proxy: Proxy) -> None:
        self.done[name] += 1
        match name:
            case "worker":
                for pid in _workers(device):
                    _signal(pid, signal.SIGKILL)
            case "agent":  # its worker stops a moment before, so that prompts are open
                pids = _workers(device)
                _pause(pids, 0.5)
                self._ask(device.root, new=True)
                time.sleep(self.draw.uniform(0.0, 0.2))
                device.kill()
                device.start()
            case "broker":
                self._disconnect()
                assert self.broker.process is not None
                self.broker.process.kill()
                self.broker.process.wait(10)
                time.sleep(self.draw.uniform(0, 0.2))
                self.broker.start()
                self._connect(device)
            case "pause_agent":
                _pause([device.pid], self.draw.uniform(0.05, 1.0))
            case "pause_worker":
                _pause(_workers(device), self.draw.uniform(0.05, 1.0))
            case "cut":
                proxy.cut()
            case "delay":
                proxy.delay = self.draw.choice((0.0, 0.01, 0.05))
            case "half_open":
                proxy.silent = True
                threading.Timer(self.draw.uniform(0.2, 2.0), _wake, (proxy,)).start()


def _workers(device: Device) -> list[int]:
    with contextlib.suppress(OSError):  # an agent that ended by itself: its prompts are lost
        return device.worker_pids()
    return []


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, number)


def _pause(pids: list[int], seconds: float) -> None:
    """Stop processes for a while, without waiting for it."""
    for pid in pids:
        _signal(pid, signal.SIGSTOP)
        threading.Timer(seconds, _signal, (pid, signal.SIGCONT)).start()


def _wake(proxy: Proxy) -> None:
    """The end of a half-open time: what was swallowed is not delivered, the connection is cut."""
    proxy.cut()
    proxy.silent = False
