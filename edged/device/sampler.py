"""Takes readings: runs the probes of this board and combines their results."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from edged.core.reading import (
    Cpu,
    Disk,
    Gpu,
    Memory,
    Network,
    Pressure,
    ProcessMemory,
    Reading,
    Throttle,
    ThrottleFlag,
)
from edged.device.clock import ClockState, uptime
from edged.device.cpu import CpuClock, CpuTimes, Load, percent_used
from edged.device.memory import StallOf
from edged.device.power import ThrottleCount, ThrottleSample
from edged.device.probe_runner import Outcome, ProbeRunner
from edged.device.probes import Probe, ProcessFigure, discover, process_probes
from edged.device.thermal import ZoneTemperature, hottest

MAX_NAMES = 8
_ORDER: tuple[ThrottleFlag, ...] = ("under_voltage", "frequency_capped", "throttled", "soft_temp_limit")
# Any of these flags means that the processor is throttled.
_SLOWING: frozenset[ThrottleFlag] = frozenset(("frequency_capped", "throttled", "soft_temp_limit"))
T = TypeVar("T")


class Sampler:
    """Takes readings of the board. One thread owns it and calls `read`; no start or stop is needed.

    `root` replaces `/` in tests. `agent_pid` None means this process. PSS is read every `pss_every_s`, because the
    kernel walks a process's page tables to compute it.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        agent_pid: int | None = None,
        root: Path = Path("/"),
        deadline_s: float = 0.5,
        rediscover_every_s: float = 600.0,
        pss_every_s: float = 60.0,
        wall: Callable[[], float] = time.time,
        uptime: Callable[[], float] = uptime,
    ) -> None:
        self._state_dir = state_dir
        self._agent_pid = os.getpid() if agent_pid is None else agent_pid
        self._root = root
        self._rediscover_every_s = rediscover_every_s
        self._pss_every_s = pss_every_s
        self._wall = wall
        self._uptime = uptime
        self._runner = ProbeRunner(deadline_s)
        self._probes: tuple[Probe, ...] = ()
        self._discovered_at: float | None = None
        self._kept: dict[str, tuple[float, Outcome]] = {}
        self._worker_pid: int | None = None
        self._times: CpuTimes | None = None
        self._throttle_events: int | None = None
        self._throttled_since_boot: set[ThrottleFlag] = set()

    def read(self, worker_pid: int | None = None) -> Reading:
        """Takes one reading. Blocks for a few milliseconds, and up to two deadlines per sensor that starts to hang."""
        at, now = self._wall(), self._uptime()
        undiscovered = self._rediscover(now)
        outcomes, stuck = self._run(worker_pid, now)
        self._probes = tuple(probe for probe in self._probes if not _is(outcomes.get(probe.name), "gone"))
        broken = [name for name, outcome in outcomes.items() if outcome.verdict == "broken"]
        values = [outcome.value for outcome in outcomes.values()]
        zones = {zone.name: zone.celsius for zone in values if isinstance(zone, ZoneTemperature)}
        is_throttled, throttle_flags = self._throttle(values)
        return Reading(
            at=at,
            uptime_s=round(now, 1),
            cpu=self._cpu(values),
            memory=_first(values, Memory),
            pressure=_pressure(values),
            temperature_c=hottest(zones),
            zones=zones,
            throttled=is_throttled,
            throttle=throttle_flags,
            disk=_first(values, Disk),
            network=_first(values, Network),
            clock_synced=clock.synced if (clock := _first(values, ClockState)) else None,
            agent=_process(values, self._agent_pid),
            worker=None if worker_pid is None else _process(values, worker_pid),
            gpu=_first(values, Gpu),
            broken=tuple(broken[:MAX_NAMES]),
            stuck=tuple([*undiscovered, *stuck][:MAX_NAMES]),
        )

    def _rediscover(self, now: float) -> list[str]:
        """Discovers the probes again if that is due. Returns the names for `stuck`: `discover` if discovery hangs."""
        if self._discovered_at is not None and now - self._discovered_at < self._rediscover_every_s:
            return []
        outcomes = self._runner.run([("discover", lambda: discover(self._root, self._state_dir))])
        outcome = outcomes.get("discover")
        if outcome is None:
            return ["discover"]
        if isinstance(outcome.value, tuple):
            self._probes = outcome.value
            self._discovered_at = now
        return []

    def _run(self, worker_pid: int | None, now: float) -> tuple[dict[str, Outcome], list[str]]:
        if worker_pid != self._worker_pid:
            self._worker_pid = worker_pid
            self._kept.pop("worker_pss", None)
        probes = self._probes + process_probes(self._root, "agent", self._agent_pid, self._pss_every_s)
        if worker_pid is not None:
            probes += process_probes(self._root, "worker", worker_pid, self._pss_every_s)
        due = [probe for probe in probes if not self._is_kept(probe, now)]
        outcomes = self._runner.run([(probe.name, probe.read) for probe in due])
        stuck = [probe.name for probe in due if probe.name not in outcomes]
        for probe in probes:
            if probe.every_s and probe.name in outcomes:
                self._kept[probe.name] = (now, outcomes[probe.name])
            elif probe.name in self._kept and probe.name not in stuck:
                outcomes[probe.name] = self._kept[probe.name][1]
        return outcomes, stuck

    def _is_kept(self, probe: Probe, now: float) -> bool:
        return probe.name in self._kept and now - self._kept[probe.name][0] < probe.every_s

    def _cpu(self, values: list[object]) -> Cpu:
        times, before = _first(values, CpuTimes), self._times
        clock, load = _first(values, CpuClock), _first(values, Load)
        self._times = times or before
        return Cpu(
            percent=percent_used(before, times) if before and times else None,
            clock_mhz=clock.mhz if clock else None,
            load=load.averages if load else None,
            count=times.count if times else None,
        )

    def _throttle(self, values: list[object]) -> tuple[bool | None, Throttle | None]:
        """Whether the processor is throttled now, and the flags; both None if no source reports throttling."""
        samples = [value for value in values if isinstance(value, ThrottleSample)]
        if count := _first(values, ThrottleCount):
            samples.append(self._counted(count.events))
        if not samples:
            return None, None
        now = frozenset[ThrottleFlag]().union(*(sample.now for sample in samples))
        knows = frozenset[ThrottleFlag]().union(*(sample.knows for sample in samples))
        self._throttled_since_boot.update(*(sample.since_boot for sample in samples))
        is_throttled = bool(now & _SLOWING) if knows & _SLOWING else None
        return is_throttled, Throttle(now=_sorted(now), since_boot=_sorted(self._throttled_since_boot))

    def _counted(self, events: int) -> ThrottleSample:
        """The flags of a counter: `now` is set if the counter grew since the previous reading."""
        flags: frozenset[ThrottleFlag] = frozenset(("throttled",))
        none = frozenset[ThrottleFlag]()
        grew = self._throttle_events is not None and events > self._throttle_events
        self._throttle_events = events
        return ThrottleSample(now=flags if grew else none, since_boot=flags if events else none, knows=flags)


def _first(values: Iterable[object], kind: type[T]) -> T | None:
    return next((value for value in values if isinstance(value, kind)), None)


def _is(outcome: Outcome | None, verdict: str) -> bool:
    return outcome is not None and outcome.verdict == verdict


def _sorted(flags: Iterable[ThrottleFlag]) -> tuple[ThrottleFlag, ...]:
    return tuple(sorted(flags, key=_ORDER.index))


def _pressure(values: list[object]) -> Pressure | None:
    found = {value.resource: value.stall for value in values if isinstance(value, StallOf)}
    return Pressure(**found) if found else None


def _process(values: list[object], pid: int) -> ProcessMemory | None:
    figures = {value.kind: value.value for value in values if isinstance(value, ProcessFigure) and value.pid == pid}
    if figures.get("rss") is None and figures.get("pss") is None:
        return None
    return ProcessMemory(rss_bytes=figures.get("rss"), pss_bytes=figures.get("pss"))
