"""Unix time as the agent uses it: never before what an earlier run stored, on a board without a battery clock."""

from __future__ import annotations

import time
from collections.abc import Callable


class WallClock:
    """Calling it returns Unix time. `start_from` sets the reliable time that an earlier run stored last.

    The system's clock is used where it is ahead of that, and where it is known to be synchronized.
    """

    def __init__(self, clock: Callable[[], float], system: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._system = system
        self._floor = 0.0
        self._started_at = clock()

    def start_from(self, floor: float) -> None:
        """From now on never give less than `floor`, or than the system's time now where `floor` is 0."""
        self._floor, self._started_at = floor or self._system(), self._clock()

    def set_synchronized(self, synced: bool | None) -> None:
        """Whether the system's clock is synchronized. If so it is used, whether it is behind or ahead.

        To be called regularly: while it is not synchronized, time continues from the last call when it was. Where
        that is unknown (None), the system's clock is used as far as it is ahead.
        """
        if synced or synced is None:
            now = self._system() if synced else self()
            self._floor, self._started_at = now, self._clock()

    def reliable(self) -> float:
        """Unix time that does not follow an unsynchronized system clock; for what is stored, and for its expiry.

        It advances with the monotonic clock: a clock that was once fast is not stored for ever and expires nothing too
        early, and on a board without a time server finals still expire.
        """
        return self._floor + self._clock() - self._started_at

    def __call__(self) -> float:
        """Unix time in seconds."""
        return max(self._system(), self.reliable())
