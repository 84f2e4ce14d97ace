"""JSON as the contract reads it: strict UTF-8, bounded depth, no duplicate keys, NaN, overflow or lone surrogates.

`json` of the standard library parses (RFC 8259); the checks around it are the contract's.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from edged.core.errors import BadValue

MAX_DEPTH = 32
_MAX_DIGITS = 400  # longer whole numbers cost quadratic time to parse and fit no key
_SURROGATE = re.compile("[\ud800-\udfff]")


def loads(payload: bytes) -> Any:
    """The value of a JSON text. Raises BadValue with an empty path and a sentence for the sender."""
    source = utf8(payload)
    _check_depth(source)
    try:
        value = json.loads(
            source, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_int
        )
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")
        raise BadValue("", f"is not valid JSON: {what} at character {error.pos}") from None
    if "\\u" in source:
        _check_surrogates(value)
    return value


def dumps(value: Any) -> bytes:
    """Compact UTF-8 JSON. NaN and infinity raise ValueError."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def utf8(payload: bytes) -> str:
    """The payload as text; a byte order mark is not text. Raises BadValue."""
    try:
        return payload.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadValue("", f"is not valid UTF-8 (byte {error.start})") from None


def _check_depth(source: str) -> None:
    depth, inside, escaped = 0, False, False
    for character in source:
        if inside:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                inside = False
        elif character == '"':
            inside = True
        elif character in "{[":
            depth += 1
            if depth > MAX_DEPTH:
                raise BadValue("", f"is nested deeper than {MAX_DEPTH} levels")
        elif character in "}]":
            depth -= 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise BadValue("", f"has the key {json.dumps(key[:64])} twice")
            seen.add(key)
    return value


def _constant(word: str) -> Any:
    raise BadValue("", f"contains {word}, which is not JSON")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise BadValue("", f"contains the number {digits[:32]}, which is too large")
    return value


def _int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise BadValue("", f"contains a whole number of {len(digits)} digits, which is too large")
    return int(digits)


def _check_surrogates(value: Any) -> None:
    if isinstance(value, str):
        if _SURROGATE.search(value):
            raise BadValue("", "contains a lone surrogate escape, which is not text")
    elif isinstance(value, dict):
        for key, entry in value.items():
            _check_surrogates(key)
            _check_surrogates(entry)
    elif isinstance(value, list):
        for entry in value:
            _check_surrogates(entry)
