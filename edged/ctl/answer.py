"""How an answer is printed: as it grows, wrapped between words on a terminal, with a line about it at the end."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from edged.command_line import note, terminal_width

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_CJK = "\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
# A piece is a line end, a run of spaces, one character of a script that breaks anywhere, or a word.
_PIECES = re.compile(rf"\n|[^\S\n]+|[{_CJK}]|[^\s{_CJK}]+")


def plain(text: str) -> str:
    """Text from elsewhere without the characters that steer a terminal."""
    return _CONTROL.sub("\ufffd", text.replace("\r", ""))


class WordWrap:
    """Gives text to write so that no word is broken at the end of a line of `width` columns.

    The last word is kept back until it is complete: until something follows it, or `flush`.
    """

    def __init__(self, width: int) -> None:
        self._width = max(width, 2)
        self._column = 0
        self._space = ""
        self._word = ""

    def add(self, text: str) -> str:
        """What can be written now."""
        text = self._word + plain(text)
        self._word = ""
        pieces = _PIECES.findall(text)
        if pieces and not pieces[-1][-1].isspace() and _columns(pieces[-1]) < self._width:
            self._word = pieces.pop()
        return "".join(self._place(piece) for piece in pieces)

    def flush(self) -> str:
        """The rest."""
        word, self._word = self._word, ""
        placed = self._place(word) if word else ""
        space, self._space = self._space, ""
        return placed + space

    def _place(self, piece: str) -> str:
        if piece == "\n":
            self._column, self._space = 0, ""
            return piece
        if piece.isspace():
            self._space += piece.expandtabs(4)
            return ""
        space, self._space = self._space, ""
        columns = _columns(piece)
        if self._column and self._column + len(space) + columns > self._width:
            self._column, space = 0, "\n"
        else:
            self._column += len(space)
        self._column = (self._column + columns) if columns < self._width else columns % self._width or self._width
        return space + piece


def _columns(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def printer_for(body: Mapping[str, Any]) -> Printer:
    """What prints the answer to this prompt on stdout. JSON is not wrapped: a line end would be a part of its texts.

    Where stdout is no terminal only the final's text is written: a device may begin an answer again.
    """
    width = terminal_width(sys.stdout)
    if width is None:
        return Printer(sys.stdout, grows=False)
    return Printer(sys.stdout, sys.maxsize if "format" in body else width)


class Printer:
    """Prints an answer as it grows; a chunk with `at` 0 after others starts again on a new line, after a note.

    `width`: columns of the terminal; None: the text is written as it is. `grows`: whether chunks are written, or only
    the final.
    """

    def __init__(self, out: TextIO, width: int | None = None, *, grows: bool = True) -> None:
        self._out = out
        self._wrap = WordWrap(width) if width else None
        self._grows = grows
        self._shown = 0
        self._text = ""
        self._on_line = False  # text was written and its line has not ended

    def chunk(self, at: int, text: str) -> None:
        """Print what is new. After a gap nothing is printed until the final, which has the whole text."""
        if not self._grows or at > len(self._text):
            return
        if at == 0 and self._shown and not text.startswith(self._text[: self._shown]):
            self.note("edgectl: the device began the answer again")
            self._shown = 0
        self._text = self._text[:at] + text
        if at <= self._shown:
            self._write(self._text[self._shown :])
            self._shown = len(self._text)

    def final(self, text: str) -> None:
        """Print what is missing, and end the line; an empty answer is an empty line."""
        self._grows = True
        self.chunk(0, text)
        if self._wrap is not None:
            self._out.write(self._wrap.flush())
        if self._on_line or not self._shown:
            self._out.write("\n")
        self._on_line = False
        self._out.flush()

    def note(self, text: str) -> None:
        """Print a sentence on stderr, on a line of its own; the answer goes on after it on a new line."""
        self.end_line()
        note(text)

    def end_line(self) -> None:
        """End the line, where text was written on it."""
        if self._on_line:
            self._write("\n")
            self._on_line = False

    def _write(self, text: str) -> None:
        self._out.write(text if self._wrap is None else self._wrap.add(text))
        self._out.flush()
        self._on_line = self._on_line or bool(text)


def show_final(document: dict[str, Any], printer: Printer) -> None:
    """Print the rest of the answer, and a line about it or the error on stderr."""
    if "error" in document:
        printer.note(f"edgectl: {error_of(document)}")
    else:
        printer.final(document["text"])
        note(summary(document))


def succeeded(document: dict[str, Any]) -> bool:
    """Whether a final has a whole answer."""
    return "error" not in document and document["reason"] not in {"cancelled", "expired"}


def error_of(document: dict[str, Any]) -> str:
    """The reason and the device's sentence of a final with an error."""
    error = document.get("error")
    message = error.get("message") if isinstance(error, dict) else None
    return plain(f"{document['reason']}: {message or 'the device gives no reason'}")


def summary(document: dict[str, Any]) -> str:
    """A line about a final: why it ended, tokens, speed, time, model."""
    return plain("— " + ", ".join(_facts(document)))


def _facts(document: dict[str, Any]) -> Iterator[str]:
    usage, timing, receipt = (_part(document, name) for name in ("usage", "timing", "receipt"))
    tokens = usage.get("completion_tokens", 0)
    yield f"{document['reason']}, {tokens} token{'' if tokens == 1 else 's'}"
    if isinstance(speed := timing.get("tokens_per_second"), (int, float)):
        yield f"{speed:.1f} tokens/s"
    if isinstance(total := timing.get("total_ms"), (int, float)):
        yield f"{total / 1000:.1f} s"
    if receipt:
        yield f"{receipt.get('model')} on {receipt.get('device')}"
        yield str(receipt.get("quantization"))


def _part(document: dict[str, Any], name: str) -> dict[str, Any]:
    part = document.get(name)
    return part if isinstance(part, dict) else {}
