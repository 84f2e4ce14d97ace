"""Whether a JSON value obeys a schema: the keywords of JSON Schema 2020-12 that prompts may use, too.

`unknown_keyword` finds what this does not check. Patterns are Python's; matching one may take for ever, so `obeys` runs
where it can be killed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final

_ANNOTATIONS: Final = frozenset(
    {"title", "description", "default", "examples", "deprecated", "$comment", "$schema", "$defs", "definitions"}
)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_TYPES: Final[dict[str, Callable[[Any], bool]]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: _is_number(value) and value == int(value),
    "number": _is_number,
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}


def obeys(schema: Any, value: Any, root: Any = None) -> bool:
    """Whether `value` obeys `schema`. Raises KeyError, TypeError, ValueError or re.error for what is no schema."""
    root = schema if root is None else root
    if isinstance(schema, bool):
        return schema
    return all(_RULES[key](schema, value, root) for key in schema if key in _RULES)


def unknown_keyword(schema: Any) -> str | None:
    """The first keyword in this schema, or in one inside it, that `obeys` does not check; None where there is none."""
    if not isinstance(schema, dict):
        return None if isinstance(schema, bool) else "a schema that is neither a mapping nor true or false"
    for key in schema:
        if key not in _RULES and key not in _ANNOTATIONS:
            return str(key)[:64]
    return next((found for inner in _inner(schema) if (found := unknown_keyword(inner))), None)


def _inner(schema: dict[str, Any]) -> Iterator[Any]:
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield schema[key]
    for key in ("allOf", "anyOf", "oneOf", "prefixItems"):
        yield from schema.get(key) or ()
    for key in ("properties", "patternProperties", "$defs", "definitions"):
        named = schema.get(key) or {}
        yield from named.values() if isinstance(named, dict) else (None,)


def _equal(one: Any, other: Any) -> bool:
    """JSON equality: 1 and 1.0 are equal, 1 and true are not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    return bool(one == other)


def _type(schema: Any, value: Any, _root: Any) -> bool:
    names = schema["type"]
    return any(_TYPES[name](value) for name in (names if isinstance(names, list) else [names]))


def _ref(schema: Any, value: Any, root: Any) -> bool:
    target = root
    for part in schema["$ref"].removeprefix("#").split("/")[1:]:
        target = target[part.replace("~1", "/").replace("~0", "~")]
    return obeys(target, value, root)


def _properties(schema: Any, value: Any, root: Any) -> bool:
    if not isinstance(value, dict):
        return True
    own, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    rest = schema.get("additionalProperties", True)
    for key, entry in value.items():
        matching = [inner for pattern, inner in patterns.items() if re.search(pattern, key)]
        wanted = [own[key], *matching] if key in own else matching or [rest]
        if not all(obeys(inner, entry, root) for inner in wanted):
            return False
    return True


def _items(schema: Any, value: Any, root: Any) -> bool:
    if not isinstance(value, list):
        return True
    first, rest = schema.get("prefixItems", []), schema.get("items", True)
    return all(obeys(first[i] if i < len(first) else rest, entry, root) for i, entry in enumerate(value))


def _bound(key: str, kind: Callable[[Any], bool], holds: Callable[[Any, Any], bool]) -> Callable[[Any, Any, Any], bool]:
    return lambda schema, value, _root: not kind(value) or holds(value, schema[key])


def _multiple(value: Any, step: Any) -> bool:
    quotient = value / step
    return bool(abs(quotient - round(quotient)) < 1e-9)


_RULES: Final[dict[str, Callable[[Any, Any, Any], bool]]] = {
    "type": _type,
    "$ref": _ref,
    "enum": lambda schema, value, _root: any(_equal(value, one) for one in schema["enum"]),
    "const": lambda schema, value, _root: _equal(value, schema["const"]),
    "properties": _properties,
    "additionalProperties": _properties,
    "patternProperties": _properties,
    "items": _items,
    "prefixItems": _items,
    "required": lambda schema, value, _root: not isinstance(value, dict) or all(k in value for k in schema["required"]),
    "allOf": lambda schema, value, root: all(obeys(one, value, root) for one in schema["allOf"]),
    "anyOf": lambda schema, value, root: any(obeys(one, value, root) for one in schema["anyOf"]),
    "oneOf": lambda schema, value, root: sum(obeys(one, value, root) for one in schema["oneOf"]) == 1,
    "minProperties": _bound("minProperties", _TYPES["object"], lambda value, bound: len(value) >= bound),
    "maxProperties": _bound("maxProperties", _TYPES["object"], lambda value, bound: len(value) <= bound),
    "minItems": _bound("minItems", _TYPES["array"], lambda value, bound: len(value) >= bound),
    "maxItems": _bound("maxItems", _TYPES["array"], lambda value, bound: len(value) <= bound),
    "minLength": _bound("minLength", _TYPES["string"], lambda value, bound: len(value) >= bound),
    "maxLength": _bound("maxLength", _TYPES["string"], lambda value, bound: len(value) <= bound),
    "pattern": _bound("pattern", _TYPES["string"], lambda value, pattern: re.search(pattern, value) is not None),
    "minimum": _bound("minimum", _is_number, lambda value, bound: value >= bound),
    "maximum": _bound("maximum", _is_number, lambda value, bound: value <= bound),
    "exclusiveMinimum": _bound("exclusiveMinimum", _is_number, lambda value, bound: value > bound),
    "exclusiveMaximum": _bound("exclusiveMaximum", _is_number, lambda value, bound: value < bound),
    "multipleOf": _bound("multipleOf", _is_number, _multiple),
}
