"""What a simulation does: connect, push, a bad push in stages, a restart of the broker; what it finds, with figures."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import msgspec

from edged.config.schema import Settings
from edged.core.errors import EdgedError
from edged.ctl.config import Target
from edged.ctl.rollout import Plan, Rollouts
from edged.link.session import Session
from edged.simulate.parts import DeviceState, Parts
from edged.wire import rollout_schedule, strict_json
from edged.wire.rollouts import belongs
from edged.wire.topics import Topics

GOOD: Final[dict[str, Any]] = {"generation": {"max_tokens": 64}}
BAD: Final[dict[str, Any]] = {
    "generation": {"max_tokens": 64},
    "model": {"context": 1024},
    "golden": [{"prompt": "What is the capital of Japan?", "expect": "Kyoto"}],
}
ROLLOUT: Final = "bad"
STAGES: Final = (1.0, 5.0, 25.0, 100.0)


class Step(msgspec.Struct, frozen=True):
    """One step. Counts are of all devices together; `held`: it ended as it should."""

    name: str
    seconds: float
    messages_out: int
    bytes_out: int
    messages_in: int
    bytes_in: int
    held: bool
    result: str


class Found(msgspec.Struct, frozen=True):
    """The steps, and the memory of the process for each device."""

    devices: int
    bytes_a_device: int
    steps: tuple[Step, ...]


class Scenario:
    """See the module. `restart`: a shell command that restarts the broker; None: this step is left out."""

    def __init__(
        self,
        settings: Settings,
        fleet: Parts,
        soak: float,
        within: float,
        restart: str | None,
        show: Callable[[Step], None],
    ) -> None:
        self._settings = settings
        self._fleet = fleet
        self._soak = soak
        self._within = within
        self._restart = restart
        self._show = show
        self._steps: list[Step] = []

    def run(self) -> Found:
        """Every step; the retained topics are removed at the end. Raises EdgedError."""
        try:
            devices = len(self._fleet.states())
            self._step("connect", self._connect)
            each = self._fleet.memory() // devices
            self._step("push", self._push)
            self._step("bad push", self._bad_push)
            if self._restart is not None:
                self._step("broker restart", self._restart_broker)
        finally:
            names = [device.name for device in self._fleet.states()]
            self._fleet.stop()
            self._clear(names)
        return Found(devices, each, tuple(self._steps))

    def _step(self, name: str, act: Callable[[], tuple[float | None, str]]) -> None:
        self._fleet.traffic()
        seconds, result = act()
        held = seconds is not None
        step = Step(name, round(seconds or self._within, 2), *self._fleet.traffic(), held, result)
        self._steps.append(step)
        self._show(step)

    def _connect(self) -> tuple[float | None, str]:
        began = time.monotonic()
        self._fleet.start()
        took = self._fleet.wait(lambda device: device.settled, self._within)
        return None if took is None else time.monotonic() - began, self._connects()

    def _connects(self) -> str:
        times = Counter(int(device.up_at) for device in self._fleet.states() if device.up_at is not None)
        return f"{sum(times.values())} connected, at most {max(times.values(), default=0)} in one second"

    def _push(self) -> tuple[float | None, str]:
        payload = strict_json.dumps({"revision": 1, "settings": GOOD})
        with Session(self._settings.mqtt, ()) as session:
            session.publish(self._target.topic, payload, retain=True)
            took = self._fleet.wait(lambda device: device.settled and _has(device, 1), self._within)
        return took, f"{sum(_has(device, 1) for device in self._fleet.states())} have reported it"

    def _bad_push(self) -> tuple[float | None, str]:
        began = time.monotonic()
        with Rollouts(self._settings, None) as rollouts:
            plan = Plan(ROLLOUT, STAGES, self._soak, 2.0)
            schedule, why = rollouts.start(self._target, BAD, plan), ""
            _, layer = rollouts.present(ROLLOUT)
            seed = layer.rollout.seed if layer.rollout is not None else ""
            while schedule.state == "running" and time.monotonic() - began < self._within:
                rollouts.read(0.5, 0.5)
                schedule, verdict = rollouts.step(ROLLOUT)
                why = verdict.why
        back = self._fleet.wait(lambda device: device.settled and not device.on_trial, self._within)
        devices = self._fleet.states()
        tried = sum(device.tries > 0 for device in devices)
        changed = sum(device.context == BAD["model"]["context"] for device in devices)
        asked = sum(belongs(seed, device.name, schedule.percent) for device in devices)
        result = f"{schedule.state} at {schedule.percent:g} %: {tried} tried it, {changed} still have it: {why}"
        held = back is not None and schedule.state == "stopped" and changed == 0 and 0 < tried <= asked
        return (time.monotonic() - began if held else None), result

    def _restart_broker(self) -> tuple[float | None, str]:
        before = {device.name: device for device in self._fleet.states()}
        began = time.monotonic()
        done = subprocess.run(["/bin/sh", "-c", self._restart or "true"], check=False, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            raise EdgedError(f"the command that restarts the broker ended with {done.returncode}")

        def again(device: DeviceState) -> bool:
            return device.settled and device.connects > before[device.name].connects

        took = self._fleet.wait(again, self._within)
        same = sum(one.revisions == before[one.name].revisions for one in self._fleet.states())
        held = took is not None and same == len(before)
        result = f"{self._connects()}; {same} have the settings of before"
        return (time.monotonic() - began if held else None), result

    @property
    def _target(self) -> Target:
        return Target(self._settings.identity.fleet)

    def _clear(self, names: list[str]) -> None:
        """Remove what is retained."""
        fleet = self._settings.identity.fleet
        with Session(self._settings.mqtt, ()) as session:
            session.publish(self._target.topic, b"", retain=True)
            session.publish(rollout_schedule.topic(fleet, ROLLOUT), b"", retain=True)
            for name in names:
                topics = Topics(fleet, name)
                for topic in (topics.status, topics.health, topics.reported, topics.history):
                    session.publish(topic, b"", retain=True)


def check_free(settings: Settings) -> None:
    """Checks that the fleet has no devices: a simulation pushes layers to all of it. Raises EdgedError."""
    with Rollouts(settings, None) as rollouts:
        if rollouts.view.statuses or rollouts.layers:
            raise EdgedError(
                f"the fleet {settings.identity.fleet} has devices or layers at this broker; "
                "give a simulation a fleet of its own with --fleet"
            )


def _has(device: DeviceState, revision: int) -> bool:
    return device.revisions.get("fleet") == revision
