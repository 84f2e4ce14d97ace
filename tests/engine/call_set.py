"""A hundred calls of twenty functions: arguments of every kind that their schemas allow."""

from __future__ import annotations

import json
from typing import Any

from edged.core.prompt import Tool


def _object(required: str, **properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object", "properties": properties, "required": required.split(), "additionalProperties": False,
    }  # fmt: skip


TEXT: dict[str, Any] = {"type": "string"}
WHOLE: dict[str, Any] = {"type": "integer"}
NUMBER: dict[str, Any] = {"type": "number"}
FLAG: dict[str, Any] = {"type": "boolean"}

SCHEMAS: dict[str, dict[str, Any]] = {
    "get_weather": _object("city", city=TEXT, unit={"enum": ["celsius", "fahrenheit"]}),
    "set_light": _object("room on", room={"enum": ["kitchen", "hall", "bath"]}, on=FLAG, level={
        "type": "integer", "minimum": 0, "maximum": 100}),
    "send_mail": _object("to subject", to={"type": "array", "items": TEXT, "minItems": 1}, subject=TEXT, body=TEXT),
    "add": _object("a b", a=NUMBER, b=NUMBER),
    "search": _object("query", query={"type": "string", "minLength": 1}, limit={"type": "integer", "minimum": 1}),
    "timer": _object("seconds", seconds={"type": "integer", "minimum": 1, "maximum": 86400}, label=TEXT),
    "book_table": _object("name people at", name=TEXT, people={"type": "integer"}, at={
        "type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}$"}),
    "translate": _object("text to", text=TEXT, to={"enum": ["de", "en", "fr", "ja"]}, formal=FLAG),
    "stop_all": _object(""),
    "move": _object("x y", x=NUMBER, y=NUMBER, z={"anyOf": [NUMBER, {"type": "null"}]}),
    "tag": _object("id tags", id=WHOLE, tags={"type": "array", "items": {"enum": ["red", "green", "blue"]}}),
    "log": _object("level message", level={"enum": ["debug", "info", "error"]}, message=TEXT),
    "route": _object("from to", **{"from": TEXT, "to": TEXT, "by": {"enum": ["car", "bike", "foot"]}}),
    "note": _object("note", note=_object("title lines", title=TEXT, lines={"type": "array", "items": TEXT})),
    "matrix": _object("rows", rows={"type": "array", "items": {"type": "array", "items": WHOLE}}),
    "tree": {"type": "object", "properties": {"node": {"$ref": "#/$defs/node"}}, "required": ["node"],
             "additionalProperties": False, "$defs": {"node": {"type": "object", "properties": {
                 "name": TEXT, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
                 "required": ["name"], "additionalProperties": False}}},
    "price": _object("amount currency", amount={"type": "number", "minimum": 0}, currency={"const": "EUR"}),
    "either": _object("value", value={"oneOf": [WHOLE, TEXT, {"type": "array", "items": FLAG}]}),
    "set.fan-speed_2": _object("speed", speed={"type": "integer", "minimum": 0, "maximum": 3}),
    "lookup": _object("word", word={"type": "string", "maxLength": 20}, language={"type": ["string", "null"]}),
}  # fmt: skip

ARGUMENTS: dict[str, list[dict[str, Any]]] = {
    "get_weather": [{"city": "Rome"}, {"city": "Köln", "unit": "celsius"}, {"city": "東京", "unit": "fahrenheit"},
                    {"city": ""}, {"city": "St. John's \"Bay\""}],
    "set_light": [{"room": "kitchen", "on": True}, {"room": "hall", "on": False, "level": 0},
                  {"room": "bath", "on": True, "level": 100}, {"room": "bath", "on": False},
                  {"room": "kitchen", "on": True, "level": 7}],
    "send_mail": [{"to": ["a@b.c"], "subject": "Hi"}, {"to": ["a", "b"], "subject": "", "body": "line\nline"},
                  {"to": ["x"], "subject": "</tool_call>", "body": "]"}, {"to": ["ä"], "subject": "tab\there"},
                  {"to": ["a", "b", "c"], "subject": "{}", "body": "[TOOL_CALLS] [ARGS] ```"}],
    "add": [{"a": 1, "b": 2}, {"a": -1.5, "b": 0}, {"a": 1e3, "b": 2.25}, {"a": 0.1, "b": 1000000}, {"a": 0, "b": -7}],
    "search": [{"query": "cats"}, {"query": "a b c", "limit": 1}, {"query": "?", "limit": 1000},
               {"query": "\\backslash"}, {"query": "<|python_tag|>", "limit": 2}],
    "timer": [{"seconds": 1}, {"seconds": 86400}, {"seconds": 60, "label": "tea"}, {"seconds": 300, "label": ""},
              {"seconds": 5, "label": "🥚"}],
    "book_table": [{"name": name, "people": people, "at": at} for name, people, at in (
        ("Ada", 2, "2026-11-30T19:00"), ("Bo", 0, "2027-01-01T00:00"), ("", 99, "2026-12-24T18:30"),
        ("O'Hara", 4, "2026-02-28T12:15"), ("Zoë", -1, "2030-06-15T08:05"))],
    "translate": [{"text": "hello", "to": "de"}, {"text": "bonjour", "to": "en", "formal": True},
                  {"text": "x", "to": "fr", "formal": False}, {"text": "{\"a\": 1}", "to": "ja"},
                  {"text": "</think>", "to": "en"}],
    "stop_all": [{}] * 5,
    "move": [{"x": 0, "y": 0}, {"x": 1.5, "y": -2.5}, {"x": 1, "y": 2, "z": None}, {"x": 1, "y": 2, "z": 3.75},
             {"x": -0.5, "y": 10}],
    "tag": [{"id": 1, "tags": []}, {"id": 2, "tags": ["red"]}, {"id": -3, "tags": ["green", "blue"]},
            {"id": 123456789, "tags": ["blue", "blue"]}, {"id": 0, "tags": ["red", "green", "blue"]}],
    "log": [{"level": "debug", "message": "a"}, {"level": "info", "message": "two words"},
            {"level": "error", "message": "it's \"broken\""}, {"level": "info", "message": "ünïcode"},
            {"level": "error", "message": "line\nbreak"}],
    "route": [{"from": "A", "to": "B"}, {"from": "Home", "to": "Work", "by": "bike"}, {"from": "", "to": ""},
              {"from": "x", "to": "y", "by": "car"}, {"from": "Zürich HB", "to": "Genève", "by": "foot"}],
    "note": [{"note": {"title": title, "lines": lines}} for title, lines in (
        ("a", []), ("b", ["x"]), ("c", ["x", "y"]), ("", [""]), ("äöü", ["]}", "[{"]))],
    "matrix": [{"rows": rows} for rows in ([], [[]], [[1]], [[1, 2], [3, 4]], [[-1], [], [0, 0, 0]])],
    "tree": [{"node": {"name": "a"}}, {"node": {"name": "a", "children": []}},
             {"node": {"name": "a", "children": [{"name": "b"}]}},
             {"node": {"name": "a", "children": [{"name": "b", "children": [{"name": "c"}]}, {"name": "d"}]}},
             {"node": {"name": ""}}],
    "price": [{"amount": amount, "currency": "EUR"} for amount in (0, 1, 9.99, 1000000, 0.01)],
    "either": [{"value": value} for value in (1, "one", [], [True, False], -5)],
    "set.fan-speed_2": [{"speed": speed} for speed in (0, 1, 2, 3, 0)],
    "lookup": [{"word": "cat"}, {"word": "", "language": None}, {"word": "x" * 20, "language": "en"},
               {"word": "naïve", "language": "fr"}, {"word": "a b", "language": ""}],
}  # fmt: skip

TOOLS = tuple(Tool(name, f"Does {name}.", json.dumps(schema)) for name, schema in SCHEMAS.items())
CALLS = [(name, arguments) for name, several in ARGUMENTS.items() for arguments in several]
