"""Memory is admitted before it is used: weights and caches against what the whole board has left (promise 7)."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edged.core.errors import ModelError

MAX_SLOTS: Final = 8
WORKING: Final = 100_000_000  # bytes for activations, logits and pieces of weights while computing
SHARE: Final = 0.8  # of what is left after the weights, caches may take


@dataclass(frozen=True)
class Room:
    """How many caches may be open at once, and the bytes that all together may take."""

    slots: int
    cache_bytes: int


def available_bytes() -> int:
    """What the kernel says can be used without swapping, in bytes."""
    for line in Path("/proc/meminfo").read_text("ascii").splitlines():
        key, _, value = line.partition(":")
        if key == "MemAvailable":
            return int(value.split()[0]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def admit(weights: int, cache: int, available: int, most: int = MAX_SLOTS) -> Room:
    """Room for weights and at most `most` caches of these bytes.

    Raises ModelError `no_memory` where one cache does not fit.
    """
    needed = weights + cache + WORKING
    if needed > available:
        raise ModelError(
            "no_memory",
            f"The model needs {_megabytes(needed)} MB ({_megabytes(weights)} for weights, {_megabytes(cache)} for one "
            f"context) but {_megabytes(available)} MB are free; set a smaller model.context or choose a smaller model.",
        )
    spare = SHARE * (available - weights - WORKING)
    return Room(slots=max(1, min(most, int(spare // max(1, cache)))), cache_bytes=max(cache, int(spare)))


def give_back() -> None:
    """Returns what loading freed to the system, where the C library can (glibc; 60 MB after SmolLM2-135M)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _megabytes(size: int) -> str:
    return f"{-(-size // 1_000_000):,}"
