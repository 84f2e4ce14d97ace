"""Memory of the board, and pressure stall information.

Sources: proc(5) for /proc/meminfo; kernel Documentation/accounting/psi.rst for /proc/pressure.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from edged.core.reading import Memory, Stall
from edged.device.files import GarbageError, integer, number, read_text

Resource = Literal["cpu", "memory", "io"]
_WANTED = frozenset(("MemTotal", "MemFree", "MemAvailable", "Buffers", "Cached", "SwapTotal", "SwapFree"))


class StallOf(msgspec.Struct, frozen=True):
    """The stall figures of one resource."""

    resource: Resource
    stall: Stall


def memory(root: Path) -> Memory:
    """/proc/meminfo: lines `Key:   value kB` (kB here is 1,024 bytes)."""
    found: dict[str, int] = {}
    for line in read_text(f"{root}/proc/meminfo", 16384).split("\n"):
        key, _, rest = line.partition(":")
        if key in _WANTED:
            words = rest.split()
            if len(words) != 2 or words[1] != "kB":
                raise GarbageError(f"/proc/meminfo: {key} is not in kB")
            found[key] = integer(words[0], 0, 2**53) * 1024
    total = found.get("MemTotal", 0)
    # Kernels before 3.14 have no MemAvailable; what is free or cached is close to it.
    estimate = sum(found.get(key, 0) for key in ("MemFree", "Buffers", "Cached"))
    available = found.get("MemAvailable", estimate)
    swap_total = found.get("SwapTotal", 0)
    swap_free = found.get("SwapFree", 0)
    if total <= 0 or available > total or swap_free > swap_total:
        raise GarbageError("/proc/meminfo does not add up")
    return Memory(
        total_bytes=total,
        available_bytes=available,
        used_bytes=total - available,
        swap_total_bytes=swap_total,
        swap_used_bytes=swap_total - swap_free,
    )


def stall(root: Path, resource: Resource) -> StallOf:
    """/proc/pressure/cpu, memory or io: `some avg10=0.12 avg60=… avg300=… total=…`, and mostly a line `full` alike.

    Kernels before 5.13 have no line `full` for the processor. A kernel booted with `psi=0` gives EOPNOTSUPP.
    """
    shares: dict[str, float] = {}
    for line in read_text(f"{root}/proc/pressure/{resource}").splitlines():
        words = line.split()
        if len(words) < 2 or words[0] not in {"some", "full"} or not words[1].startswith("avg10="):
            raise GarbageError(f"/proc/pressure/{resource} has an unknown line")
        share = number(words[1].removeprefix("avg10="))
        if share > 100:
            raise GarbageError(f"/proc/pressure/{resource} has a share over 100")
        shares[words[0]] = share
    if "some" not in shares:
        raise GarbageError(f"/proc/pressure/{resource} has no line `some`")
    return StallOf(resource, Stall(shares["some"], shares.get("full")))
