"""Temperatures: thermal zones (Raspberry Pi, Jetson, most boards) and the CPU's own chips under hwmon (x86).

Sources: kernel Documentation/driver-api/thermal/sysfs-api.rst (`type`, `temp` in thousandths of a degree) and
Documentation/hwmon/sysfs-interface.rst (`name`, `tempN_input` in thousandths of a degree, `tempN_label`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from edged.device.files import NAME_LENGTH, GarbageError, plain_name, read_int, read_text

MAX_ZONES = 8
# A chip that reads outside of this range is not measuring: unconnected sensors give -273, 0x7fff or 200 and more.
_COLDEST, _HOTTEST = -60_000, 180_000
_CPU_CHIPS = frozenset(("coretemp", "k10temp", "k8temp", "zenpower"))
_RELEVANT = ("cpu", "gpu", "soc", "tj", "pkg", "package", "core", "tctl", "tdie", "cluster", "npu")
# Jetson's PMIC-Die is a constant 100 °C, not a measurement (NVIDIA developer forum, Jetson Nano and Xavier).
_IGNORED = frozenset(("pmic-die",))


class Zone(msgspec.Struct, frozen=True):
    """One sensor: its name, made unique, and the file that holds its temperature."""

    name: str
    path: str


class ZoneTemperature(msgspec.Struct, frozen=True):
    """The reading of one sensor, in degrees Celsius."""

    name: str
    celsius: float


def find_zones(root: Path) -> tuple[Zone, ...]:
    """The sensors of this board, those that matter first, at most 8. Reads names only, never a temperature."""
    found: list[tuple[str, str]] = []
    for folder in _numbered(Path(root, "sys/class/thermal"), "thermal_zone*"):
        name = _label(folder / "type")
        if name is not None and name.lower() not in _IGNORED:
            found.append((name, str(folder / "temp")))
    for folder in _numbered(Path(root, "sys/class/hwmon"), "hwmon*"):
        chip = _label(folder / "name")
        if chip not in _CPU_CHIPS:  # other chips are thermal zones already, or not on the processor
            continue
        for file in _numbered(folder, "temp*_input"):
            label = _label(file.with_name(file.name.replace("_input", "_label")))
            found.append((f"{chip}-{label}" if label else chip, str(file)))
    found.sort(key=lambda zone: not is_relevant(zone[0]))  # stable: keeps the kernel's order within each half
    del found[MAX_ZONES:]
    names = _unique([name for name, _ in found])
    return tuple(Zone(name, path) for name, (_, path) in zip(names, found, strict=True))


def zone_temperature(zone: Zone) -> ZoneTemperature:
    """Reads one sensor. Raises OSError (EAGAIN: the part is switched off) or GarbageError."""
    return ZoneTemperature(zone.name, round(read_int(zone.path, _COLDEST, _HOTTEST) / 1000, 1))


def hottest(zones: Mapping[str, float]) -> float | None:
    """The hottest sensor of processor, GPU or chip; where none is known as such, the hottest of all."""
    relevant = [celsius for name, celsius in zones.items() if is_relevant(name)]
    return max(relevant or zones.values(), default=None)


def is_relevant(name: str) -> bool:
    """Whether a sensor of this name is on what computes (not on a battery, radio or disk)."""
    return any(word in name.lower() for word in _RELEVANT)


def _label(path: Path) -> str | None:
    try:
        return plain_name(read_text(str(path), 256))
    except (OSError, GarbageError):
        return None


def _numbered(folder: Path, pattern: str) -> list[Path]:
    """Matches in the order of their numbers: zone 2 before zone 10."""
    return sorted(folder.glob(pattern), key=lambda path: (len(path.name), path.name))[:64]


def _unique(names: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    unique = []
    for raw in names:
        name = raw[:NAME_LENGTH]
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name[: NAME_LENGTH - 4]}-{seen[name]}")
    return unique
