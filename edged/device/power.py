"""What slows the processor down: under-voltage, heat, a capped clock.

Sources: Raspberry Pi documentation, `vcgencmd get_throttled` (bits 0 to 3 now, 16 to 19 since boot), and the firmware's
"Mailbox property interface" page (tag 0x00030046; the value sent is a mask of sticky bits to clear: we send 0);
kernel drivers/hwmon/raspberrypi-hwmon.c (chip `rpi_volt`); Documentation/driver-api/thermal/sysfs-api.rst (cooling
devices); Documentation/admin-guide/thermal/intel_thermal_throttle.rst (counters).

The kernel's `rpi_volt` driver asks the firmware every 2 s and clears the sticky bits by that, so "since boot" may be
lost between two of our readings. The sampler therefore keeps the flags that it has read.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from edged.core.reading import ThrottleFlag
from edged.device.files import GarbageError, read_int, read_text

_BITS: tuple[tuple[int, ThrottleFlag], ...] = (
    (0, "under_voltage"),
    (1, "frequency_capped"),
    (2, "throttled"),
    (3, "soft_temp_limit"),
)
_GET_THROTTLED = 0x00030046
_SUCCESS = 0x80000000
# _IOWR(100, 0, char *): direction 3, size of a pointer, magic 100, number 0.
_MAILBOX_PROPERTY = 3 << 30 | struct.calcsize("P") << 16 | 100 << 8
_SOFTWARE_COOLING = ("cpufreq-", "thermal-cpufreq-", "Processor")

Ioctl = Callable[[int, int, bytearray], int]


class ThrottleSample(msgspec.Struct, frozen=True):
    """What one source reports. `knows` are the flags that it can report: one that is not in `now` is off."""

    now: frozenset[ThrottleFlag]
    since_boot: frozenset[ThrottleFlag]
    knows: frozenset[ThrottleFlag]


class ThrottleCount(msgspec.Struct, frozen=True):
    """Times since boot that the processor slowed itself down because of heat (x86)."""

    events: int


def decode(bits: int) -> ThrottleSample:
    """The firmware's bit pattern as flags."""
    return ThrottleSample(
        now=frozenset(flag for bit, flag in _BITS if bits >> bit & 1),
        since_boot=frozenset(flag for bit, flag in _BITS if bits >> (bit + 16) & 1 or bits >> bit & 1),
        knows=frozenset(flag for _, flag in _BITS),
    )


def firmware_file(path: str) -> ThrottleSample:
    """`…/soc:firmware/get_throttled` of Raspberry Pi kernels: the pattern in hexadecimal, without `0x`."""
    text = read_text(path, 64).strip().removeprefix("0x")
    try:
        bits = int(text, 16) if text.isascii() and text.isalnum() else -1
    except ValueError:
        bits = -1
    if not 0 <= bits < 2**32:
        raise GarbageError(f"{path} is not a bit pattern")
    return decode(bits)


def mailbox(path: str, ioctl: Ioctl | None = None) -> ThrottleSample:
    """Asks the Raspberry Pi's firmware through /dev/vcio. Raises OSError (no right: group `video`) or GarbageError."""
    # Words: size in bytes, request code, then one tag (id, size of its value, request code, value), and an end mark.
    message = bytearray(struct.pack("=8I", 32, 0, _GET_THROTTLED, 4, 0, 0, 0, 0))
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        (ioctl or fcntl.ioctl)(descriptor, _MAILBOX_PROPERTY, message)
    finally:
        os.close(descriptor)
    words = struct.unpack("=8I", message)
    if words[1] != _SUCCESS or not words[4] & _SUCCESS:
        raise GarbageError(f"{path}: the firmware refused the request")
    return decode(words[5])


def voltage_alarm(path: str) -> ThrottleSample:
    """`in0_lcrit_alarm` of the chip `rpi_volt`: 1 if the voltage was too low within the last 2 s."""
    low: frozenset[ThrottleFlag] = frozenset(("under_voltage",))
    now = low if read_int(path, 0, 1) else frozenset[ThrottleFlag]()
    return ThrottleSample(now=now, since_boot=now, knows=low)


def cooling(paths: Sequence[str]) -> ThrottleSample:
    """`cur_state` of the cooling devices that slow a processor: above 0, the kernel does so because of heat."""
    slowed = max(read_int(path, 0, 1_000_000) for path in paths) > 0
    flags: frozenset[ThrottleFlag] = frozenset(("frequency_capped", "throttled"))
    now = flags if slowed else frozenset[ThrottleFlag]()
    return ThrottleSample(now=now, since_boot=now, knows=flags)


def throttle_count(paths: Sequence[str]) -> ThrottleCount:
    """The sum of the counters in `paths`."""
    return ThrottleCount(sum(read_int(path, 0, 2**63 - 1) for path in paths))


def find_firmware_file(root: Path) -> str | None:
    """The firmware's file, where the kernel has one that we may read."""
    return _readable(Path(root, "sys/devices/platform/soc/soc:firmware/get_throttled"))


def find_mailbox(root: Path) -> str | None:
    """The mailbox device, where there is one that we may open."""
    return _readable(Path(root, "dev/vcio"))


def find_voltage_alarm(root: Path) -> str | None:
    """The alarm file of the chip `rpi_volt`."""
    for folder in sorted(Path(root, "sys/class/hwmon").glob("hwmon*")):
        if _name(folder / "name") == "rpi_volt" and (folder / "in0_lcrit_alarm").exists():
            return str(folder / "in0_lcrit_alarm")
    return None


def find_cooling(root: Path) -> tuple[str, ...]:
    """The state files of cooling devices that slow a processor down, at most 8."""
    folders = sorted(Path(root, "sys/class/thermal").glob("cooling_device*"))
    found = [folder / "cur_state" for folder in folders if _name(folder / "type").startswith(_SOFTWARE_COOLING)]
    return tuple(str(path) for path in found if path.exists())[:8]


def find_throttle_counts(root: Path) -> tuple[str, ...]:
    """The counters of at most 16 cores, and the package's as the first core shows it (it is the same for all)."""
    cpus = Path(root, "sys/devices/system/cpu")
    cores = sorted(cpus.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))[:16]
    return tuple(str(path) for path in (*cores, *cpus.glob("cpu0/thermal_throttle/package_throttle_count")))


def _readable(path: Path) -> str | None:
    return str(path) if os.access(path, os.R_OK) else None


def _name(path: Path) -> str:
    try:
        return read_text(str(path), 256).strip()
    except (OSError, GarbageError):
        return ""
