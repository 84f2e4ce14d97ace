"""The `rollout` of a layer: which devices apply it, and when. JSON → types.

A device has a position from 0 to 100 in each roll-out, the same for devices and operators, so that a later stage
contains the earlier ones.
"""

from __future__ import annotations

import hashlib
import re
from fractions import Fraction
from typing import Any

import msgspec

from edged.config import checks
from edged.config.keys import check_layer
from edged.core.errors import BadValue
from edged.wire.prompts import timestamp

_WINDOW = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)\Z")
DAY = 24 * 60
_RANGE = 1 << 64


class Rollout(msgspec.Struct, frozen=True):
    """A layer for the first `percent` of the devices, in an order that `seed` gives.

    `not_before`: Unix time. `window`: first and last minute of the local day, the last excluded. `halted`: no other
    device begins. `previous`: the settings of before, for devices that do not have them; do not change them.
    """

    id: str
    percent: float
    seed: str
    not_before: float | None = None
    window: tuple[int, int] | None = None
    halted: bool = False
    previous: dict[str, Any] | None = None


def window(path: str, value: object) -> tuple[int, int]:
    """`"02:00-04:00"` → minutes of the day. It may pass midnight. Raises BadValue."""
    match = _WINDOW.match(value) if isinstance(value, str) else None
    if match is None:
        raise BadValue(path, f"must be two times of the day such as 02:00-04:00, not {checks.shown(value)}")
    hours, minutes, to_hours, to_minutes = (int(part) for part in match.groups())
    first, last = hours * 60 + minutes, to_hours * 60 + to_minutes
    if first == last:
        raise BadValue(path, f"begins and ends at {checks.shown(value)[1:6]}; leave it out for the whole day")
    return first, last


def _previous(path: str, value: object) -> dict[str, Any]:
    try:
        return check_layer(value)
    except BadValue as error:
        raise BadValue(f"{path}.{error.path}" if error.path else path, error.sentence) from None


def position(seed: str, device: str) -> Fraction:
    """From 0 to below 100: the first 8 bytes of SHA-256(UTF-8(seed) ‖ UTF-8(device)), big-endian, · 100 / 2⁶⁴."""
    return Fraction(int.from_bytes(hashlib.sha256(seed.encode() + device.encode()).digest()[:8], "big") * 100, _RANGE)


def belongs(seed: str, device: str, percent: float) -> bool:
    """Whether a device is among the first `percent`."""
    return position(seed, device) < percent


ID = checks.text(
    high=64, pattern=re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"), like="1 to 64 of A-Z, a-z, 0-9, . _ and -"
)
_KEYS: dict[str, checks.Check] = {
    "id": ID,
    "percent": checks.number(0, 100),
    "seed": checks.text(high=128),
    "not_before": timestamp,
    "window": window,
    "halted": checks.boolean,
    "previous": _previous,
}


def rollout(path: str, value: object) -> Rollout:
    """The check of a layer's `rollout`. Raises BadValue."""
    return Rollout(**checks.record(path, value, _KEYS, required=("id", "percent", "seed")))
