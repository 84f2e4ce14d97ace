"""A plain reading of the JSON Schema keywords that formats may use: a judge that shares no code with the engine."""

from __future__ import annotations

import json
import re
from typing import Any

TYPES: dict[str, Any] = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs), pairs
    return dict(pairs)


def obeys(text: str, schema: dict[str, Any]) -> bool:
    """Whether a text is one JSON value, without a key twice, that the schema allows."""
    return allows(schema, json.loads(text, object_pairs_hook=unique), schema)


def is_type(name: str, value: Any) -> bool:
    if name in {"integer", "number"}:
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return not isinstance(value, bool) and isinstance(value, (int, float)) and (name == "number" or whole)
    return isinstance(value, TYPES[name])


def same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def allows(schema: Any, value: Any, root: Any) -> bool:
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema:
        target = root
        for part in schema["$ref"].split("/")[1:]:
            target = target[part]
        if not allows(target, value, root):
            return False
    types = schema.get("type", [])
    checks = [
        not types or any(is_type(name, value) for name in ([types] if isinstance(types, str) else types)),
        "enum" not in schema or any(same(value, one) for one in schema["enum"]),
        "const" not in schema or same(value, schema["const"]),
        all(allows(one, value, root) for one in schema.get("allOf", [])),
        "anyOf" not in schema or any(allows(one, value, root) for one in schema["anyOf"]),
        "oneOf" not in schema or sum(allows(one, value, root) for one in schema["oneOf"]) == 1,
        not isinstance(value, str) or text_fits(schema, value),
        not is_type("number", value) or number_fits(schema, value),
        not isinstance(value, list) or list_fits(schema, value, root),
        not isinstance(value, dict) or object_fits(schema, value, root),
    ]
    return all(checks)


def text_fits(schema: dict[str, Any], value: str) -> bool:
    long_enough = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
    return long_enough and bool(re.search(schema.get("pattern", ""), value))


def number_fits(schema: dict[str, Any], value: float) -> bool:
    within = schema.get("minimum", value) <= value <= schema.get("maximum", value)
    above = "exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"]
    below = "exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"]
    return within and above and below and value % schema.get("multipleOf", value or 1) == 0


def list_fits(schema: dict[str, Any], value: list[Any], root: Any) -> bool:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        return False
    first = schema.get("prefixItems", [])
    heads = all(allows(one, item, root) for one, item in zip(first, value, strict=False))
    return heads and all(allows(schema.get("items", True), item, root) for item in value[len(first) :])


def object_fits(schema: dict[str, Any], value: dict[str, Any], root: Any) -> bool:
    if not schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", len(value)):
        return False
    if not set(schema.get("required", [])) <= value.keys():
        return False
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for key, entry in value.items():
        rules = [named[key]] if key in named else []
        rules += [rule for pattern, rule in patterns.items() if re.search(pattern, key)]
        if not all(allows(rule, entry, root) for rule in rules or [schema.get("additionalProperties", True)]):
            return False
    return True
