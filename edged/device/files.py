"""Small files of /proc and /sys: read whole, bounded and strictly, or not at all."""

from __future__ import annotations

import os
import re

_INTEGER = re.compile(r"-?[0-9]{1,19}\Z")
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?\Z")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
NAME_LENGTH = 24


class GarbageError(ValueError):
    """A sensor's file does not hold what the kernel's documentation says."""


def read_head(path: str, limit: int) -> str:
    """At most `limit` bytes from the start of a file, as text. Raises OSError, or GarbageError if that is not UTF-8."""
    data = _read(path, limit)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data" and len(data) == limit:  # cut within a character
            return data[: error.start].decode()
        raise GarbageError(f"{path} is not text") from None


def read_text(path: str, limit: int = 4096) -> str:
    """The whole of a file that has no reason to be larger than `limit` bytes. Raises OSError or GarbageError."""
    data = _read(path, limit + 1)
    if len(data) > limit:
        raise GarbageError(f"{path} is larger than {limit} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise GarbageError(f"{path} is not text") from None


def read_int(path: str, low: int, high: int) -> int:
    """A file with one decimal integer in `low` … `high`. Raises OSError or GarbageError."""
    return integer(read_text(path, 256).strip(), low, high)


def integer(text: str, low: int, high: int) -> int:
    """A decimal integer in `low` … `high`, else GarbageError. Accepts nothing else that `int` would."""
    if not _INTEGER.match(text) or not low <= int(text) <= high:
        raise GarbageError(f"{text[:32]!r} is not an integer from {low} to {high}")
    return int(text)


def number(text: str) -> float:
    """A decimal number that is not negative, else GarbageError."""
    if not _NUMBER.match(text):
        raise GarbageError(f"{text[:32]!r} is not a number")
    return float(text)


def plain_name(text: str) -> str:
    """A name from the kernel made usable as a key: ASCII letters, digits, `_.-`, at most 24 characters."""
    return _UNSAFE.sub("_", text.strip()).strip("_")[:NAME_LENGTH] or "unnamed"


def _read(path: str, limit: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while len(data) < limit and (part := os.read(descriptor, limit - len(data))):
            data += part
        return data
    finally:
        os.close(descriptor)
