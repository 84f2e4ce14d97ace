"""The `format` of a prompt: every shape, every bound, and no keyword that would be accepted and then ignored."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.core.errors import BadValue
from edged.core.prompt import Choice, Format, JsonSchema, Regex, Request
from edged.wire import formats
from edged.wire.formats import check_format
from edged.wire.prompts import BadPrompt, parse_prompt
from edged.worker import frames


def refusal(value: Any) -> str:
    with pytest.raises(BadValue) as caught:
        check_format("format", value)
    return str(caught.value)


def schema(value: Any) -> dict[str, Any]:
    return {"type": "json_schema", "schema": value}


def test_the_three_kinds() -> None:
    assert Regex("a+") == check_format("format", {"type": "regex", "pattern": "a+"})
    assert Choice(("a", "ab", "東京")) == check_format("format", {"type": "choice", "choices": ["a", "ab", "東京"]})
    wanted = {"type": "object", "properties": {"b": {"const": None}, "a": {"enum": ["ä", 1.5]}}, "title": "t"}
    found = check_format("format", schema(wanted))
    assert isinstance(found, JsonSchema)
    assert ["b", "a"] == list(json.loads(found.text)["properties"])  # the order of the answer's keys
    assert wanted == json.loads(found.text)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("json", "format: must be a mapping"),
        ({}, "format.type: is required: one of json_schema, choice, regex"),
        ({"type": "json"}, "format.type: must be one of json_schema, choice, regex"),
        ({"type": "regex"}, "format.pattern: is required"),
        ({"type": "regex", "pattern": ""}, "format.pattern: must have 1 to"),
        ({"type": "regex", "pattern": 5}, "format.pattern: must be text"),
        ({"type": "regex", "pattern": None}, "format.pattern: must not be null"),
        ({"type": "regex", "pattern": "a\0"}, "format.pattern: must not contain a NUL"),
        ({"type": "regex", "pattern": "a" * 4001}, "format.pattern: must have 1 to 4000"),
        ({"type": "regex", "pattern": "ä" * 2001}, "format.pattern: has 4002 bytes, above 4000"),
        ({"type": "regex", "pattern": "a\\"}, "format.pattern: must not end in a single backslash"),
        ({"type": "regex", "pattern": "a\\\\\\"}, "format.pattern: must not end in a single backslash"),
        ({"type": "regex", "patern": "a"}, 'format.patern: unknown key (did you mean "pattern"?)'),
        ({"type": "regex", "pattern": "a", "flags": "i"}, "format.flags: unknown key"),
        ({"type": "choice", "pattern": "a"}, "format.pattern: unknown key"),
        ({"type": "choice", "choices": []}, "format.choices: is empty"),
        ({"type": "choice", "choices": "ab"}, "format.choices: must be a list"),
        ({"type": "choice", "choices": ["a", ""]}, "format.choices[1]: must have 1 to"),
        ({"type": "choice", "choices": ["a", 5]}, "format.choices[1]: must be text"),
        ({"type": "choice", "choices": ["a", "b", "a"]}, "format.choices: must not name the same entry twice"),
        ({"type": "choice", "choices": [str(n) for n in range(257)]}, "format.choices: must have at most 256"),
        ({"type": "choice", "choices": ["a" * 8000, "b" * 8001]}, "format.choices: have 16001 bytes together"),
        (schema(True), "format.schema: must be a mapping"),
        (schema([]), "format.schema: must be a mapping"),
        (schema({"enum": ["x" * 16_000]}), "format.schema: has 16013 bytes as compact JSON, above 16000"),
        (
            schema({"minLenght": 3}),
            'format.schema.minLenght: this keyword cannot be enforced; leave it out (did you mean "minLength"?)',
        ),
        (schema({"x-guidance": {"lenient": True}}), "format.schema.x-guidance: this keyword cannot"),
        (schema({"properties": {"a": {"not": {}}}}), "format.schema.properties.a.not: this keyword cannot"),
        (schema({"anyOf": [{}, {"uniqueItems": True}]}), "format.schema.anyOf[1].uniqueItems: this keyword"),
        (schema({"items": {"contains": {}}}), "format.schema.items.contains: this keyword"),
        (schema({"additionalProperties": {"if": {}}}), "format.schema.additionalProperties.if: this keyword"),
        (schema({"$defs": {"a": {"nullable": True}}}), "format.schema.$defs.a.nullable: this keyword"),
        (schema({"items": [{}]}), "format.schema.items: must be a mapping"),
        (schema({"anyOf": {}}), "format.schema.anyOf: must be a list"),
        (schema({"properties": []}), "format.schema.properties: must be a mapping"),
        (schema({"required": "a"}), "format.schema.required: must be a list"),
        (schema({"properties": {"a\u0001": {}}}), "format.schema.properties: must not name a key with a control"),
        (schema({"required": ["\n"]}), "format.schema.required: must not name a key with a control"),
        (schema({"exclusiveMinimum": True}), "format.schema.exclusiveMinimum: must be a number"),
        (schema({"$ref": "http://example.com/a.json"}), "format.schema.$ref: must be # or #/$defs/NAME"),
        (schema({"$ref": "#/properties/a"}), "format.schema.$ref: must be # or #/$defs/NAME"),
        (schema({"$ref": "#name"}), "format.schema.$ref: must be # or #/$defs/NAME"),
        (schema({"$ref": 5}), "format.schema.$ref: must be # or #/$defs/NAME"),
        (schema({"$id": "http://a.b/c"}), "format.schema.$id: this keyword cannot"),
        (schema({"$schema": "http://json-schema.org/draft-04/schema#"}), "format.schema.$schema: must be https://"),
        (schema({"pattern": "a\\"}), "format.schema.pattern: must not end in a single backslash"),
        (schema({"patternProperties": {"a\\": {}}}), "format.schema.patternProperties: must not end in a single"),
    ],
)  # fmt: skip
def test_p08_what_is_wrong_is_named(value: Any, says: str) -> None:
    assert refusal(value).startswith(says)


@pytest.mark.parametrize("pattern", ["a" * 4000, "a\\\\"])
def test_a_pattern_at_a_bound_is_accepted_as_it_is(pattern: str) -> None:
    assert Regex(pattern) == check_format("format", {"type": "regex", "pattern": pattern})


@pytest.mark.parametrize("choices", [[str(n) for n in range(256)], ["a" * 8000, "b" * 8000]], ids=["count", "bytes"])
def test_choices_at_a_bound_are_accepted_as_they_are(choices: list[str]) -> None:
    assert Choice(tuple(choices)) == check_format("format", {"type": "choice", "choices": choices})


@pytest.mark.parametrize(
    "value",
    [
        {"enum": ["x" * (16_000 - 13)]},
        {"default": {"not": 1}, "examples": [{"$ref": "http://x"}], "const": {"if": None}},
        {"$ref": "#/$defs/a~1b", "$defs": {"a/b": True}},
    ],
    ids=["bytes", "values that look like keywords", "reference"],
)
def test_a_schema_at_a_bound_is_accepted_as_it_is(value: dict[str, Any]) -> None:
    found = check_format("format", schema(value))
    assert isinstance(found, JsonSchema)
    assert value == json.loads(found.text)


def test_a_prompt_carries_its_format_and_no_stop_beside_it() -> None:
    body: dict[str, Any] = {"id": "a", "prompt": "x", "format": {"type": "choice", "choices": ["yes", "no"]}}
    assert Choice(("yes", "no")) == parse_prompt(json.dumps(body).encode(), None, 1000, str).format
    assert parse_prompt(json.dumps({**body, "stop": []}).encode(), None, 1000, str).format is not None
    with pytest.raises(BadPrompt, match="stop: cannot be combined with format"):
        parse_prompt(json.dumps({**body, "stop": ["."]}).encode(), None, 1000, str)


def test_a_schema_is_as_shallow_as_the_whole_body() -> None:
    deep: dict[str, Any] = {"type": "null"}
    for _ in range(40):
        deep = {"items": deep}
    with pytest.raises(BadPrompt, match="nested deeper than 32"):
        parse_prompt(json.dumps({"prompt": "x", "format": schema(deep)}).encode(), None, 9000, lambda: "made-up")


@pytest.mark.parametrize("wanted", [Choice(("a", "東京")), Regex("a\\d"), JsonSchema('{"type":"null"}'), None])
def test_a_format_goes_through_the_frames(wanted: Format | None) -> None:
    frame = frames.Add("1", Request(raw="x", format=wanted))
    assert [frame] == frames.Decoder[frames.ToWorker](frames.ToWorker).feed(frames.encode(frame))
    old = msgspec.msgpack.encode({"turns": [], "raw": "x"})  # a journal of an earlier version
    assert Request(raw="x") == msgspec.msgpack.decode(old, type=Request)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "schema", "choices", "pattern", *sorted(formats._KNOWN)]), inner)
    ),
    max_leaves=12,
)


@given(values | st.builds(schema, values))
def test_anything_is_a_format_or_a_sentence(value: Any) -> None:
    """Either what was asked, or BadValue whose path begins with the key; nothing else is raised."""
    try:
        found = check_format("format", value)
    except BadValue as error:
        assert error.path.startswith("format")  # noqa: PT017  - accepted or refused: both are right
        assert error.sentence  # noqa: PT017
    else:
        assert value == as_asked(found)


def as_asked(found: Format) -> dict[str, Any]:
    """The body's `format` that gives this one."""
    if isinstance(found, Regex):
        return {"type": "regex", "pattern": found.pattern}
    if isinstance(found, Choice):
        return {"type": "choice", "choices": list(found.choices)}
    return schema(json.loads(found.text))
