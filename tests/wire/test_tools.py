"""Tools, their results and content parts, in OpenAI's shape."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edged.core.prompt import Tool, ToolCall, Turn
from edged.wire import prompts
from edged.wire.prompts import BadPrompt, Prompt
from edged.wire.tools import MAX_TOOLS, MAX_TOOLS_BYTES

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Now.", "parameters": SCHEMA}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
ASKED = {"role": "user", "content": "Rome?"}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "21 °C"}


def parse(**keys: Any) -> Prompt:
    return prompts.parse_prompt(json.dumps(keys).encode(), None, 10_000_000, lambda: "made-up")


def refusal(**keys: Any) -> str:
    with pytest.raises(BadPrompt) as caught:
        parse(**keys)
    return str(caught.value)


def test_tools_are_read_in_openais_shape() -> None:
    text = json.dumps(SCHEMA, separators=(",", ":"))
    assert (Tool("weather", "Now.", text),) == parse(prompt="x", tools=[WEATHER]).tools
    (plain,) = parse(prompt="x", tools=[{"function": {"name": "f", "strict": True}}]).tools
    assert ("f", "", "object") == (plain.name, plain.description, json.loads(plain.parameters)["type"])


def test_a_choice_is_a_word_or_a_function() -> None:
    assert ("auto", None) == parse(prompt="x", tools=[WEATHER]).tool_choice
    assert ("required", None) == parse(prompt="x", tools=[WEATHER], tool_choice="required").tool_choice
    named = {"type": "function", "function": {"name": "weather"}}
    assert ("required", "weather") == parse(prompt="x", tools=[WEATHER], tool_choice=named).tool_choice


def test_calls_and_results_are_turns() -> None:
    """`content: null` beside calls is how OpenAI writes them."""
    assert (
        Turn("user", "Rome?"),
        Turn("assistant", "", (ToolCall("c1", "weather", '{"city": "Rome"}'),)),
        Turn("tool", "21 °C", (), "c1"),
    ) == parse(messages=[ASKED, CALLED, RESULT]).turns


def test_text_parts_are_joined_and_images_are_refused_by_name() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert (Turn("user", "a\nb"),) == parse(messages=[{"role": "user", "content": parts}]).turns
    image = {"type": "image_url", "image_url": {"url": "data:…"}}
    says = refusal(messages=[{"role": "user", "content": [*parts, image]}])
    assert "messages[0].content[2]: a part of the type 'image_url' cannot be used: this device reads text alone" == says


def tool(name: str = "f", **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (
            {"tools": [tool(f"f{i}", type="object") for i in range(1000)]},
            f"tools: must have at most {MAX_TOOLS} entries",
        ),
        ({"tools": [WEATHER, WEATHER]}, "tools: must not have two functions of the same name"),
        ({"tools": [tool(type="string")]}, "tools[0].function.parameters.type: must be object"),
        ({"tools": [tool(type="object", minimun=1)]}, "tools[0].function.parameters.minimun: this keyword cannot be"),
        (
            {"tools": [tool(type="object", properties={"a": {"$ref": "https://x"}})]},
            "tools[0].function.parameters.prop",
        ),
        (
            {"tools": [tool(f"f{i}", type="object", description="x" * 9000) for i in range(9)]},
            f"tools: have 81306 bytes of descriptions and parameters, above {MAX_TOOLS_BYTES}",
        ),
        ({"tools": [{"type": "retrieval", "function": {"name": "f"}}]}, "tools[0].type: must be one of function"),
        ({"tool_choice": "required"}, "tool_choice: wants a call, but there are no tools"),
        (
            {"tools": [WEATHER], "tool_choice": {"function": {"name": "g"}}},
            "tool_choice.function.name: there is no tool 'g'",
        ),
        ({"tools": [WEATHER], "format": {"type": "regex", "pattern": "a"}}, "format: cannot be combined with tools"),
        ({"reasoning": "off", "reasoning_tokens": 5}, "reasoning_tokens: cannot be combined with reasoning off"),
        ({"reasoning_tokens": 0}, "reasoning_tokens: must be"),
        ({"logprobs": 10**6}, "logprobs: must be"),
    ],
)
def test_what_cannot_be_used_is_named(keys: dict[str, Any], says: str) -> None:
    assert refusal(prompt="x", **keys).startswith(says)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([ASKED, RESULT], "messages[1].tool_call_id: no earlier turn of the assistant has a call of this id"),
        ([ASKED, {**ASKED, "tool_calls": [CALL]}], "messages[1].tool_calls: only a turn of the assistant has calls"),
        (
            [ASKED, CALLED, {**RESULT, "role": "user"}],
            "messages[2].tool_call_id: belongs to each turn of the role tool",
        ),
        ([{"role": "assistant", "content": None}], "messages[0].content: must not be null"),
        (
            [{**CALLED, "tool_calls": [{**CALL, "function": {"name": "weather", "arguments": "[1]"}}]}],
            "messages[0].tool_calls[0].function.arguments: must be a JSON object as text, not ",
        ),
        (
            [{**CALLED, "tool_calls": [{**CALL, "function": {"name": "weather", "arguments": '{"a":'}}]}],
            "messages[0].tool_calls[0].function.arguments: must be a JSON object as text: it is not valid JSON",
        ),
    ],
)
def test_turns_that_do_not_fit_are_named(messages: list[dict[str, Any]], says: str) -> None:
    assert refusal(messages=messages).startswith(says)
