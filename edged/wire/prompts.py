"""Incoming prompts and cancels: bytes → types. What cannot be read becomes `BadPrompt`, with an id to answer under."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

import msgspec

from edged.config import checks
from edged.config.keys import SAMPLING
from edged.core.errors import BadValue, EdgedError
from edged.core.prompt import MAX_TOP_LOGPROBS, Format, Reasoning, Tool, ToolChoice, Turn
from edged.wire import strict_json
from edged.wire.formats import check_format
from edged.wire.tools import any_text, check_tool_choice, check_tools, check_turns
from edged.wire.topics import PROMPT_ID

MAX_TEXTS = 32  # of `embed`
_SEARCHED = 4096  # bytes in which the id of a broken body is looked for
_TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{1,9})?Z\Z", re.ASCII)
# The lone quote begins a text that nothing ends: it is tried last, so every byte is read at most twice.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|["{}\[\]]', re.DOTALL)
_FIRST_ID = re.compile(r'\s*:\s*("(?:[^"\\\x00-\x1f]|\\.)*")')


class Prompt(msgspec.Struct, frozen=True):
    """A prompt as it was sent. `sampling` holds only what the prompt sets itself. `raw`: a text for no template, in
    place of `turns`. `continue_last`: the last turn is continued.

    `stream` None: not given, the way it arrived decides. `deadline_ms` counts from arrival, `expires_at` is Unix time.
    `supersede`: this prompt replaces the requester's older waiting prompts with the same key.
    `logprobs` None: not asked for; else how many of the most likely tokens are reported in place of each.
    """

    id: str
    named: bool
    turns: tuple[Turn, ...]
    sampling: dict[str, Any]
    raw: str | None = None
    continue_last: bool = False
    format: Format | None = None
    stream: bool | None = None
    priority: int | None = None
    deadline_ms: int | None = None
    expires_at: float | None = None
    logprobs: int | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: tuple[ToolChoice, str | None] = ("auto", None)
    reasoning: Reasoning = "auto"
    reasoning_tokens: int | None = None
    embed: tuple[str, ...] = ()
    supersede: str | None = None


class BadPrompt(EdgedError):
    """A body that cannot be a prompt. `id` is the one to answer under."""

    def __init__(self, prompt_id: str, message: str) -> None:
        super().__init__(message)
        self.id = prompt_id


class Cancel(msgspec.Struct, frozen=True):
    """`id` None: all prompts of that requester."""

    id: str | None


def parse_prompt(payload: bytes, content_type: str | None, cap: int, make_id: Callable[[], str]) -> Prompt:
    """A payload of at most `cap` bytes → a prompt. Raises BadPrompt with a sentence for the sender."""
    is_json = payload.lstrip(b" \t\r\n")[:1] == b"{"
    is_json = is_json or (content_type or "").split(";")[0].strip().lower() == "application/json"
    document: dict[str, Any] | None = None
    try:
        if len(payload) > cap:
            raise BadValue("", f"the payload has {len(payload)} bytes, above limits.prompt_bytes ({cap}); send less")
        if not is_json:
            return _plain(payload, make_id())
        document = _readable(payload)
        return _from_document(document, make_id)
    except BadValue as error:
        found = _own_id(document) if document is not None else _first_id(payload) if is_json else None
        raise BadPrompt(found or make_id(), str(error)) from None


def id_of(payload: bytes, cap: int, make_id: Callable[[], str]) -> str:
    """The id to answer under, of a body that is refused unread; a made-up one where none is found."""
    try:
        found = _own_id(_readable(payload)) if len(payload) <= cap else _first_id(payload)
    except BadValue:
        found = _first_id(payload)
    return found or make_id()


def _plain(payload: bytes, made_id: str) -> Prompt:
    try:
        text = strict_json.utf8(payload)
    except BadValue as error:
        raise BadValue("", f"the payload {error.sentence}") from None
    if not text.strip():
        raise BadValue("prompt", "is empty; send the text of a prompt")
    return Prompt(id=made_id, named=False, turns=(Turn("user", text),), sampling={})


def _own_id(document: dict[str, Any]) -> str | None:
    """The id of a body that could be read, where it is a valid one."""
    found = document.get("id")
    return found if isinstance(found, str) and PROMPT_ID.match(found) else None


def _readable(payload: bytes) -> dict[str, Any]:
    try:
        document = strict_json.loads(payload)
    except BadValue as error:
        raise BadValue("", f"the payload {error.sentence}") from None
    if not isinstance(document, dict):
        raise BadValue("", f"the payload must be one JSON object, not {checks.shown(document)}")
    return document


def _not_blank(path: str, value: object) -> str:
    text = any_text(path, value)
    if not text.strip():
        raise BadValue(path, "is empty; send the text of a prompt")
    return text


def timestamp(path: str, value: object) -> float:
    """RFC 3339 text in UTC (`2026-11-24T08:00:00.000Z`) → Unix time. Raises BadValue."""
    match = _TIMESTAMP.match(value) if isinstance(value, str) else None
    try:
        if match is None:
            raise ValueError
        moment = datetime.strptime(match[1] + "Z", "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    except ValueError:
        raise BadValue(path, f"must be a UTC time such as 2026-11-24T08:00:00Z, not {checks.shown(value)}") from None
    return moment.timestamp() + float(match[2] or 0)


_PROMPT_KEYS: dict[str, checks.Check] = {
    "id": checks.text(high=128, pattern=PROMPT_ID, like="1 to 128 printable ASCII characters without / + # and space"),
    "prompt": _not_blank,
    "messages": check_turns,
    "system": any_text,
    "raw": checks.boolean,
    "continue": checks.boolean,
    **SAMPLING,
    "stream": checks.boolean,
    "priority": checks.integer(0, 9),
    "deadline_ms": checks.integer(1),
    "expires_at": timestamp,
    "format": check_format,
    "tools": check_tools,
    "tool_choice": check_tool_choice,
    "reasoning": checks.one_of("auto", "off", "show"),
    "reasoning_tokens": checks.integer(1, 1_000_000),
    "embed": checks.list_of(_not_blank, high=MAX_TEXTS),
    "logprobs": checks.integer(0, MAX_TOP_LOGPROBS),
    "supersede": checks.text(high=128),
    "model": checks.not_yet("choose a model per prompt (model)"),
    "privacy": checks.not_yet("take privacy marks"),
}


def _from_document(document: dict[str, Any], make_id: Callable[[], str]) -> Prompt:
    checked = checks.record("", document, _PROMPT_KEYS)
    if "embed" in checked:
        return _for_vectors(checked, make_id)
    if ("prompt" in checked) == ("messages" in checked):
        found = "both are there" if "prompt" in checked else "neither is there"
        raise BadValue("prompt", f"give exactly one of prompt and messages; {found}")
    turns = checked.get("messages") or (Turn("user", checked["prompt"]),)
    raw, continued = checked.get("raw", False), checked.get("continue", False)
    if raw:
        _check_raw(checked)
    if continued and turns[-1].role != "assistant":
        raise BadValue("continue", "needs messages whose last one is the assistant's, which is continued")
    if "format" in checked and checked.get("stop"):
        raise BadValue("stop", "cannot be combined with format, which determines where the output ends; leave one out")
    _check_tools_and_reasoning(checked)
    if "system" in checked:
        turns = (Turn("system", checked["system"]), *turns)
    return Prompt(
        id=checked.get("id") or make_id(),
        named="id" in checked,
        turns=() if raw else turns,
        raw=checked["prompt"] if raw else None,
        continue_last=continued,
        sampling={key: checked[key] for key in SAMPLING if key in checked},
        format=checked.get("format"),
        stream=checked.get("stream"),
        priority=checked.get("priority"),
        deadline_ms=checked.get("deadline_ms"),
        expires_at=checked.get("expires_at"),
        logprobs=checked.get("logprobs"),
        tools=checked.get("tools", ()),
        tool_choice=checked.get("tool_choice", ("auto", None)),
        reasoning=checked.get("reasoning", "auto"),
        reasoning_tokens=checked.get("reasoning_tokens"),
        supersede=checked.get("supersede"),
    )


def _check_raw(checked: Mapping[str, Any]) -> None:
    """Raises BadValue for keys that only a chat template can use."""
    for key in ("messages", "system", "continue", "tools"):
        if checked.get(key):
            raise BadValue("raw", f"applies no chat template, so there can be no {key} beside it; leave one out")


def _for_vectors(checked: dict[str, Any], make_id: Callable[[], str]) -> Prompt:
    """Texts whose vectors are wanted. Raises BadValue for keys of a prompt that would have no effect."""
    if not checked["embed"]:
        raise BadValue("embed", "is empty; give at least one text")
    allowed = ("id", "embed", "stream", "priority", "deadline_ms", "expires_at", "supersede")
    if other := next((key for key in checked if key not in allowed), None):
        raise BadValue(other, "cannot be combined with embed; leave one out")
    return Prompt(
        id=checked.get("id") or make_id(),
        named="id" in checked,
        turns=(),
        sampling={},
        stream=checked.get("stream"),
        priority=checked.get("priority"),
        deadline_ms=checked.get("deadline_ms"),
        expires_at=checked.get("expires_at"),
        embed=checked["embed"],
        supersede=checked.get("supersede"),
    )


def _check_tools_and_reasoning(checked: dict[str, Any]) -> None:
    """Raises BadValue where keys contradict each other."""
    choice, name = checked.get("tool_choice", ("auto", None))
    tools = checked.get("tools", ())
    if choice == "required" and not tools:
        raise BadValue("tool_choice", "wants a call, but there are no tools; give tools, too")
    if name is not None and name not in {tool.name for tool in tools}:
        raise BadValue("tool_choice.function.name", f"there is no tool {checks.shown(name)}")
    if tools and choice != "none" and "format" in checked:
        raise BadValue("format", "cannot be combined with tools; leave one out, or set tool_choice to none")
    if checked.get("reasoning") == "off" and "reasoning_tokens" in checked:
        raise BadValue("reasoning_tokens", "cannot be combined with reasoning off; leave one out")


def _first_id(payload: bytes) -> str | None:
    """The first top-level string `id` in the first 4 KB of a body that does not parse, if it is a valid id.

    Takes time in proportion to what is searched.
    """
    source = payload[:_SEARCHED].decode("utf-8", "replace")
    depth = 0
    for token in _TOKEN.finditer(source):
        if token[0] in "{[":
            depth += 1
        elif token[0] in "}]":
            depth -= 1
        elif token[0] == '"':
            return None  # this text does not end, and so none that begins after it ends either
        elif depth == 1 and token[0] == '"id"' and (value := _FIRST_ID.match(source, token.end())):
            try:
                found = json.loads(value[1])
            except ValueError:
                return None
            return found if PROMPT_ID.match(found) else None
    return None


def parse_cancel(payload: bytes) -> Cancel:
    """`{"id":…}` or `{"all":true}`. Raises BadValue."""
    if len(payload) > _SEARCHED:
        raise BadValue("", f"a cancel has {len(payload)} bytes, above {_SEARCHED}")
    known = {"id": _PROMPT_KEYS["id"], "all": checks.boolean}
    checked = checks.record("", _readable(payload), known)
    if len(checked) != 1 or checked.get("all") is False:
        raise BadValue("", 'a cancel is {"id":"…"} or {"all":true}')
    return Cancel(checked.get("id"))
