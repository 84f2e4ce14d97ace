"""The `format` of a prompt: what its output must obey. JSON → types, or BadValue with the path of what is wrong.

A schema is checked keyword by keyword, because JSON Schema itself ignores keywords it does not know: a constraint with
a slip in its spelling would then constrain nothing.
"""

from __future__ import annotations

import re
from typing import Any

from edged.config import checks
from edged.core.errors import BadValue
from edged.core.prompt import Choice, Format, JsonSchema, Regex
from edged.wire import strict_json

MAX_SCHEMA = 16_000  # bytes as compact JSON
MAX_CHOICES = 256
MAX_CHOICE_BYTES = 16_000  # all choices together
MAX_PATTERN = 4_000  # bytes

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_REF = re.compile(r"#(?:/(?:\$defs|definitions)/[^/]+)?\Z")
_CONTROL = re.compile("[\x00-\x1f\x7f]")
_LOOSE_BACKSLASH = re.compile(r"(?:[^\\]|\A)(?:\\\\)*\\\Z")
# Keywords by what their value is: one schema, a list of schemas, schemas by name, a value that the engine checks.
_SCHEMA = ("additionalProperties", "items")
_SCHEMAS = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_SIZES = ("minProperties", "maxProperties", "minItems", "maxItems", "minLength", "maxLength")
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_VALUES = ("type", "enum", "const", "required", "pattern", "format", "$ref", *_SIZES, *_NUMBERS)
_ANNOTATIONS = ("title", "description", "default", "examples", "deprecated", "$comment", "$schema")
_KNOWN = frozenset({*_SCHEMA, *_SCHEMAS, *_NAMED, *_VALUES, *_ANNOTATIONS})


def check_format(path: str, value: object) -> Format:
    """A prompt's `format`. Raises BadValue."""
    if not isinstance(value, dict):
        raise BadValue(path, f"must be a mapping, not {checks.shown(value)}")
    kinds = {"json_schema": ("schema", check_schema), "choice": ("choices", _choices), "regex": ("pattern", _regex)}
    if "type" not in value:
        raise BadValue(f"{path}.type", f"is required: one of {', '.join(kinds)}")
    key, check = kinds[checks.one_of(*kinds)(f"{path}.type", value["type"])]
    checked = checks.record(path, value, {"type": checks.one_of(*kinds), key: check}, required=(key,))
    found: Format = checked[key]
    return found


def _regex(path: str, value: object) -> Regex:
    pattern: str = checks.text(high=MAX_PATTERN)(path, value)
    if (size := len(pattern.encode())) > MAX_PATTERN:
        raise BadValue(path, f"has {size} bytes, above {MAX_PATTERN}; use a shorter one")
    _whole_escapes(path, pattern)
    return Regex(pattern)


def _whole_escapes(path: str, pattern: str) -> None:
    if _LOOSE_BACKSLASH.search(pattern):
        raise BadValue(path, "must not end in a single backslash; write two for the character itself")


def _choices(path: str, value: object) -> Choice:
    check = checks.list_of(checks.text(high=MAX_CHOICE_BYTES), high=MAX_CHOICES, distinct=True)
    choices: tuple[str, ...] = check(path, value)
    if not choices:
        raise BadValue(path, "is empty; give at least one choice")
    if (size := sum(len(choice.encode()) for choice in choices)) > MAX_CHOICE_BYTES:
        raise BadValue(path, f"have {size} bytes together, above {MAX_CHOICE_BYTES}; use fewer or shorter ones")
    return Choice(choices)


def check_schema(path: str, value: object) -> JsonSchema:
    """A JSON schema of which every keyword is enforced. Raises BadValue."""
    if not isinstance(value, dict):
        raise BadValue(path, f"must be a mapping, not {checks.shown(value)}")
    _walk(path, value)
    text = strict_json.dumps(value)
    if len(text) > MAX_SCHEMA:
        raise BadValue(path, f"has {len(text)} bytes as compact JSON, above {MAX_SCHEMA}; use a smaller one")
    return JsonSchema(text.decode())


def _walk(path: str, schema: object) -> None:
    """Every keyword of a schema and of those inside it is one that the engine enforces, or an annotation."""
    if isinstance(schema, bool):
        return
    for key, entry in _as(dict, path, schema).items():
        inside = f"{path}.{key[:64]}"
        if key not in _KNOWN:
            raise BadValue(inside, f"this keyword cannot be enforced; leave it out{checks.nearest(key, _KNOWN)}")
        if key in _SCHEMA:
            _walk(inside, entry)
        elif key in _SCHEMAS:
            for index, one in enumerate(_as(list, inside, entry)):
                _walk(f"{inside}[{index}]", one)
        elif key in _NAMED:
            _walk_named(key, inside, _as(dict, inside, entry))
        else:
            _value(key, inside, entry)


def _walk_named(key: str, path: str, schemas: dict[str, object]) -> None:
    for name, schema in schemas.items():
        _plain_name(path, name)
        if key == "patternProperties":
            _whole_escapes(path, name)
        _walk(f"{path}.{name[:64]}", schema)


def _value(key: str, path: str, entry: object) -> None:
    if key in _NUMBERS and (isinstance(entry, bool) or not isinstance(entry, (int, float))):
        raise BadValue(path, f"must be a number, not {checks.shown(entry)}")
    if key == "$ref" and not (isinstance(entry, str) and _REF.match(entry)):
        shown = checks.shown(entry)
        raise BadValue(path, f"must be # or #/$defs/NAME inside this schema (nothing is fetched), not {shown}")
    if key == "$schema" and entry not in (_DRAFT, _DRAFT + "#"):
        raise BadValue(path, f"must be {_DRAFT}, or be left out")
    if key == "required":
        for name in _as(list, path, entry):
            _plain_name(path, name)
    if key == "pattern" and isinstance(entry, str):
        _whole_escapes(path, entry)


def _plain_name(path: str, name: object) -> None:
    """A key with one spelling; the engine relies on it."""
    if isinstance(name, str) and _CONTROL.search(name):
        raise BadValue(path, f"must not name a key with a control character, as {checks.shown(name)} does")


def _as(kind: type, path: str, value: object) -> Any:
    if not isinstance(value, kind):
        raise BadValue(path, f"must be a {'list' if kind is list else 'mapping'}, not {checks.shown(value)}")
    return value
