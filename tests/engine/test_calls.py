"""Calls of tools: a hundred of them in each form are allowed, read back as they were meant, and nothing else is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edged.core.errors import PromptRefused
from edged.core.prompt import Tool
from edged.engine import call_style
from edged.engine.call_style import CallStyle, parse_calls
from edged.engine.constraint import CallGrammar, Constraint, ConstraintError, FormatCompiler
from edged.models.tokenizer.codec import TextCodec
from tests.engine.call_set import CALLS, SCHEMAS, TOOLS
from tests.engine.schema_check import obeys

STYLES = (
    call_style.HERMES,
    call_style.LLAMA,
    call_style.MISTRAL,
    call_style.MISTRAL_NAMED,
    call_style.GRANITE,
    call_style.GEMMA,
    call_style.FUNCTION_GEMMA,
    call_style.GEMMA_4,
)
NAMES = frozenset(SCHEMAS)
NOT_OF_GEMMA = {"book_table", "either"}  # a pattern, and oneOf


def compiled(codec: TextCodec, grammar: CallGrammar) -> Constraint:
    return FormatCompiler(codec).compile(grammar)


def accepts(constraint: Constraint, codec: TextCodec, text: str) -> bool:
    """Whether a text may be written from the beginning to the end."""
    mine = constraint.copy()
    try:
        for token in codec.encode(text, specials=False):
            mine.accept(token)
    except ConstraintError:
        return False
    return mine.satisfied


def spelled(name: str, arguments: dict[str, Any], style: CallStyle, spaces: bool) -> str:
    separators = (", ", ": ") if spaces else (",", ":")
    return style.written([(name, json.dumps(arguments, ensure_ascii=False, separators=separators))])


def test_there_are_a_hundred_calls_and_all_of_them_obey() -> None:
    assert (100, 20) == (len(CALLS), len(SCHEMAS))
    assert all(obeys(json.dumps(arguments), SCHEMAS[name]) for name, arguments in CALLS)


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_a_hundred_calls_are_allowed_and_read(codec: TextCodec, style: CallStyle) -> None:
    """As a whole answer, and after an opening that the model wrote itself."""
    tools = [tool for tool in TOOLS if not style.mark or tool.name not in NOT_OF_GEMMA]
    calls = [one for one in CALLS if not style.mark or (one[0] not in NOT_OF_GEMMA and "<" not in json.dumps(one))]
    whole = compiled(codec, call_style.whole_grammar(style, tools, {}, single=False))
    rest = compiled(codec, call_style.rest_grammar(style, tools, {}))
    for index, (name, arguments) in enumerate(calls):
        text = spelled(name, arguments, style, spaces=index % 2 == 0)
        assert accepts(whole, codec, text), text
        opening = next((opening for opening in style.opens if text.startswith(opening)), "")
        assert accepts(rest, codec, text.removeprefix(opening)), text
        for body in (text, text.removeprefix(opening)):
            (found,) = parse_calls(style, body, NAMES) or [("", "")]
            assert (name, arguments) == (found[0], json.loads(found[1]))


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_a_call_that_does_not_obey_its_schema_cannot_be_written(codec: TextCodec, style: CallStyle) -> None:
    whole = compiled(codec, call_style.whole_grammar(style, TOOLS[:4], {}, single=False))
    good = ("set_light", {"room": "hall", "on": True})
    bad: list[tuple[str, dict[str, Any]]] = [
        ("set_light", {"room": "attic", "on": True}),
        ("set_light", {"room": "hall"}),
        ("set_light", {"room": "hall", "on": True, "level": 101}),
        ("set_light", {"room": "hall", "on": True, "x": 1}),
        ("get_weather", {"room": "hall", "on": True}),
        ("unknown", {}),
    ]
    assert accepts(whole, codec, spelled(*good, style, True))
    assert [] == [one for one in bad if accepts(whole, codec, spelled(*one, style, True))]


@pytest.mark.parametrize(
    ("style", "text"),
    [
        (call_style.HERMES, '<tool_call>{"name": "add", "arguments": {"a": 1}</tool_call>'),
        (call_style.HERMES, '<tool_call>{"name": "add", "arguments": [1]}</tool_call>'),
        (call_style.HERMES, '<tool_call>{"name": "other", "arguments": {}}</tool_call>'),
        (call_style.HERMES, '<tool_call>{"name": "add", "arguments": {"a": 1, "a": 2}}</tool_call>'),
        (call_style.HERMES, '<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>'),
        (call_style.HERMES, '<tool_call>{"name": "add", "arguments": {}} and more</tool_call>'),
        (call_style.HERMES, '{"name": "add"}'),
        (call_style.HERMES, ""),
        (call_style.MISTRAL, '[TOOL_CALLS][{"name": "add", "arguments": {}}'[:-4]),
        (call_style.MISTRAL_NAMED, "[TOOL_CALLS]add"),
        (call_style.LLAMA, '{"name": 5, "parameters": {}}'),
        (call_style.LLAMA, '{"name": "add", "parameters": {"a": 1e999}}'),
    ],
)
def test_what_is_no_call_is_not_read_as_one(style: CallStyle, text: str) -> None:
    assert parse_calls(style, text, {"add"}) is None


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"a": {"type": "string", "pattern": "a"}}, "the keyword pattern"),
        ({"a": {"oneOf": [{"type": "null"}]}}, "a value of any type"),
        ({"a": True}, "a value of any type"),
        ({"a": {"enum": ["<b>"]}}, "a text with <"),
        ({"a": {"const": [1]}}, "a list or an object among its values"),
        ({"a b": {"type": "null"}}, "the key 'a b'"),
        ({"a": {"$ref": "#/$defs/x", "minimum": 1}}, "minimum beside $ref"),
    ],
)
def test_what_gemmas_form_cannot_express_is_refused(schema: dict[str, Any], says: str) -> None:
    tool = Tool("f", "", json.dumps({"type": "object", "properties": schema}))
    with pytest.raises(PromptRefused) as caught:
        call_style.whole_grammar(call_style.GEMMA_4, [tool], {}, single=False)
    assert f"The parameters of f have {says}, which cannot be enforced" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["call:f", "call:f{a:}", "call:f{a:1", "call:f{a:1,a:2}", "call:f{a:<escape>x}", "call:f{a:1 b:2}", "f{}",
             "call:f{a:[1}", "call:f{a:one}"],
)  # fmt: skip
def test_a_malformed_call_of_gemma_is_not_read(text: str) -> None:
    assert parse_calls(call_style.FUNCTION_GEMMA, f"{text}<end_function_call>", {"f"}) is None


def test_several_calls_are_read_in_order() -> None:
    text = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n' * 2
    assert [("add", '{"a": 1}')] * 2 == parse_calls(call_style.HERMES, text, {"add"})
    text = '[TOOL_CALLS] [{"name": "add", "arguments": {}}, {"name": "add", "arguments": {}, "id": "abcdefghi"}]'
    assert [("add", "{}")] * 2 == parse_calls(call_style.MISTRAL, text, {"add"})


def test_ids_are_those_that_every_template_takes_and_repeat() -> None:
    first, second = call_style.tool_calls([("add", "{}"), ("add", "{}")], 1, 9)
    assert first.id != second.id
    assert all(len(call.id) == 9 and call.id.isalnum() for call in (first, second))
    assert first == call_style.tool_calls([("add", "{}")], 1, 9)[0]
