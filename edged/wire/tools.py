"""Tools and chat turns of a prompt, in OpenAI's shape: JSON → types, or BadValue with the path of what is wrong."""

from __future__ import annotations

import re
from typing import Any

from edged.config import checks
from edged.core.errors import BadValue
from edged.core.prompt import JsonSchema, Role, Tool, ToolCall, ToolChoice, Turn
from edged.wire import strict_json
from edged.wire.formats import check_schema

MAX_TOOLS = 64
MAX_TOOLS_BYTES = 32_000  # descriptions and schemas of all tools together, as compact JSON
MAX_TURN_CALLS = 64
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")
_CALL_ID = re.compile(r"[!-~]{1,128}\Z")

_name = checks.text(high=64, pattern=_NAME, like="a function's name: 1 to 64 of A-Z, a-z, 0-9, _, . and -")
_call_id = checks.text(high=128, pattern=_CALL_ID, like="1 to 128 printable ASCII characters without space")


def any_text(path: str, value: object) -> str:
    """A text, which may be empty."""
    if not isinstance(value, str):
        raise BadValue(path, f"must be text, not {checks.shown(value)}")
    return value


# ---- tools ----------------------------------------------------------------------------------------------------------


def check_tools(path: str, value: object) -> tuple[Tool, ...]:
    """A prompt's `tools`. Raises BadValue."""
    tools: tuple[Tool, ...] = checks.list_of(_tool, high=MAX_TOOLS)(path, value)
    if not tools:
        raise BadValue(path, "is empty; give at least one tool, or leave it out")
    if len({tool.name for tool in tools}) != len(tools):
        raise BadValue(path, "must not have two functions of the same name")
    if (size := sum(len(tool.description.encode()) + len(tool.parameters) for tool in tools)) > MAX_TOOLS_BYTES:
        raise BadValue(path, f"have {size} bytes of descriptions and parameters, above {MAX_TOOLS_BYTES}; send fewer")
    return tools


def _tool(path: str, value: object) -> Tool:
    checked = checks.record(path, value, {"type": checks.one_of("function"), "function": _function}, ("function",))
    found: Tool = checked["function"]
    return found


def _function(path: str, value: object) -> Tool:
    known = {"name": _name, "description": any_text, "parameters": _parameters, "strict": checks.boolean}
    checked = checks.record(path, value, known, required=("name",))
    schema = checked.get("parameters") or JsonSchema('{"type":"object","properties":{},"additionalProperties":false}')
    return Tool(checked["name"], checked.get("description", ""), schema.text)


def _parameters(path: str, value: object) -> JsonSchema:
    schema = check_schema(path, value)
    if not isinstance(value, dict) or value.get("type") != "object":
        raise BadValue(f"{path}.type", "must be object: the arguments of a function are a JSON object")
    return schema


def check_tool_choice(path: str, value: object) -> tuple[ToolChoice, str | None]:
    """A prompt's `tool_choice`: what is allowed, and the name of the one function where it is one."""
    if not isinstance(value, dict):
        choices: dict[str, ToolChoice] = {"auto": "auto", "none": "none", "required": "required"}
        return choices[checks.one_of(*choices)(path, value)], None
    function = checks.record(path, value, {"type": checks.one_of("function"), "function": _named}, ("function",))
    return "required", function["function"]


def _named(path: str, value: object) -> str:
    found: str = checks.record(path, value, {"name": _name}, required=("name",))["name"]
    return found


# ---- turns ----------------------------------------------------------------------------------------------------------


def check_turns(path: str, value: object) -> tuple[Turn, ...]:
    """A prompt's `messages`. Raises BadValue."""
    turns: tuple[Turn, ...] = checks.list_of(_turn, high=4096)(path, value)
    if not any(turn.content.strip() or turn.tool_calls for turn in turns):
        raise BadValue(path, "is empty; send at least one turn with text")
    called: set[str] = set()
    for index, turn in enumerate(turns):
        if turn.role == "tool" and turn.tool_call_id not in called:
            raise BadValue(f"{path}[{index}].tool_call_id", "no earlier turn of the assistant has a call of this id")
        called |= {call.id for call in turn.tool_calls}
    return turns


_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


def _turn(path: str, value: object) -> Turn:
    if isinstance(value, dict) and value.get("tool_calls") and value.get("content", "") is None:
        value = {key: entry for key, entry in value.items() if key != "content"}  # as OpenAI writes a call without text
    checked = checks.record(path, value, _TURN, required=("role",))
    role = _ROLES[checked["role"]]
    calls = checked.get("tool_calls", ())
    if "content" not in checked and not calls:
        raise BadValue(f"{path}.content", "is required")
    if calls and role != "assistant":
        raise BadValue(f"{path}.tool_calls", "only a turn of the assistant has calls")
    if ("tool_call_id" in checked) != (role == "tool"):
        raise BadValue(f"{path}.tool_call_id", "belongs to each turn of the role tool, and to no other")
    return Turn(role, checked.get("content", ""), calls, checked.get("tool_call_id", ""))


def _content(path: str, value: object) -> str:
    """A text, or a list of text parts, which are joined by line breaks."""
    if not isinstance(value, list):
        return any_text(path, value)
    return "\n".join(_part(f"{path}[{index}]", part) for index, part in enumerate(value))


def _part(path: str, value: object) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind != "text":
        raise BadValue(path, f"a part of the type {checks.shown(kind)} cannot be used: this device reads text alone")
    checked = checks.record(path, value, {"type": checks.one_of("text"), "text": any_text}, required=("type", "text"))
    found: str = checked["text"]
    return found


def _calls(path: str, value: object) -> tuple[ToolCall, ...]:
    calls: tuple[ToolCall, ...] = checks.list_of(_call, high=MAX_TURN_CALLS)(path, value)
    return calls


def _call(path: str, value: object) -> ToolCall:
    known = {"id": _call_id, "type": checks.one_of("function"), "function": _called}
    checked = checks.record(path, value, known, required=("id", "function"))
    name, arguments = checked["function"]
    return ToolCall(checked["id"], name, arguments)


def _called(path: str, value: object) -> tuple[str, str]:
    checked = checks.record(path, value, {"name": _name, "arguments": _arguments}, required=("name", "arguments"))
    return checked["name"], checked["arguments"]


def _arguments(path: str, value: object) -> str:
    text = any_text(path, value)
    try:
        found: Any = strict_json.loads(text.encode("utf-8", "surrogatepass"))
    except BadValue as error:
        raise BadValue(path, f"must be a JSON object as text: it {error.sentence}") from None
    if not isinstance(found, dict):
        raise BadValue(path, f"must be a JSON object as text, not {checks.shown(found)}")
    return text


_TURN = {
    "role": checks.one_of("system", "user", "assistant", "tool"),
    "content": _content,
    "tool_calls": _calls,
    "tool_call_id": _call_id,
}
