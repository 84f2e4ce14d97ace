"""Checks of single values, shared by the config file, config layers and prompts.

A check takes `(path, value)` and returns the value as the program uses it, or raises `BadValue` with a sentence that
says what is allowed. Values come from JSON or YAML: text, int, float, bool, list, dict or None.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from edged.core.errors import BadValue

Check = Callable[[str, object], Any]

MAX_INTEGER = 2**53 - 1  # the largest integer that every JSON reader keeps exactly
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_SURROGATE = re.compile("[\ud800-\udfff]")

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d)\Z", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KB|MB|GB|KiB|MiB|GiB)\Z", re.ASCII)
_BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def shown(value: object) -> str:
    """A value as an error message quotes it: short, on one line, control characters escaped."""
    if isinstance(value, (dict, list)):
        return "{…}" if isinstance(value, dict) else "[…]"
    if isinstance(value, int) and abs(value) >= 10**40:
        return "a very large number"  # Python itself refuses to spell out those beyond 4,300 digits
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean "x"?)` for the closest known word, or nothing."""
    close = difflib.get_close_matches(word[:64], list(known), n=1, cutoff=0.6)
    return f' (did you mean "{close[0]}"?)' if close else ""


def integer(low: int, high: int = MAX_INTEGER) -> Check:
    """A whole number, `low` ≤ value ≤ `high`; booleans are not numbers."""

    def check(path: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadValue(path, f"must be a whole number, not {shown(value)}")
        if not low <= value <= high:
            raise BadValue(path, f"must be between {low} and {high}, not {shown(value)}")
        return value

    return check


def number(low: float, high: float) -> Check:
    """A finite number, `low` ≤ value ≤ `high`; booleans are not numbers."""

    def check(path: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise BadValue(path, f"must be a number, not {shown(value)}")
        if not (math.isfinite(value) if isinstance(value, float) else True) or not low <= value <= high:
            raise BadValue(path, f"must be between {low:g} and {high:g}, not {shown(value)}")
        return float(value)

    return check


def boolean(path: str, value: object) -> bool:
    """`true` or `false`."""
    if not isinstance(value, bool):
        raise BadValue(path, f"must be true or false, not {shown(value)}")
    return value


def text(*, low: int = 1, high: int = 65536, pattern: re.Pattern[str] | None = None, like: str = "") -> Check:
    """Text of `low` to `high` characters, no NUL or lone surrogate; `pattern` must match, `like` describes it."""

    def check(path: str, value: object) -> str:
        found = _whole(path, value)
        if not low <= len(found) <= high:
            raise BadValue(path, f"must have {low} to {high} characters, not {len(found)}")
        if "\0" in found:
            raise BadValue(path, "must not contain a NUL character")
        if pattern is not None and not pattern.match(found):
            raise BadValue(path, f"must be {like or pattern.pattern}, not {shown(found)}")
        return found

    return check


def not_empty(path: str, value: object) -> str:
    """Text of any characters, not empty. Its length is bounded by what carries it (a payload, a file)."""
    found = _whole(path, value)
    if not found:
        raise BadValue(path, "must not be empty")
    return found


def _whole(path: str, value: object) -> str:
    if not isinstance(value, str):
        hint = "; put it in quotes" if isinstance(value, (int, float)) else ""
        raise BadValue(path, f"must be text, not {shown(value)}{hint}")
    if _SURROGATE.search(value):
        raise BadValue(path, "must be text, not half a character (a lone surrogate)")
    return value


def one_of(*allowed: str | int) -> Check:
    """One of the given texts; a number that YAML reads as such (`5`) is accepted as its text."""

    def check(path: str, value: object) -> str:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        spelled = value if isinstance(value, str) else shown(value) if is_number else None
        known = [str(text) for text in allowed]
        if spelled not in known:
            suggestion = nearest(spelled, known) if spelled else ""
            raise BadValue(path, f"must be one of {', '.join(known)}, not {shown(value)}{suggestion}")
        return spelled

    return check


def duration(low: float, high: float) -> Check:
    """A time as people write it (`500ms`, `10s`, `5m`, `24h`, `7d`); gives seconds."""

    def check(path: str, value: object) -> float:
        match = _DURATION.match(value) if isinstance(value, str) and len(value) <= 32 else None
        if match is None:
            raise BadValue(path, f"must be a duration such as 10s, 5m or 24h, not {shown(value)}")
        seconds = float(match[1]) * _SECONDS[match[2]]
        if not low <= seconds <= high:
            raise BadValue(path, f"must be between {show_duration(low)} and {show_duration(high)}, not {shown(value)}")
        return seconds

    return check


def duration_or(word: str, low: float, high: float) -> Check:
    """A time as people write it, in seconds, or the given word (which gives None)."""
    seconds = duration(low, high)

    def check(path: str, value: object) -> float | None:
        if value == word:
            return None
        if isinstance(value, str) and not value[:1].isdecimal():
            raise BadValue(path, f"must be {word} or a duration such as 10s, 5m or 24h, not {shown(value)}")
        return float(seconds(path, value))

    return check


def size(low: int, high: int) -> Check:
    """A number of bytes as people write it (`64KB` = 64,000, `1MiB` = 1,048,576); gives bytes."""

    def check(path: str, value: object) -> int:
        match = _SIZE.match(value) if isinstance(value, str) and len(value) <= 32 else None
        if match is None:
            raise BadValue(path, f"must be a size such as 64KB or 1MB, not {shown(value)}")
        count = int(float(match[1]) * _BYTES[match[2]])
        if not low <= count <= high:
            raise BadValue(path, f"must be between {show_size(low)} and {show_size(high)}, not {shown(value)}")
        return count

    return check


def integer_or(word: str, low: int, high: int) -> Check:
    """A whole number or the given word (which gives None)."""
    whole = integer(low, high)

    def check(path: str, value: object) -> int | None:
        if value == word:
            return None
        if isinstance(value, str):
            raise BadValue(path, f"must be {word} or a whole number, not {shown(value)}")
        return int(whole(path, value))

    return check


def list_of(item: Check, *, high: int, distinct: bool = False) -> Check:
    """A list of at most `high` items."""

    def check(path: str, value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise BadValue(path, f"must be a list, not {shown(value)}")
        if len(value) > high:
            raise BadValue(path, f"must have at most {high} entries, not {len(value)}")
        items = tuple(item(f"{path}[{i}]", entry) for i, entry in enumerate(value))
        if distinct and len(set(items)) != len(items):
            raise BadValue(path, "must not name the same entry twice")
        return items

    return check


def not_yet(what: str, *, allowed: object = None, kind: Check | None = None) -> Check:
    """A reserved key: any value but `allowed` is refused with "this version does not … yet".

    `kind` checks first that the value has the type which the key will have.
    """

    def check(path: str, value: object) -> object:
        if kind is not None:
            kind(path, value)
        if type(value) is not type(allowed) or value != allowed:  # 0 == False
            raise BadValue(path, f"this version does not {what} yet")
        return value

    return check


def record(path: str, value: object, known: Mapping[str, Check], required: Iterable[str] = ()) -> dict[str, Any]:
    """A mapping whose keys are all known; gives the checked values of the keys that are there."""
    if not isinstance(value, dict):
        raise BadValue(path, f"must be a mapping, not {shown(value)}")
    checked: dict[str, Any] = {}
    for key, entry in value.items():
        inside = f"{path}.{key}" if path else str(key)
        if not isinstance(key, str) or key not in known:
            spelled = key if isinstance(key, str) and len(key) <= 64 and key.isprintable() else shown(key)
            where = f"{path}.{spelled}" if path else spelled
            raise BadValue(where, f"unknown key{nearest(str(key), known)}")
        if entry is None:
            raise BadValue(inside, "must not be null; leave the key out instead")
        checked[key] = known[key](inside, entry)
    for key in required:
        if key not in checked:
            raise BadValue(f"{path}.{key}" if path else key, "is required")
    return checked


def show_duration(seconds: float) -> str:
    """Seconds as a person would write them in the config file: `10s`, `24h`."""
    if seconds == 0:
        return "0s"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if seconds >= length and (seconds / length).is_integer():
            return f"{int(seconds / length)}{unit}"
    return f"{round(seconds * 1000)}ms" if seconds < 1 or not seconds.is_integer() else f"{int(seconds)}s"


def show_size(count: int) -> str:
    """Bytes as a person would write them in the config file: `64KB`."""
    for unit in ("GB", "MB", "KB"):
        if count >= _BYTES[unit] and count % _BYTES[unit] == 0:
            return f"{count // _BYTES[unit]}{unit}"
    return f"{count}B"
