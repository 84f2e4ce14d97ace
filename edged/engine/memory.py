"""Memory is admitted before it is used: weights and caches against what board and cgroup have left (promise 7)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edged.core.errors import ModelError

MAX_SLOTS: Final = 8
WORKSPACE_BYTES: Final = 100_000_000  # bytes for activations, logits and pieces of weights while computing
CACHE_SHARE: Final = 0.8  # of what is left after weights and workspace, for caches


@dataclass(frozen=True)
class CacheBudget:
    """How many caches may be open at once, and the bytes that all together may take."""

    slots: int
    cache_bytes: int


def available_bytes(root: Path = Path("/")) -> int:
    """Bytes that can be used without swapping: the kernel's estimate for the board, or less where a cgroup leaves less.

    Sources: proc(5) for /proc/meminfo; kernel Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
    """
    return max(0, min([_of_board(root), *_of_cgroups(root)]))


def _of_board(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text("ascii").splitlines():
        key, _, value = line.partition(":")
        if key == "MemAvailable":
            return int(value.split()[0]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _of_cgroups(root: Path) -> Iterator[int]:
    """What is left at each level of this process's cgroups that has a limit, from its own up to the first."""
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if not controllers:
            for limit in ("memory.max", "memory.high"):
                yield from _of_levels(root / "sys/fs/cgroup", own, limit, "memory.current", "")
        elif "memory" in controllers.split(","):  # version 1
            top = root / "sys/fs/cgroup/memory"
            yield from _of_levels(top, own, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


def _of_levels(top: Path, own: str, limit: str, usage: str, cache: str) -> Iterator[int]:
    folder = top / own.strip("/")
    # In a container the path may be the host's, which is not there; the container's limit is then at the top.
    for level in (folder, *folder.parents[: len(folder.parts) - len(top.parts)]):
        with suppress(OSError, ValueError, KeyError):  # "max", no such level, no such file
            yield int((level / limit).read_text("ascii")) - _used(level, usage, cache)


def _used(level: Path, usage: str, cache: str) -> int:
    """A cgroup's memory without its file cache: the kernel drops that first, and MemAvailable counts it as well."""
    figures = dict(line.split() for line in (level / "memory.stat").read_text("ascii").splitlines())
    cached = int(figures[f"{cache}inactive_file"]) + int(figures[f"{cache}active_file"])
    return int((level / usage).read_text("ascii")) - cached


def admit(weights: int, cache: int, available: int, most: int = MAX_SLOTS) -> CacheBudget:
    """The budget for caches beside weights: at most `most` of them, all in bytes.

    Raises ModelError `no_memory` where one cache does not fit.
    """
    needed = weights + cache + WORKSPACE_BYTES
    if needed > available:
        raise ModelError(
            "no_memory",
            f"The model needs {_megabytes(needed)} MB ({_megabytes(weights)} for weights, {_megabytes(cache)} for one "
            f"context) but {_megabytes(available)} MB are free; set a smaller model.context or choose a smaller model.",
        )
    spare = CACHE_SHARE * (available - weights - WORKSPACE_BYTES)
    return CacheBudget(slots=max(1, min(most, int(spare // max(1, cache)))), cache_bytes=max(cache, int(spare)))


def trim_heap() -> None:
    """Returns what loading freed to the system, where the C library can (glibc; 60 MB after SmolLM2-135M)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _megabytes(size: int) -> str:
    return f"{-(-size // 1_000_000):,}"
