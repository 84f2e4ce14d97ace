"""Ollama's turns with tools in the shape of a device."""

from __future__ import annotations

from typing import Any

import pytest

from edged.core.errors import BadValue
from edged.serve.ollama_turns import turns_of

CALL: dict[str, Any] = {"function": {"name": "weather", "arguments": {"city": "Rome"}}}
OTHER: dict[str, Any] = {"id": "given", "function": {"name": "time", "arguments": "{}"}}


def test_calls_get_ids_and_results_find_theirs() -> None:
    turns = turns_of([
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "thinking": "Hm", "tool_calls": [CALL, OTHER]},
        {"role": "tool", "tool_name": "time", "content": "noon"},
        {"role": "tool", "content": "21"},
    ])  # fmt: skip
    calls = turns[1]["tool_calls"]
    assert ["call1x0", "given"] == [call["id"] for call in calls]
    assert '{"city": "Rome"}' == calls[0]["function"]["arguments"]
    assert ["given", "call1x0"] == [turn["tool_call_id"] for turn in turns[2:]]
    assert "thinking" not in turns[1]


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("x", "must be an object"),
        ({"role": "user", "content": "x", "images": ["a"]}, "not supported"),
        ({"role": "assistant", "tool_calls": {}}, "must be a list"),
        ({"role": "assistant", "tool_calls": [{}]}, "must be an object"),
        ({"role": "tool", "content": "x"}, "no earlier message calls"),
    ],
)
def test_another_shape_is_refused(message: Any, says: str) -> None:
    with pytest.raises(BadValue, match=says):
        turns_of([message])
