"""The processor: load, clock, run queue.

Sources: proc(5) for /proc/stat and /proc/loadavg; kernel Documentation/admin-guide/pm/cpufreq.rst for
`scaling_cur_freq`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from edged.device.files import GarbageError, integer, number, read_head, read_int, read_text

_FOREVER = 2**63 - 1


class CpuTimes(msgspec.Struct, frozen=True):
    """Ticks of the whole machine since boot, `busy` of `total`, and the cores that are online."""

    busy: int
    total: int
    count: int


class Load(msgspec.Struct, frozen=True):
    """Tasks that run or wait, averaged over 1, 5 and 15 minutes."""

    averages: tuple[float, float, float]


class CpuClock(msgspec.Struct, frozen=True):
    """The clock of the fastest core at this moment."""

    mhz: int


def cpu_times(root: Path) -> CpuTimes:
    """The lines `cpu` and `cpuN` of /proc/stat: user nice system idle iowait irq softirq steal guest guest_nice.

    Guest time is part of user time already. The file's tail (one figure per interrupt) is not read.
    """
    lines = read_head(f"{root}/proc/stat", 16384).split("\n")
    words = lines[0].split()
    if len(words) < 5 or words[0] != "cpu":
        raise GarbageError("/proc/stat does not begin with the line `cpu`")
    ticks = [integer(word, 0, _FOREVER) for word in words[1:9]]
    total, idle = sum(ticks), sum(ticks[3:5])
    count = sum(line.startswith("cpu") for line in lines) - 1
    return CpuTimes(busy=total - idle, total=total, count=max(count, 1))


def percent_used(before: CpuTimes, after: CpuTimes) -> float | None:
    """Share of the time between two readings in which the machine worked; None if no time passed.

    The kernel's idle and iowait counters may step back a little (proc(5)), so the share is kept within 0 … 100.
    """
    total = after.total - before.total
    if total <= 0:
        return None
    return round(min(max(100.0 * (after.busy - before.busy) / total, 0.0), 100.0), 1)


def load(root: Path) -> Load:
    """/proc/loadavg: `0.20 0.18 0.12 1/80 11206`."""
    words = read_text(f"{root}/proc/loadavg").split()
    if len(words) < 3:
        raise GarbageError("/proc/loadavg has fewer than three figures")
    return Load((number(words[0]), number(words[1]), number(words[2])))


def find_clocks(root: Path) -> tuple[str, ...]:
    """The files that give a clock in kHz, one per cpufreq policy; at most 8 are looked at."""
    found = sorted(str(path) for path in Path(root, "sys/devices/system/cpu/cpufreq").glob("policy*/scaling_cur_freq"))
    return tuple(found[:8])


def clock(paths: Sequence[str]) -> CpuClock:
    """The highest of the clocks in `paths` (kHz)."""
    return CpuClock(max(read_int(path, 1, 100_000_000) for path in paths) // 1000)


def clock_from_cpuinfo(root: Path) -> CpuClock:
    """The highest `cpu MHz` of /proc/cpuinfo (x86 machines without cpufreq, such as virtual ones)."""
    lines = [line for line in read_head(f"{root}/proc/cpuinfo", 65536).split("\n") if line.startswith("cpu MHz")]
    values = [number(line.partition(":")[2].strip()) for line in lines if ":" in line]
    if not values:
        raise GarbageError("/proc/cpuinfo has no `cpu MHz`")
    return CpuClock(int(max(values)))


def has_cpuinfo_clock(root: Path) -> bool:
    """Whether /proc/cpuinfo gives a clock on this machine (not on ARM)."""
    try:
        return "\ncpu MHz" in read_head(f"{root}/proc/cpuinfo", 4096)
    except (OSError, GarbageError):
        return False
