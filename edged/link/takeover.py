"""Tells another board that uses our client id from a broker that is restarted. No I/O.

A reason code says it where there is one. Where there is none (3.1.1, some brokers), connections that end repeatedly
under a broker that stays look like it; a broker that was not there just after, that says it shuts down or that has
forgotten our session was restarted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from edged.link.attempt import Ended

DROPS = 4  # more than three a minute
DROPS_WITHIN = 60.0  # seconds


class TakeOverDetector:
    """Owned by the network thread. `clock` returns monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._drops: deque[float] = deque(maxlen=DROPS)

    @property
    def suspects(self) -> bool:
        """Whether the last connection ended in a way that another board may have caused."""
        return bool(self._drops)

    def is_taken_over(self, ended: Ended) -> bool:
        """Whether the attempt that just ended, with those before it, shows that another board uses our name."""
        if ended.taken_over:
            self._drops.clear()
            return True
        if ended.up_for is None:  # not even reached
            self._drops.clear()
            return False
        if not ended.session_present:  # between the drops before this connection and itself the broker was restarted
            self._drops.clear()
        if ended.excess:  # it is we who ended it
            return False
        if ended.broker_gone:
            self._drops.clear()
            return False
        self._drops.append(self._clock())
        if ended.restarted or len(self._drops) < DROPS or self._clock() - self._drops[0] >= DROPS_WITHIN:
            return False
        self._drops.clear()
        return True
