"""Memory of one process. Source: proc(5) for /proc/PID/statm and /proc/PID/smaps_rollup."""

from __future__ import annotations

import os
from pathlib import Path

from edged.device.files import GarbageError, integer, read_text

_PAGE = os.sysconf("SC_PAGE_SIZE")


def rss_bytes(root: Path, pid: int) -> int | None:
    """Resident pages: the second figure of statm. None if the process is gone."""
    try:
        words = read_text(f"{root}/proc/{pid}/statm").split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if len(words) < 2:
        raise GarbageError(f"/proc/{pid}/statm has fewer than two figures")
    return integer(words[1], 0, 2**50) * _PAGE


def pss_bytes(root: Path, pid: int) -> int | None:
    """Resident pages, shared ones counted by share: `Pss` of smaps_rollup. None if the process is gone or not ours.

    The kernel walks all page tables of the process for it, which is slow for a large one: call it rarely.
    """
    try:
        text = read_text(f"{root}/proc/{pid}/smaps_rollup", 16384)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    for line in text.split("\n"):
        if line.startswith("Pss:"):
            words = line.split()
            if len(words) != 3 or words[2] != "kB":
                raise GarbageError(f"/proc/{pid}/smaps_rollup: Pss is not in kB")
            return integer(words[1], 0, 2**50) * 1024
    # A zombie process has no memory any more, and an empty file.
    if not text.strip():
        return None
    raise GarbageError(f"/proc/{pid}/smaps_rollup has no Pss")
