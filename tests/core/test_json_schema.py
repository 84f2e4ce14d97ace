"""The check of a JSON value against a schema: each keyword, for values that obey it and values that do not."""

from __future__ import annotations

from typing import Any

import pytest

from edged.core.json_schema import obeys, unknown_keyword
from edged.wire import formats


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer"}, [1, 1.0, -3], [1.5, True, "1", None]),
        ({"type": "number"}, [1, 1.5], [True, "1"]),
        ({"type": ["string", "null"]}, ["", None], [1, []]),
        ({"type": "boolean"}, [True], [1, 0, None]),
        ({"enum": [1, "a", [1, {"b": True}]]}, [1, 1.0, "a", [1, {"b": True}]], [True, "b", [1, {"b": 1}]]),
        ({"const": {"a": 1}}, [{"a": 1.0}], [{"a": True}, {}, {"a": 1, "b": 2}]),
        ({"required": ["a"]}, [{"a": 1}, 5], [{}]),
        ({"properties": {"a": {"type": "null"}}}, [{"a": None}, {"b": 1}, 3], [{"a": 1}]),
        (
            {
                "properties": {"a": True},
                "patternProperties": {"^x": {"type": "integer"}},
                "additionalProperties": False,
            },
            [{"a": "", "x1": 2}, {}],
            [{"b": 1}, {"x1": ""}],
        ),
        ({"additionalProperties": {"type": "integer"}}, [{"a": 1}], [{"a": ""}]),
        ({"items": {"type": "integer"}}, [[1, 2], [], "x"], [[1, ""]]),
        ({"prefixItems": [{"type": "null"}], "items": False}, [[None], []], [[1], [None, 1]]),
        ({"allOf": [{"minimum": 1}, {"maximum": 2}]}, [1, 2], [0, 3]),
        ({"anyOf": [{"const": 1}, {"const": 2}]}, [1, 2], [3]),
        ({"oneOf": [{"minimum": 1}, {"maximum": 2}]}, [0, 3], [1, 2]),
        ({"minLength": 1, "maxLength": 2, "pattern": "^a"}, ["a", "ab", 5], ["", "abc", "b"]),
        ({"minItems": 1, "maxItems": 2}, [[1], [1, 2]], [[], [1, 2, 3]]),
        ({"minProperties": 1, "maxProperties": 1}, [{"a": 1}], [{}, {"a": 1, "b": 1}]),
        ({"exclusiveMinimum": 1, "exclusiveMaximum": 3}, [2, "x"], [1, 3]),
        ({"multipleOf": 0.1}, [0.3, 5], [0.35]),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#"}}}}, [[], [[]], 1], []),
        ({"$defs": {"a": {"type": "null"}}, "items": {"$ref": "#/$defs/a"}}, [[None]], [[1]]),
        ({}, [1, None], []),
    ],
)
def test_a_keyword_holds_for_what_obeys_it_alone(schema: dict[str, Any], good: list[Any], bad: list[Any]) -> None:
    assert [] == [value for value in good if not obeys(schema, value)]
    assert [] == [value for value in bad if obeys(schema, value)]
    assert None is unknown_keyword(schema)


def test_every_keyword_that_a_prompt_may_use_is_checked_but_format() -> None:
    assert ["format"] == [key for key in sorted(formats._KNOWN) if unknown_keyword({key: {}}) == key]


@pytest.mark.parametrize("schema", [{"a": 1}, {"items": {"b": 1}}, {"anyOf": [{"c": 1}]}, {"$defs": {"x": {"d": 1}}}])
def test_an_unknown_keyword_is_found_wherever_it_lies(schema: dict[str, Any]) -> None:
    assert unknown_keyword(schema) in {"a", "b", "c", "d"}
