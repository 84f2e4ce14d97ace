"""Which probes this board has. Discovered at start and then rarely; a source that is not there costs nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edged.device import clock, cpu, disk, gpu, memory, network, power, processes, thermal


@dataclass(frozen=True, slots=True)
class Probe:
    """A named plain function that reads one source. It raises OSError or GarbageError, and may block.

    With `every_s` it is run at most that often, and its last value is used in between.
    """

    name: str
    read: Callable[[], object]
    every_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ProcessFigure:
    """One figure about the process `pid`; None if the process is gone."""

    pid: int
    kind: str
    value: int | None


def discover(root: Path, state_dir: Path) -> tuple[Probe, ...]:
    """The probes whose source is there. Looks at names only, so that a sensor which hangs cannot hang this."""
    probes = _kernel(root)
    probes.append(Probe("clock_synced", partial(clock.clock_state, root)))
    probes += _throttling(root)
    probes += [Probe(f"zone:{zone.name}", partial(thermal.zone_temperature, zone)) for zone in thermal.find_zones(root)]
    if path := gpu.find_gpu(root):
        probes.append(Probe("gpu", partial(gpu.gpu, path)))
    probes.append(Probe("disk", partial(disk.disk, state_dir)))
    return tuple(probes)


def process_probes(root: Path, name: str, pid: int, pss_every_s: float) -> tuple[Probe, ...]:
    """The two figures of one process (`name` is agent or worker)."""
    return (
        Probe(f"{name}_rss", partial(_rss, root, pid)),
        Probe(f"{name}_pss", partial(_pss, root, pid), every_s=pss_every_s),
    )


def _kernel(root: Path) -> list[Probe]:
    """What the kernel itself counts under /proc; also the clock, from wherever it shows."""
    probes = []
    if _there(root, "proc/stat"):
        probes.append(Probe("cpu", partial(cpu.cpu_times, root)))
    if _there(root, "proc/loadavg"):
        probes.append(Probe("load", partial(cpu.load, root)))
    if _there(root, "proc/meminfo"):
        probes.append(Probe("memory", partial(memory.memory, root)))
    resources: tuple[memory.Resource, ...] = ("cpu", "memory", "io")
    probes += [
        Probe(f"pressure:{resource}", partial(memory.stall, root, resource))
        for resource in resources
        if _there(root, f"proc/pressure/{resource}")
    ]
    if _there(root, "proc/net/route") and _there(root, "proc/net/dev"):
        probes.append(Probe("network", partial(network.network, root)))
    if paths := cpu.find_clocks(root):
        probes.append(Probe("cpu_clock", partial(cpu.clock, paths)))
    elif cpu.has_cpuinfo_clock(root):
        probes.append(Probe("cpu_clock", partial(cpu.clock_from_cpuinfo, root)))
    return probes


def _throttling(root: Path) -> list[Probe]:
    probes = []
    if path := power.find_mailbox(root):
        probes.append(Probe("throttle:mailbox", partial(power.mailbox, path)))
    elif path := power.find_firmware_file(root):
        probes.append(Probe("throttle:firmware", partial(power.firmware_file, path)))
    if path := power.find_voltage_alarm(root):
        probes.append(Probe("throttle:voltage", partial(power.voltage_alarm, path)))
    if paths := power.find_cooling(root):
        probes.append(Probe("throttle:cooling", partial(power.cooling, paths)))
    if paths := power.find_throttle_counts(root):
        probes.append(Probe("throttle:counters", partial(power.throttle_count, paths)))
    return probes


def _there(root: Path, path: str) -> bool:
    return os.access(root / path, os.R_OK)


def _rss(root: Path, pid: int) -> ProcessFigure:
    return ProcessFigure(pid, "rss", processes.rss_bytes(root, pid))


def _pss(root: Path, pid: int) -> ProcessFigure:
    return ProcessFigure(pid, "pss", processes.pss_bytes(root, pid))
