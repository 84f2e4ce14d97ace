"""What both commands share: a parser that complains in one sentence, text as a person gives it, the system's errors."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from edged.core.errors import BadValue, EdgedError


class WrongUsage(EdgedError):
    """Words that a command does not take (exit code 2)."""


class Parser(argparse.ArgumentParser):
    """Raises WrongUsage with one sentence where argparse prints its usage and a line below."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse for whatever it cannot take."""
        raise WrongUsage(f"{' '.join(message.split())}; {self.prog} --help shows what it takes")


def utf8(name: str, text: str) -> str:
    """The text of an argument. Raises BadValue where its bytes are no UTF-8, which Python hands on as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadValue(name, "is not valid UTF-8; give it in that encoding") from None
    return text


def text_or_input(name: str, text: str) -> str:
    """The text of an argument, or of standard input where it is `-`. Raises BadValue where that is no UTF-8."""
    if text != "-":
        return utf8(name, text)
    try:
        return utf8("standard input", sys.stdin.read())
    except UnicodeDecodeError as error:
        raise BadValue("standard input", f"is not valid UTF-8 (byte {error.start}); give it in that encoding") from None


def reason(error: OSError, known: str = "") -> str:
    """Why the system refused, and of which file unless that is `known` to whom it is told."""
    why = error.strerror or str(error)
    return why if error.filename is None or str(error.filename) == known else f"{why}: {error.filename}"
