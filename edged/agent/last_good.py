"""Which model is loaded where that in force cannot be. Owned by the supervisor."""

from __future__ import annotations

from collections.abc import Callable

from edged.agent.model_state import Fallback, ModelFailure
from edged.worker.frames import Load


class LastGood:
    """`candidates` gives the earlier models that served, in the order in which they are tried."""

    def __init__(self, candidates: Callable[[], tuple[Load, ...]]) -> None:
        self._candidates = candidates
        self._untried: tuple[Load, ...] = ()
        self.fallback: Fallback | None = None
        """The model in force and why it could not be loaded, from then until `reset`."""

    def following(self, order: Load, failure: ModelFailure) -> Load | None:
        """The model to load after `order` could not be; None where all were tried."""
        if self.fallback is None:
            self.fallback, self._untried = Fallback(order, failure), self._candidates()
        if not self._untried:
            return None
        following, *untried = self._untried
        self._untried = tuple(untried)
        return following

    def reset(self) -> Fallback | None:
        """Forget what was tried; gives what `fallback` was."""
        fallback, self.fallback, self._untried = self.fallback, None, ()
        return fallback
