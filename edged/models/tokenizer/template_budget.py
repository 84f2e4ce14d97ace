"""What one rendering of a chat template may do: counted operations, bounded values, bounded time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from jinja2 import TemplateError

MAX_OPERATIONS: Final = 300_000  # beside one for each character of the turns; one more for each 64 characters handled
MAX_SECONDS: Final = 1.0  # of this thread's processor time
PER_OPERATION: Final = 64
MAX_BITS: Final = 4096


class TooMuchError(TemplateError):
    """The template wants more than any template needs, or what is not allowed."""


class RaisedError(TemplateError):
    """The template refuses what it was given, by `raise_exception`."""


class Budget:
    """What one rendering may do. `size`: characters of its turns; `longest`: characters of any one value."""

    def __init__(self, size: int, longest: int) -> None:
        self.left = MAX_OPERATIONS + size
        self.longest = longest
        self._until = time.thread_time() + MAX_SECONDS
        self._checked = self.left

    def charge(self, operations: int) -> None:
        """Counts; raises TooMuchError where the budget is used up."""
        self.left -= operations
        if self._checked - self.left > 256:
            self._checked = self.left
            if time.thread_time() > self._until:
                self.left = -1
        if self.left < 0:
            raise TooMuchError("it computes without end")

    def fits(self, length: int) -> None:
        """Charges a text or list of that length; raises TooMuchError where it is too long."""
        if length > self.longest:
            raise TooMuchError("it makes a value that is far too large")
        self.charge(1 + length // PER_OPERATION)

    def weigh(self, value: Any) -> Any:
        """Charges a value with all that it holds, and gives it back."""
        if isinstance(value, str | bytes):
            self.fits(len(value))
        elif isinstance(value, int) and not isinstance(value, bool):
            if value.bit_length() > MAX_BITS:
                raise TooMuchError("it makes a number that is far too large")
            self.charge(1)
        elif isinstance(value, Mapping):
            self.fits(len(value))
            for key, item in value.items():
                self.weigh(key)
                self.weigh(item)
        elif isinstance(value, list | tuple | set | frozenset):
            self.fits(len(value))
            for item in value:
                self.weigh(item)
        else:
            self.charge(1)
        return value


def size_of(value: Any) -> int:
    """An upper bound of the characters that a value of JSON has as a text."""
    if isinstance(value, Mapping):
        return sum(8 + size_of(key) + size_of(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return sum(4 + size_of(item) for item in value)
    return len(value) if isinstance(value, str) else 32
