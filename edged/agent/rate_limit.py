"""How many prompts a requester sends: a token bucket each, as deep as the prompts of one minute."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

REMEMBERED: Final = 4096  # requesters; one that is forgotten starts with a full bucket


class RateLimit:
    """Owned by the agent's main thread. `clock` returns monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._spent: OrderedDict[str, tuple[float, float]] = OrderedDict()  # prompts that count still, and since when

    def is_spent(self, requester: str, per_minute: int | None, more: int = 0) -> bool:
        """Whether one prompt beside `more` new ones would be more than `per_minute` (None: not bounded)."""
        return per_minute is not None and self._count(requester, per_minute) + more + 1 > per_minute

    def spend(self, requester: str, per_minute: int | None) -> None:
        """Count a prompt that was accepted."""
        if per_minute is None:
            return
        self._spent[requester] = (self._count(requester, per_minute) + 1, self._clock())
        self._spent.move_to_end(requester)
        if len(self._spent) > REMEMBERED:
            self._spent.popitem(last=False)

    def _count(self, requester: str, per_minute: int) -> float:
        count, since = self._spent.get(requester, (0.0, 0.0))
        return max(0.0, count - (self._clock() - since) * per_minute / 60)
