"""From the bytes of tokens to text that may be emitted: whole characters, and never a part of a stop text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """The text of one answer as it grows.

    `push` and `finish` return what may be emitted now; all of it together is `text`. Bytes that are no UTF-8 become the
    replacement character; a character that is still incomplete at the end is left out. Once a stop text has come,
    `stopped` is True and nothing more is emitted.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._stops = tuple(stops)
        self._held_back = ""  # may be the beginning of a stop text
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, new: bytes) -> str:
        """Adds a token's bytes."""
        return self.push_text(self._decoder.decode(new))

    def push_text(self, new: str) -> str:
        """Adds characters."""
        if self.stopped:
            return ""
        self._held_back += new
        matches = [(at + len(stop), at) for stop in self._stops if (at := self._held_back.find(stop)) >= 0]
        if matches:  # the one that is complete first counts, however the text was divided
            self.stopped = True
            return self._emit(min(matches)[1])
        return self._emit(len(self._held_back) - self._possible_stop())

    def finish(self) -> str:
        """Ends the answer without a stop text: returns what was held back for one."""
        return "" if self.stopped else self._emit(len(self._held_back))

    def _emit(self, count: int) -> str:
        emitted, self._held_back = self._held_back[:count], self._held_back[count:]
        self.text += emitted
        return emitted

    def _possible_stop(self) -> int:
        """The length of the longest suffix of what is held back that is a prefix of a stop text."""
        longest = max(map(len, self._stops), default=1) - 1
        for length in range(min(longest, len(self._held_back)), 0, -1):
            end = self._held_back[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
