"""Is the wall clock right? A board without a battery clock starts in the past until a time server answers.

Sources: adjtimex(2) and <linux/timex.h>; systemd-timesyncd.service(8) for /run/systemd/timesync/synchronized.
"""

from __future__ import annotations

import ctypes
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

_STA_UNSYNC = 0x0040
_TIME_ERROR = 5


class ClockState(msgspec.Struct, frozen=True):
    """Whether something keeps the clock right; None if that is not known."""

    synced: bool | None


class _Timex(ctypes.Structure):
    """`struct timex`; `long` has the width of a pointer on every Linux here. The tail is padding, never read."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_long * 48),
    )


def clock_state(root: Path, adjtimex: Callable[[], tuple[int, int]] | None = None) -> ClockState:
    """Ask the kernel; where that is not allowed (a service with ProtectClock=) look for the file of timesyncd.

    `adjtimex` returns the call's return value and the status bits, or raises OSError.
    """
    try:
        returned, status = (adjtimex or read_adjtimex)()
    except OSError:
        folder = Path(root, "run/systemd/timesync")
        if (folder / "synchronized").exists():
            return ClockState(synced=True)
        return ClockState(synced=False if folder.exists() else None)
    return ClockState(synced=returned != _TIME_ERROR and not status & _STA_UNSYNC)


def read_adjtimex() -> tuple[int, int]:
    """adjtimex(2) with `modes` 0, which only reads. Raises OSError."""
    buffer = _Timex()
    try:
        returned = _libc().adjtimex(ctypes.byref(buffer))
    except AttributeError as error:
        raise OSError("this C library has no adjtimex") from error
    if returned < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(returned), int(buffer.status)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def uptime() -> float:
    """Seconds since boot, including time asleep; nothing can set it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
