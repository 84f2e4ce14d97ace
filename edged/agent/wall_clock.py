"""Unix time as the agent uses it: it goes on from what an earlier run saw, on a board that wakes up in the past."""

from __future__ import annotations

import time
from collections.abc import Callable


class WallClock:
    """Calling it gives Unix time. `begin` says the last time that an earlier run was sure of.

    The system's clock is believed where it is ahead of that, and where it is known to be synchronized (`trust`).
    """

    def __init__(self, clock: Callable[[], float], system: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._system = system
        self._floor = 0.0
        self._begun = clock()

    def start_from(self, floor: float) -> None:
        """From now on never say less than `floor`, or what the system says now where no earlier run was sure of any."""
        self._floor, self._begun = floor or self._system(), self._clock()

    def set_synchronized(self, synced: bool | None) -> None:
        """Whether the system's clock is synchronized. If so it is believed, be it behind or ahead.

        To be called again and again: while it is not, time goes on from the last call when it was. Where nobody says
        (None), the system's clock is believed as far as it is ahead.
        """
        if synced or synced is None:
            now = self._system() if synced else self()
            self._floor, self._begun = now, self._clock()

    def reliable(self) -> float:
        """Unix time that does not follow a system clock which nobody keeps right; to be stored and to forget by.

        It moves on with the time that passes here: a clock that was once fast is not stored for ever, nor does it make
        us forget too early, and a board that never hears a time server still forgets.
        """
        return self._floor + self._clock() - self._begun

    def __call__(self) -> float:
        """Unix time in seconds."""
        return max(self._system(), self.reliable())
