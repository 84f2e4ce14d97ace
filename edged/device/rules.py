"""The rules that turn readings into findings: what is measured, its limits, how long it must last, what to do.

A finding begins when the measure is at or beyond `on` for `hold_on_s` without a break, and ends when it is at or
behind `off` for `hold_off_s` without a break; between the two nothing changes. That a processor is busy, or that work
waits for it, is no finding here: computing is what the board is for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edged.core.reading import Reading

# No board that runs this has a clock before 2026: one that shows an earlier date was never set.
CLOCK_FLOOR = 1_767_225_600.0
FREE_SPACE_BYTES = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What depends on the board: where heat slows it down, and where it may be damaged (degrees Celsius)."""

    temperature_c: float = 85.0
    temperature_critical_c: float = 100.0


@dataclass(frozen=True, slots=True)
class Level:
    """The two thresholds of one severity."""

    on: float
    off: float


Shown = tuple[float | str | None, float | str | None]


@dataclass(frozen=True, slots=True)
class Rule:
    """One code. `measure` returns None where the board cannot measure it, which counts as good.

    `shows` returns the finding's value and limit from the reading, the measure and the threshold that was passed.
    """

    code: str
    measure: Callable[[Reading], float | None]
    degraded: Callable[[Limits], Level]
    advice: str
    hold_on_s: float
    hold_off_s: float
    failing: Callable[[Limits], Level] | None = None
    rising: bool = True
    shows: Callable[[Reading, float, float], Shown] = lambda _, value, limit: (round(value, 1), limit)

    def beyond(self, value: float | None, threshold: float) -> bool:
        """Whether the value is at the bad side of `threshold`, or at it."""
        return value is not None and (value >= threshold if self.rising else value <= threshold)

    def behind(self, value: float | None, threshold: float) -> bool:
        """Whether the value is at the good side of `threshold`, or at it, or unknown."""
        return value is None or (value <= threshold if self.rising else value >= threshold)


def _flag(value: object) -> float | None:
    return None if value is None else float(bool(value))


def _nothing(_reading: Reading, _value: float, _limit: float) -> Shown:
    return None, None


def _yes(_limits: Limits) -> Level:
    return Level(on=1.0, off=0.0)


def _share(part: int, whole: int) -> float | None:
    return 100.0 * part / whole if whole else None


def _memory_available(reading: Reading) -> float | None:
    memory = reading.memory
    return None if memory is None else _share(memory.available_bytes, memory.total_bytes)


def _swap_used(reading: Reading) -> float | None:
    memory = reading.memory
    return None if memory is None else _share(memory.swap_used_bytes, memory.total_bytes)


def _memory_stall(reading: Reading) -> float | None:
    stall = reading.pressure.memory if reading.pressure else None
    return None if stall is None else stall.full


def free_space_wanted(total_bytes: int) -> int:
    """How much should stay free: a tenth of the disk, at most 2 GB."""
    return min(total_bytes // 10, FREE_SPACE_BYTES)


def _free_space_wanted(reading: Reading) -> float | None:
    disk = reading.disk
    return None if disk is None else disk.free_bytes / max(free_space_wanted(disk.total_bytes), 1)


def _disk_shows(reading: Reading, _value: float, limit: float) -> Shown:
    disk = reading.disk
    return (disk.free_bytes, round(free_space_wanted(disk.total_bytes) * limit)) if disk else (None, None)


RULES: tuple[Rule, ...] = (
    Rule(
        "temperature_high",
        measure=lambda reading: reading.temperature_c,
        degraded=lambda limits: Level(limits.temperature_c, limits.temperature_c - 5),
        failing=lambda limits: Level(limits.temperature_critical_c, limits.temperature_critical_c - 5),
        hold_on_s=20,
        hold_off_s=60,
        advice="Cool the board: improve the air flow, add a heat sink or a fan, or reduce the load.",
    ),
    Rule(
        "throttled",
        measure=lambda reading: _flag(reading.throttled),
        degraded=_yes,
        hold_on_s=0,
        hold_off_s=300,
        shows=_nothing,
        advice="The processor is slowed down, so answers are slower: check the temperature and the power supply.",
    ),
    Rule(
        "under_voltage",
        measure=lambda reading: _flag(reading.throttle and "under_voltage" in reading.throttle.now),
        degraded=_yes,
        hold_on_s=0,
        hold_off_s=300,
        shows=_nothing,
        advice="Use the board's own power supply and a short, thick cable; remove USB devices that need much power.",
    ),
    Rule(
        "memory_low",
        measure=_memory_available,
        degraded=lambda _: Level(10, 15),
        failing=lambda _: Level(4, 7),
        hold_on_s=20,
        hold_off_s=60,
        rising=False,
        advice="Stop other programs, or choose a smaller model or a shorter model.context.",
    ),
    Rule(
        "memory_pressure",
        measure=_memory_stall,
        degraded=lambda _: Level(10, 3),
        failing=lambda _: Level(40, 20),
        hold_on_s=20,
        hold_off_s=60,
        advice="Programs wait for memory: stop other programs or choose a smaller model.",
    ),
    Rule(
        "swap_heavy",
        measure=_swap_used,
        degraded=lambda _: Level(25, 15),
        hold_on_s=60,
        hold_off_s=120,
        advice="Much memory is swapped to disk, which is slow: stop other programs or choose a smaller model.",
    ),
    Rule(
        "disk_nearly_full",
        measure=_free_space_wanted,
        degraded=lambda _: Level(1.0, 1.25),
        failing=lambda _: Level(0.1, 0.15),
        hold_on_s=0,
        hold_off_s=60,
        rising=False,
        shows=_disk_shows,
        advice="Free disk space for state_dir: `edged model list` shows models, `edged model remove` removes one.",
    ),
    Rule(
        "clock_not_set",
        measure=lambda reading: float(reading.at < CLOCK_FLOOR),
        degraded=_yes,
        hold_on_s=0,
        hold_off_s=0,
        shows=_nothing,
        advice="Start a time service (`timedatectl set-ntp true`): until then TLS certificates are refused.",
    ),
    Rule(
        "clock_not_synced",
        measure=lambda reading: _flag(None if reading.clock_synced is None else not reading.clock_synced),
        degraded=_yes,
        hold_on_s=300,
        hold_off_s=30,
        shows=_nothing,
        advice="The clock is not synchronised: start a time service (`timedatectl set-ntp true`).",
    ),
    Rule(
        "sensor_broken",
        measure=lambda reading: float(bool(reading.broken)),
        degraded=_yes,
        hold_on_s=5,
        hold_off_s=60,
        shows=lambda reading, _, __: (", ".join(reading.broken) or None, None),
        advice="A sensor of this board gives wrong values and is ignored: look into the kernel log (`dmesg`).",
    ),
    Rule(
        "sensor_stuck",
        measure=lambda reading: float(bool(reading.stuck)),
        degraded=_yes,
        hold_on_s=5,
        hold_off_s=60,
        shows=lambda reading, _, __: (", ".join(reading.stuck) or None, None),
        advice="A sensor of this board does not answer and is ignored: look into the kernel log (`dmesg`).",
    ),
)
