"""Recurrent states of sequences: which are in use. A state is never changed; each step makes a new one from it.

So a step that failed can be repeated. One thread owns a pool.
"""

from __future__ import annotations

from typing import Final

NO_STATE: Final = -1  # of a sequence without tokens, or of a model without states


class StatePool:
    """`count` states; 0 for a model that has none, whose sequences all have NO_STATE."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._empty = list(range(count - 1, -1, -1))

    @property
    def free(self) -> int:
        """States that can be taken."""
        return len(self._empty)

    def allocate(self) -> int:
        """A state to write. Raises MemoryError where all are in use."""
        if not self.count:
            return NO_STATE
        if not self._empty:
            raise MemoryError(f"all {self.count} recurrent states are in use")
        return self._empty.pop()

    def release(self, state: int) -> None:
        """Frees a state; NO_STATE is ignored."""
        if state != NO_STATE:
            self._empty.append(state)
