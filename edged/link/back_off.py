"""What follows from an attempt that ended: how long to wait, and in which version of MQTT to try next. No I/O.

MQTT 5 first, 3.1.1 where the broker demands it; full jitter below a bound that doubles with each failure.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from edged.link.attempt import Ended
from edged.link.takeover import TakeOverDetector

SILENT_CONNECTS = 3  # CONNECTs of v5 without any CONNACK before 3.1.1 is tried
BACK_OFF_CAP = 60.0  # seconds
TAKE_OVER_BACK_OFF = (120.0, 300.0)  # seconds; another board uses this name


class Retry(msgspec.Struct, frozen=True):
    """Wait `seconds`, then try again. `reason` is a sentence for people; `taken_over`: another board uses our name."""

    seconds: float
    reason: str
    taken_over: bool


class BackOff:
    """Remembers what matters from one attempt to the next. Owned by the network thread.

    `version_setting` is `auto`, `5` or `3.1.1`. `uniform(low, high)` draws a number between the two.
    """

    def __init__(
        self, version_setting: str, clock: Callable[[], float], uniform: Callable[[float, float], float]
    ) -> None:
        self.version = "3.1.1" if version_setting == "3.1.1" else "5"
        """The version of MQTT for the next attempt."""
        self._may_fall_back = version_setting == "auto"
        self._uniform = uniform
        self._v5_accepted = False
        self._silent = 0
        self._failures = 0
        self._detector = TakeOverDetector(clock)

    def after(self, ended: Ended) -> Retry:
        """What to do after this attempt."""
        suspected = self._detector.suspects
        taken_over = self._detector.is_taken_over(ended)
        self._count(ended, suspected=suspected)
        reason = ended.reason or "the broker closed the connection"
        if self._should_fall_back(ended):
            self.version = "3.1.1"
            return Retry(0.0, reason, taken_over=False)
        if taken_over:
            reason = "another board uses this name; give each board its own identity.device"
            return Retry(self._uniform(*TAKE_OVER_BACK_OFF), reason, taken_over=True)
        self._failures += 1
        bound = min(BACK_OFF_CAP, 2.0 ** min(self._failures - 1, 6))
        return Retry(self._uniform(0, bound), reason, taken_over=False)

    def _count(self, ended: Ended, *, suspected: bool) -> None:
        if ended.answered:
            self._silent = 0
        elif ended.silent:
            self._silent += 1
        self._v5_accepted |= ended.accepted and ended.version == "5"
        if ended.excess:
            return  # it would come at once again: wait longer each time
        if ended.up_for is not None and (not suspected or ended.up_for > BACK_OFF_CAP / 2):
            self._failures = 0

    def _should_fall_back(self, ended: Ended) -> bool:
        if self.version != "5" or not self._may_fall_back:
            return False
        return ended.version_refused or (self._silent >= SILENT_CONNECTS and not self._v5_accepted)
