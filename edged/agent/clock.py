"""Unix time as the agent uses it: it goes on from what an earlier run saw, on a board that wakes up in the past."""

from __future__ import annotations

import time
from collections.abc import Callable


class WallClock:
    """Calling it gives Unix time. `begin` says the last time that an earlier run saw.

    Until the system's clock is set, time goes on from there; once it is set, the system's clock is believed.
    """

    def __init__(self, clock: Callable[[], float], system: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._system = system
        self._floor = 0.0
        self._begun = clock()

    def begin(self, floor: float) -> None:
        """From now on never say less than `floor`."""
        self._floor, self._begun = floor, self._clock()

    def __call__(self) -> float:
        """Unix time in seconds."""
        return max(self._system(), self._floor + self._clock() - self._begun)
