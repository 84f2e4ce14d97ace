"""From the bytes of tokens to text that may be shown: whole characters, and never a part of a stop text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """The text of one answer as it grows.

    `push` and `finish` return what may be shown now; all of it together is `text`. Bytes that are no UTF-8 become the
    replacement character; a character that is still incomplete at the end is left out. Once a stop text has come,
    `stopped` is True and nothing more is shown.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._stops = tuple(stops)
        self._held = ""  # may be the beginning of a stop text
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, new: bytes) -> str:
        """Adds a token's bytes."""
        if self.stopped:
            return ""
        self._held += self._decoder.decode(new)
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:  # the one that is complete first counts, however the text was divided
            self.stopped = True
            return self._show(min(found)[1])
        return self._show(len(self._held) - self._suspicious())

    def finish(self) -> str:
        """The end of the answer without a stop text: what was held back for one is shown after all."""
        return "" if self.stopped else self._show(len(self._held))

    def _show(self, count: int) -> str:
        shown, self._held = self._held[:count], self._held[count:]
        self.text += shown
        return shown

    def _suspicious(self) -> int:
        """The length of the longest end of what is held that a stop text begins with."""
        longest = max(map(len, self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            end = self._held[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
