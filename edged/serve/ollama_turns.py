"""Turns of Ollama's chat as those of a device, which have OpenAI's shape.

There a call has an object as arguments and often no id, and its result names the function instead of the call.
"""

from __future__ import annotations

import json
from typing import Any, Final

from edged.core.errors import BadValue

NOT_TURNS: Final = frozenset({"images", "thinking", "tool_calls", "tool_name", "name", "tool_call_id"})


def turns_of(messages: list[Any]) -> list[dict[str, Any]]:
    """The turns, with ids of their own for calls that have none. Raises BadValue."""
    turns = []
    open_calls: list[tuple[str, str]] = []  # id and function of the calls that have no result yet
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise BadValue(f"messages[{index}]", "must be an object with role and content")
        if message.get("images"):
            raise BadValue(f"messages[{index}].images", "are not supported by devices")
        turn = {key: value for key, value in message.items() if key not in NOT_TURNS and value is not None}
        if calls := _calls(index, message.get("tool_calls")):
            turn["tool_calls"] = calls
            open_calls += [(call["id"], call["function"]["name"]) for call in calls]
        if turn.get("role") == "tool":
            turn["tool_call_id"] = _called(index, message, open_calls)
        turns.append(turn)
    return turns


def _calls(index: int, calls: object) -> list[dict[str, Any]]:
    if calls is None:
        return []
    if not isinstance(calls, list):
        raise BadValue(f"messages[{index}].tool_calls", "must be a list")
    shaped = []
    for number, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise BadValue(f"messages[{index}].tool_calls[{number}].function", "must be an object")
        arguments = function.get("arguments", {})
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        called = {"name": function.get("name"), "arguments": text}
        shaped.append({"id": call.get("id") or f"call{index}x{number}", "type": "function", "function": called})
    return shaped


def _called(index: int, message: dict[str, Any], open_calls: list[tuple[str, str]]) -> str:
    """The id of the call that a result is of: the one it names, else the oldest call of its function, else the oldest.

    The call leaves `open_calls`.
    """
    wanted = message.get("tool_call_id")
    name = message.get("tool_name", message.get("name"))
    if isinstance(wanted, str):
        return wanted
    for call_id, function in open_calls:
        if name is None or function == name:
            open_calls.remove((call_id, function))
            return call_id
    raise BadValue(f"messages[{index}]", "is the result of a tool that no earlier message calls")
