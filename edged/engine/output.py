"""The output of one sequence, divided into the text of the answer, the thought before it, and calls of tools.

Markers divide it: the tags of a thought (`<think>`, `</think>`), and what opens a call (`<tool_call>`). They are found
in the characters, whether the vocabulary has a token for one or spells it out, and are never a part of the text. What
may be the beginning of a marker is held back.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from edged.core.prompt import Chunk
from edged.engine.detokenizer import TextStream

State = Literal["text", "thought", "call"]
_BARE: Final = ("{", '"name"', ":")  # how a call without an opening begins, with blanks between
_BLANKS: Final = " \t\r\n"


@dataclass(frozen=True)
class Markers:
    """What divides an output. `thought`: the opening and the closing tag. `calls`: openings of a call.

    `bare`: a JSON object at the beginning of the answer whose first key is `name` is a call without an opening.
    `ids`: control tokens that are markers; their names are part of the output.
    """

    thought: tuple[str, str] | None = None
    calls: tuple[str, ...] = ()
    bare: bool = False
    ids: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return self.thought is not None or bool(self.calls) or self.bare


NO_MARKERS: Final = Markers()


class _Found(NamedTuple):
    begin: int
    end: int
    state: State


class Output:
    """See the module. `state` is what the next character belongs to.

    `thinking`: the prompt has opened a thought already. `only_calls`: everything outside of a thought is calls, with
    their openings. `plain`: what follows the first thought is all text. `shown`: chunks carry the thought.
    """

    def __init__(
        self,
        stops: Sequence[str] = (),
        markers: Markers = NO_MARKERS,
        *,
        thinking: bool = False,
        only_calls: bool = False,
        plain: bool = False,
        shown: bool = False,
    ) -> None:
        self.reasoning = ""
        self.call = ""  # the present one, without its opening
        self.position = 0  # characters of the output so far, of all kinds
        self._markers = markers
        self._ids = markers.ids
        self._plain = plain
        self._outside: State = "call" if only_calls else "text"
        self.state: State = "thought" if thinking else self._outside
        self._shown = shown
        self._text = TextStream(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = ""
        self._started = False  # whether the answer has more than blanks
        self._after_thought = False
        self._spans: list[tuple[int, int]] = []  # of the output, which are text
        self._sent = self._reasoning_sent = 0

    @property
    def text(self) -> str:
        """The text of the answer so far."""
        return self._text.text

    @property
    def marker_ids(self) -> frozenset[int]:
        """The control tokens whose names are part of the output."""
        return self._ids

    @property
    def stopped(self) -> bool:
        """Whether a stop text has come."""
        return self._text.stopped

    def push(self, new: bytes) -> None:
        """Adds a token's bytes."""
        self._pending += (decoded := self._decoder.decode(new))
        self.position += len(decoded)
        while self._pending and not self.stopped and self._advance():
            pass

    def finish(self, *, whole: bool) -> None:
        """Ends the output. `whole`: the model ended it; else what may be the beginning of a marker is left out."""
        if self.state == "text":
            if (whole or not self._markers) and (self._pending.strip() or not self._after_thought):
                self._add_text(len(self._pending))
        elif self.state == "thought":
            self._add_reasoning(self._pending)
        self._text.finish()

    def end_call(self) -> str:
        """Ends the present call, and gives it."""
        body, self.call = self.call, ""
        self.state = "text"
        return body

    def drop_call(self) -> None:
        """The present call begins anew."""
        self.call = ""

    def chunk(self) -> Chunk | None:
        """What is new since the last chunk."""
        at, reasoning_at = self._sent, self._reasoning_sent
        text = self.text[at:]
        reasoning = self.reasoning[reasoning_at:] if self._shown else ""
        self._sent, self._reasoning_sent = at + len(text), reasoning_at + len(reasoning)
        return Chunk(at, text, reasoning_at, reasoning) if text or reasoning else None

    def is_text(self, position: int) -> bool:
        """Whether a token that began at this character of the output has a part in the text."""
        before = 0
        for begin, end in self._spans:
            if begin <= position < end:
                return before + position - begin < len(self.text) or (not self.stopped and self.state == "text")
            before += end - begin
        last = self._spans[-1][1] if self._spans else 0
        return self.state == "text" and not self.stopped and position >= last

    # ---- one state at a time ----------------------------------------------------------------------------------------

    def _advance(self) -> bool:
        """Takes what can be taken of the pending characters; whether there may be more."""
        match self.state:
            case "call":
                self.call += self._pending
                self._pending = ""
                return False
            case "thought":
                return self._advance_thought()
            case "text":
                return self._advance_text()

    def _advance_thought(self) -> bool:
        close = self._markers.thought[1] if self._markers.thought else ""
        at = self._pending.find(close) if close else -1
        if at < 0:
            ready = len(self._pending) - beginning_at_end(self._pending, (close,))
            ready = len(self._pending[:ready].rstrip())  # blanks before the closing tag are no part of the thought
            self._add_reasoning(self._pending[:ready])
            self._pending = self._pending[ready:]
            return False
        self._add_reasoning(self._pending[:at].rstrip())
        self._pending = self._pending[at + len(close) :]
        self.state, self._after_thought = self._outside, True
        if self._plain:
            self._markers = NO_MARKERS
        return True

    def _add_reasoning(self, text: str) -> None:
        self.reasoning += text if self.reasoning else text.lstrip()

    def _advance_text(self) -> bool:
        if not self._markers and not self._after_thought:
            self._add_text(len(self._pending))
            return False
        if not self._started and (at := len(self._pending) - len(self._pending.lstrip())):
            if at == len(self._pending):
                return False  # held back: it is dropped where a thought or a call follows
            if self._after_thought or self._starts_with_marker(self._pending[at:]):
                self._pending = self._pending[at:]
        if self._markers.bare and not self._started and (waits := self._advance_bare()) is not None:
            return waits
        found = self._first_marker()
        if found is None:
            held = beginning_at_end(self._pending, self._openings())
            self._add_text(len(self._pending) - held)
            return False
        self._add_text(found.begin)
        if not self.stopped:
            self._pending = self._pending[found.end - found.begin :]
            self.state = found.state
        return not self.stopped

    def _advance_bare(self) -> bool | None:
        """Whether there may be more, where a call without an opening begins or may begin; None where none does."""
        begin = begins_bare(self._pending)
        if begin is None:
            return None
        if begin:
            self._pending = '{"name":' + self._pending[begin:]
            self.state = "call"
        return bool(begin)

    def _openings(self) -> tuple[str, ...]:
        return (*self._markers.calls, *(self._markers.thought or ()))

    def _starts_with_marker(self, text: str) -> bool:
        """Whether a text begins with a marker, or is the beginning of one."""
        return any(text.startswith(one) or one.startswith(text) for one in self._openings())

    def _first_marker(self) -> _Found | None:
        """The first one of the pending characters. A closing tag without an opening one is left out of the text."""
        states: dict[str, State] = dict.fromkeys(self._markers.calls, "call")
        if self._markers.thought:
            states |= {self._markers.thought[0]: "thought", self._markers.thought[1]: "text"}
        places = [
            _Found(at, at + len(marker), state)
            for marker, state in states.items()
            if (at := self._pending.find(marker)) >= 0
        ]
        return min(places, key=lambda found: (found.begin, -found.end), default=None)

    def _add_text(self, count: int) -> None:
        """The first characters that are pending are text."""
        piece, self._pending = self._pending[:count], self._pending[count:]
        end = self.position - len(self._pending)
        if self._spans and self._spans[-1][1] == end - len(piece):
            self._spans[-1] = (self._spans[-1][0], end)
        elif piece:
            self._spans.append((end - len(piece), end))
        self._started = self._started or bool(piece.strip())
        self._text.push_text(piece)


def beginning_at_end(text: str, markers: Sequence[str]) -> int:
    """The length of the longest end of a text that is the beginning of a marker, and not all of it."""
    longest = max(map(len, markers), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        end = text[-length:]
        if any(marker.startswith(end) for marker in markers):
            return length
    return 0


def begins_bare(text: str) -> int | None:
    """Where a text goes on that begins like a call without an opening; 0: it may; None: it does not."""
    at = 0
    for part in _BARE:
        at += len(text[at:]) - len(text[at:].lstrip(_BLANKS))
        rest = text[at : at + len(part)]
        if rest != part:
            return 0 if part.startswith(rest) and at + len(rest) == len(text) else None
        at += len(part)
    return at
