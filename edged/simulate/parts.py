"""The devices of a simulation, some hundreds in each of several processes: `select` takes file numbers below 1024.

The processes answer one request after the other over a pipe: `start`, `states`, `traffic`, `memory`, `stop`.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any, Final

import msgspec

from edged.agent import logs
from edged.simulate.device import SimulatedDevice
from edged.simulate.fleet import Fleet

A_PART: Final = 250
_LOOK_EVERY: Final = 0.1
_ANSWER_WITHIN: Final = 60.0


class DeviceState(msgspec.Struct, frozen=True):
    """What a simulation looks at. `up_at`: monotonic time of the last connect. `revisions` are in force, by layer."""

    name: str
    up_at: float | None
    connects: int
    settled: bool
    on_trial: bool
    tries: int
    context: int
    revisions: Mapping[str, int]


class Parts:
    """See the module. The constructor makes the devices, `start` connects them."""

    def __init__(self, fleet: str, count: int, mqtt: dict[str, Any], folder: Path, probation: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Pipe] = []
        self._processes = []
        for first in range(0, count, A_PART):
            own, other = context.Pipe()
            of = (other, fleet, min(A_PART, count - first), first, mqtt, folder, probation)
            process = context.Process(target=_serve, args=of, daemon=True)
            process.start()
            self._pipes.append(own)
            self._processes.append(process)

    def start(self) -> None:
        """Connect every device at once."""
        self._ask("start")

    def stop(self) -> None:
        """Disconnect every device and end the processes."""
        self._ask("stop")
        for process in self._processes:
            process.join(10.0)

    def states(self) -> list[DeviceState]:
        """Every device."""
        return [one for part in self._ask("states") for one in msgspec.convert(part, list[DeviceState])]

    def traffic(self) -> tuple[int, int, int, int]:
        """Messages and bytes out, then in, since the last call."""
        parts = self._ask("traffic")
        out, out_bytes, into, into_bytes = (sum(numbers) for numbers in zip(*parts, strict=True))
        return out, out_bytes, into, into_bytes

    def memory(self) -> int:
        """Bytes that the devices take."""
        return sum(self._ask("memory"))

    def wait(self, condition: Callable[[DeviceState], bool], seconds: float) -> float | None:
        """Seconds until the condition holds for every device; None where it does not in time."""
        began = time.monotonic()
        while not all(condition(state) for state in self.states()):
            if time.monotonic() - began > seconds:
                return None
            time.sleep(_LOOK_EVERY)
        return time.monotonic() - began

    def _ask(self, what: str) -> list[Any]:
        for pipe in self._pipes:
            pipe.send_bytes(what.encode())
        answers = []
        for pipe in self._pipes:
            if not pipe.poll(_ANSWER_WITHIN):
                raise TimeoutError("a process of the simulation does not answer")
            answers.append(msgspec.msgpack.decode(pipe.recv_bytes()))
        return answers


def _serve(
    pipe: Pipe, fleet: str, count: int, first: int, mqtt: dict[str, Any], folder: Path, probation: float
) -> None:
    """One process."""
    logs.configure("error", "console")
    before = _resident()
    devices = Fleet(fleet, count, mqtt, folder, probation, first)
    while True:
        match pipe.recv_bytes():
            case b"start":
                devices.start()
                answer: Any = None
            case b"states":
                answer = [_state(device) for device in devices.devices]
            case b"traffic":
                answer = devices.traffic.take()
            case b"memory":
                answer = _resident() - before
            case _:
                devices.stop()
                pipe.send_bytes(msgspec.msgpack.encode(None))
                return
        pipe.send_bytes(msgspec.msgpack.encode(answer))


def _state(device: SimulatedDevice) -> DeviceState:
    in_force = device.config.in_force
    return DeviceState(
        device.name,
        device.up_at,
        device.connects,
        device.settled(),
        device.on_trial,
        device.tries,
        in_force.settings.model.context,
        dict(in_force.revisions),
    )


def _resident() -> int:
    """The memory of this process in bytes; 0 where it cannot be read."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
