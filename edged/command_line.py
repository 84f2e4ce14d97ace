"""What `edged` and `edgectl` share: the parser, exit codes, text arguments, errors of the system."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
from typing import NoReturn, TextIO

from edged.core.errors import BadValue, EdgedError

DONE, FAILED, USAGE, NO_BROKER, TIMED_OUT = 0, 1, 2, 3, 4
"""Exit codes."""


class WrongUsage(EdgedError):
    """Arguments that a command does not accept (exit code 2)."""


class Parser(argparse.ArgumentParser):
    """Raises WrongUsage with one sentence where argparse would print its usage and an error."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse for arguments that it does not accept."""
        raise WrongUsage(f"{' '.join(message.split())}; see {self.prog} --help")


def fail(program: str, sentence: str, code: int) -> int:
    """Print one sentence to stderr; gives the exit code."""
    print_lines(f"{program}: {sentence}", sys.stderr)
    return code


def terminal_width(stream: TextIO) -> int | None:
    """The columns of a stream's terminal; None where it is none."""
    return shutil.get_terminal_size((80, 24)).columns if stream.isatty() else None


def print_lines(text: str, stream: TextIO) -> None:
    """Print a sentence, on a terminal wrapped between words."""
    width = terminal_width(stream)
    lines = [text] if width is None else _wrapped(text, width)
    print("\n".join(lines), file=stream, flush=True)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def note(text: str) -> None:
    """Print a sentence that is no result to stderr."""
    print_lines(text, sys.stderr)


def drop_output() -> None:
    """After a BrokenPipeError: nothing reads stdout any more, so let Python's flush at exit go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def utf8(name: str, text: str) -> str:
    """The text of an argument. Raises BadValue where its bytes are no UTF-8, which Python gives as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadValue(name, "is not valid UTF-8; convert it to UTF-8") from None
    return text


def text_or_input(name: str, text: str) -> str:
    """The text of an argument, or of standard input where it is `-`. Raises BadValue where that is no UTF-8."""
    if text != "-":
        return utf8(name, text)
    try:
        return utf8("standard input", sys.stdin.read())
    except UnicodeDecodeError as error:
        raise BadValue("standard input", f"is not valid UTF-8 (byte {error.start}); convert it to UTF-8") from None


def reason(error: OSError, known: str = "") -> str:
    """The system's error, and its file unless that is `known` to the reader already."""
    why = error.strerror or str(error)
    return why if error.filename is None or str(error.filename) == known else f"{why}: {error.filename}"
