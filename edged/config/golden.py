"""`golden`: a list of prompts that a new model must answer well. Checks, and how one is shown in the file's form.

Patterns are bounded here so that reading one is quick; they are matched where a slow match can be ended.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from edged.config import checks
from edged.core.errors import BadValue
from edged.core.golden import Contains, Expect, Golden, Matches, Obeys
from edged.core.json_schema import unknown_keyword
from edged.core.prompt import Role, Turn

MOST: Final = 32  # entries
MAX_SCHEMA: Final = 16_000  # bytes as compact JSON
MAX_PATTERN: Final = 1_000
_MAX_DEPTH: Final = 16  # of a schema
_IGNORES_CASE: Final = re.compile(r"\(\?[a-zA-Z]*i")
_BEYOND_ASCII: Final = re.compile(r"[^\x00-\x7f]|\\[uUxN]")

_prompt = checks.text(high=16_384)
_expected = checks.text(high=4_096)


def check_golden(path: str, value: object) -> tuple[Golden, ...]:
    """The whole list. Raises BadValue."""
    found: tuple[Golden, ...] = checks.list_of(_entry, high=MOST)(path, value)
    return found


def show(golden: Golden) -> dict[str, Any]:
    """An entry as it would be written in the file."""
    shown: dict[str, Any] = {"messages": [{"role": turn.role, "content": turn.content} for turn in golden.turns]}
    if [turn.role for turn in golden.turns] in (["user"], ["system", "user"]):
        shown = {"prompt": golden.turns[-1].content}
        if len(golden.turns) == 2:
            shown["system"] = golden.turns[0].content
    if golden.expect is not None:
        shown["expect"] = _shown_expect(golden.expect)
    if golden.within is not None:
        shown["within"] = checks.show_duration(golden.within)
    if golden.min_tokens_per_second is not None:
        shown["min_tokens_per_second"] = golden.min_tokens_per_second
    return {**shown, "max_tokens": golden.max_tokens}


def _shown_expect(expect: Expect) -> object:
    match expect:
        case Contains(texts=texts):
            return texts[0] if len(texts) == 1 else list(texts)
        case Matches(pattern=pattern):
            return {"regex": pattern}
        case Obeys(schema=schema):
            return {"schema": json.loads(schema)}


def _entry(path: str, value: object) -> Golden:
    entry = checks.record(path, value, _KEYS)
    if ("prompt" in entry) == ("messages" in entry):
        raise BadValue(path, "needs prompt or messages, one of the two")
    turns: tuple[Turn, ...] = entry.get("messages") or (Turn("user", entry["prompt"]),)
    if "system" in entry:
        turns = (Turn("system", entry["system"]), *turns)
    facts = {key: entry[key] for key in ("max_tokens", "expect", "within", "min_tokens_per_second") if key in entry}
    return Golden(turns, **facts)


def _turn(path: str, value: object) -> Turn:
    roles: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
    turn = checks.record(path, value, {"role": checks.one_of(*roles), "content": _prompt}, ("role", "content"))
    return Turn(roles[turn["role"]], turn["content"])


def _turns(path: str, value: object) -> tuple[Turn, ...]:
    turns: tuple[Turn, ...] = checks.list_of(_turn, high=32)(path, value)
    if not turns:
        raise BadValue(path, "must not be empty")
    return turns


def _expect(path: str, value: object) -> Expect:
    if isinstance(value, list):
        texts: tuple[str, ...] = checks.list_of(_expected, high=64)(path, value)
        if not texts:
            raise BadValue(path, "is empty; give at least one text")
        return Contains(texts)
    if not isinstance(value, dict):
        return Contains((_expected(path, value),))
    if len(value) != 1:
        raise BadValue(path, "must be a text, a list of texts, {regex: …} or {schema: …}")
    found: Expect = next(iter(checks.record(path, value, {"regex": _regex, "schema": _schema}).values()))
    return found


def _regex(path: str, value: object) -> Matches:
    return Matches(_pattern(path, value))


def _pattern(path: str, value: object) -> str:
    pattern: str = checks.text(high=MAX_PATTERN)(path, value)
    if _IGNORES_CASE.search(pattern) and _BEYOND_ASCII.search(pattern):
        raise BadValue(path, "a pattern with (?i) must be plain ASCII without \\u, \\x or \\N; spell out both cases")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError, ValueError) as error:
        raise BadValue(path, f"cannot be read as a regular expression ({error})") from None
    return pattern


def _schema(path: str, value: object) -> Obeys:
    if not isinstance(value, dict):
        raise BadValue(path, f"must be a mapping, not {checks.shown(value)}")
    _check_depth(path, value, 0)
    if unknown := unknown_keyword(value):
        raise BadValue(path, f"{unknown}: this keyword cannot be checked; leave it out")
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError):
        raise BadValue(path, "must be JSON: texts, numbers, true, false, lists and mappings alone") from None
    if (size := len(text.encode())) > MAX_SCHEMA:
        raise BadValue(path, f"has {size} bytes as compact JSON, above {MAX_SCHEMA}; use a smaller one")
    return Obeys(text)


def _check_depth(path: str, value: object, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise BadValue(path, f"is nested deeper than {_MAX_DEPTH} levels")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(path, inner, depth + 1)


_KEYS: Final[dict[str, checks.Check]] = {
    "prompt": _prompt,
    "messages": _turns,
    "system": _prompt,
    "max_tokens": checks.integer(1, 4096),
    "expect": _expect,
    "within": checks.duration(0.1, 3600),
    "min_tokens_per_second": checks.number(0.01, 100_000),
}
