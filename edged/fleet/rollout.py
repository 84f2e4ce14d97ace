"""Whether this device applies a layer that is rolled out in stages now. Pure: the time comes in as an argument.

Each stage is a new revision of the layer with the same id, seed and settings and another `percent` or `halted`.
"""

from __future__ import annotations

import msgspec

from edged.config.checks import show_duration
from edged.wire.layers import Layer
from edged.wire.replies import rfc3339
from edged.wire.rollouts import DAY, Rollout, belongs

BUSY_AT_MOST = 600.0  # seconds that prompts delay the settings; after that they come all the same


class Moment(msgspec.Struct, frozen=True):
    """When a device decides. `minute`: of the local day. `busy`: it has prompts to answer."""

    now: float
    minute: int
    busy: bool = False


def delay(rollout: Rollout, device: str, moment: Moment) -> str | None:
    """Why the device does not apply the settings yet, in a sentence; None where it applies them now."""
    if rollout.halted:
        return f"the roll-out {rollout.id} is halted"
    if not belongs(rollout.seed, device, rollout.percent):
        return f"the roll-out {rollout.id} is at {rollout.percent:g} % of the devices, without this one"
    if rollout.not_before is not None and moment.now < rollout.not_before:
        return f"the roll-out {rollout.id} begins at {rfc3339(rollout.not_before)}"
    if rollout.window is not None and not within(rollout.window, moment.minute):
        return f"the roll-out {rollout.id} waits for {_clock(rollout.window[0])} local time"
    if moment.busy:
        return f"prompts are answered first, for at most {show_duration(BUSY_AT_MOST)}"
    return None


def within(window: tuple[int, int], minute: int) -> bool:
    """Whether a minute of the day lies in the window, which may pass midnight."""
    first, last = window
    return (minute - first) % DAY < (last - first) % DAY


def same(one: Layer, other: Layer) -> bool:
    """Whether both are stages of one roll-out: its id, and the same settings."""
    if one.rollout is None or other.rollout is None:
        return False
    return one.rollout.id == other.rollout.id and one.settings == other.settings


def _clock(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"
