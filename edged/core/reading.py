"""What the board measures at one moment. Frozen data; None: this board cannot measure it, or could not just now.

Units are in the names: `_bytes`, `_c` (degrees Celsius), `_s` (seconds), `_mhz`; percentages are 0 to 100.
"""

from __future__ import annotations

from typing import Literal

import msgspec

# What can slow a processor down, as the Raspberry Pi firmware names it; other boards report those they know.
ThrottleFlag = Literal["under_voltage", "frequency_capped", "throttled", "soft_temp_limit"]


class Cpu(msgspec.Struct, frozen=True):
    """`percent` is of the whole machine since the reading before (None at the first); `load` over 1, 5 and 15 minutes.

    `clock_mhz` is the fastest core's clock at this moment, `count` the cores that are online.
    """

    percent: float | None = None
    clock_mhz: int | None = None
    load: tuple[float, float, float] | None = None
    count: int | None = None


class Memory(msgspec.Struct, frozen=True):
    """Of the whole board. `available` is what a new program could have without swapping, `used` is the rest."""

    total_bytes: int
    available_bytes: int
    used_bytes: int
    swap_total_bytes: int
    swap_used_bytes: int


class Stall(msgspec.Struct, frozen=True):
    """Share of the last 10 s in which some, or all, of the running tasks waited for a resource, in percent (PSI)."""

    some: float
    full: float | None = None


class Pressure(msgspec.Struct, frozen=True):
    """Pressure stall information: how much work waited for a processor, for memory, for storage."""

    cpu: Stall | None = None
    memory: Stall | None = None
    io: Stall | None = None


class Throttle(msgspec.Struct, frozen=True):
    """What slows the processor down `now`, and what has done so `since_boot` (as far as it was counted)."""

    now: tuple[ThrottleFlag, ...] = ()
    since_boot: tuple[ThrottleFlag, ...] = ()


class Disk(msgspec.Struct, frozen=True):
    """The file system of the state folder. `free_bytes` is what a program without root may still write."""

    total_bytes: int
    free_bytes: int


class Network(msgspec.Struct, frozen=True):
    """Bytes received and sent since boot over the interface of the default route."""

    interface: str
    in_bytes: int
    out_bytes: int


class ProcessMemory(msgspec.Struct, frozen=True):
    """Memory of one process. `pss_bytes` counts shared pages by share; it is read more rarely than the rest."""

    rss_bytes: int | None = None
    pss_bytes: int | None = None


class Gpu(msgspec.Struct, frozen=True):
    """How busy the GPU is (Jetson)."""

    load_percent: float


class Reading(msgspec.Struct, frozen=True):
    """Everything measured at one moment.

    `at` is the wall clock (epoch seconds), `uptime_s` the seconds since boot, which nothing can set: the two
    together show a wall clock that jumps. `temperature_c` is the hottest of the sensors that matter, `zones` all that
    were read, by name. `throttled`: the processor is slowed down now. `broken` names the sensors that gave wrong
    values, `stuck` those that did not answer in time and are ignored until they do. Do not change `zones`.
    """

    at: float
    uptime_s: float
    cpu: Cpu = Cpu()
    memory: Memory | None = None
    pressure: Pressure | None = None
    temperature_c: float | None = None
    zones: dict[str, float] = {}
    throttled: bool | None = None
    throttle: Throttle | None = None
    disk: Disk | None = None
    network: Network | None = None
    clock_synced: bool | None = None
    agent: ProcessMemory | None = None
    worker: ProcessMemory | None = None
    gpu: Gpu | None = None
    broken: tuple[str, ...] = ()
    stuck: tuple[str, ...] = ()
