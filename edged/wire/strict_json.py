"""JSON as the contract reads it: strict UTF-8, bounded depth, no duplicate keys, NaN, overflow or lone surrogates.

`json` of the standard library parses (RFC 8259); the checks around it are the contract's.
"""

from __future__ import annotations

import json
import math
import re
from array import array
from itertools import accumulate
from typing import Any

from edged.core.errors import BadValue

MAX_DEPTH = 32
_MAX_DIGITS = 400  # longer whole numbers cost quadratic time to parse and fit no key
# Brackets as steps of the depth, as signed bytes; beside them only quotes matter.
_STEPS = bytes.maketrans(b"{[}]", b"\x01\x01\xff\xff")
_NO_MARKS = bytes(byte for byte in range(256) if byte not in b'"{}[]')
_BLOCK = 65536
_SURROGATE = re.compile("[\ud800-\udfff]")


def loads(payload: bytes) -> Any:
    """The value of a JSON text. Raises BadValue with an empty path and a sentence for the sender."""
    source = utf8(payload)
    _check_depth(payload)
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


def _check_depth(payload: bytes) -> None:
    """Raises BadValue where brackets outside texts are nested too deeply. Of a body that is no JSON the verdict holds
    up to its first fault, as far as a parser gets.

    No Python runs for each byte: a body of megabytes takes some milliseconds.
    """
    marks = payload.replace(b"\\\\", b"").replace(b'\\"', b"").translate(_STEPS, _NO_MARKS)
    depth, inside = 0, 0
    for start in range(0, len(marks), _BLOCK):
        pieces = marks[start : start + _BLOCK].split(b'"')
        steps = array("b", b"".join(pieces[inside::2]))
        inside ^= (len(pieces) - 1) % 2
        if steps:
            depths = list(accumulate(steps, initial=depth))
            if max(depths) > MAX_DEPTH:
                raise BadValue("", f"is nested deeper than {MAX_DEPTH} levels")
            depth = depths[-1]


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
