"""Gemma's form of a call: `call:NAME{key:value,…}`, in which texts stand between a mark (`<escape>`, `<|"|>`).

The form is that of the chat templates of FunctionGemma and Gemma 4: keys in the order of the alphabet and without
quotes, `true`, `false` and numbers as in JSON, lists in `[]`, objects in `{}`. What a schema says is a grammar here;
keywords that none can be made of are refused.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from edged.core.errors import PromptRefused
from edged.core.prompt import Tool

MARK: Final = "\0"  # represents the mark in a grammar
_KEY: Final = re.compile(r"[A-Za-z0-9_.-]+\Z")
_ANNOTATIONS: Final = frozenset(
    {"title", "description", "default", "examples", "deprecated", "$comment", "$schema", "$defs", "definitions"}
)
_NUMBERS: Final = frozenset({"type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
_KEYWORDS: Final[dict[str, frozenset[str]]] = {
    "string": frozenset({"type", "minLength", "maxLength"}),
    "integer": _NUMBERS,
    "number": _NUMBERS,
    "boolean": frozenset({"type"}),
    "null": frozenset({"type"}),
    "array": frozenset({"type", "items", "minItems", "maxItems"}),
    "object": frozenset({"type", "properties", "required", "additionalProperties"}),
}
_CALL: Final = re.compile(r"\s*call:\s*([A-Za-z0-9_.-]+)\s*(?=\{)")
_SCALAR: Final = re.compile(r"[^,\]}]+")


class _UnsupportedError(Exception):
    """A keyword, or what else cannot be expressed."""


# ---- grammars -------------------------------------------------------------------------------------------------------


def rules(tool: Tool, name: str) -> list[str]:
    """A rule `name` for the arguments of a tool, and those that it needs. Raises PromptRefused `invalid`."""
    made = _Rules(name, json.loads(tool.parameters))
    try:
        return [f"{name}: {made.value(made.root)}", *made.lines]
    except _UnsupportedError as error:
        raise PromptRefused(
            "invalid",
            "tools",
            f"The parameters of {tool.name} have {error}, which cannot be enforced in the form in which this model "
            "calls tools; change them.",
        ) from None


class _Rules:
    """Rules of one schema; `lines` are those beside the first."""

    def __init__(self, name: str, root: dict[str, Any]) -> None:
        self.root = root
        self.lines: list[str] = []
        self._name = name
        self._of_refs: dict[str, str] = {}

    def value(self, schema: Any) -> str:
        """What a value that obeys a schema looks like."""
        if not isinstance(schema, dict):
            raise _UnsupportedError("a value of any type")
        keys = schema.keys() - _ANNOTATIONS
        for keyword, others in (("$ref", ()), ("anyOf", ()), ("const", ("type",)), ("enum", ("type",))):
            if keyword in keys:
                if other := keys - {keyword, *others}:
                    raise _UnsupportedError(f"{min(other)} beside {keyword}")
                return self._special(keyword, schema[keyword])
        kind = schema.get("type")
        if isinstance(kind, list):
            return _either([self.value({**schema, "type": one}) for one in kind])
        if kind not in _KEYWORDS:
            raise _UnsupportedError("a value of any type")
        if other := keys - _KEYWORDS[kind]:
            raise _UnsupportedError(f"the keyword {min(other)}")
        made: str = getattr(self, f"_{kind}")(schema)
        return made

    def _special(self, keyword: str, value: Any) -> str:
        if keyword == "$ref":
            return self._ref(value)
        if keyword == "anyOf":
            return _either([self.value(one) for one in value])
        return _either([_literal(one) for one in ([value] if keyword == "const" else value)])

    def _ref(self, target: str) -> str:
        if target not in self._of_refs:
            self._of_refs[target] = rule = f"{self._name}_{len(self._of_refs)}"
            schema: Any = self.root
            for part in target.removeprefix("#").split("/")[1:]:
                schema = schema.get(part) if isinstance(schema, dict) else None
            self.lines.append(f"{rule}: {self.value(schema)}")
        return self._of_refs[target]

    def _string(self, schema: dict[str, Any]) -> str:
        low, high = schema.get("minLength", 0), schema.get("maxLength", "")
        count = f"{{{low},{high}}}" if low or high != "" else "*"
        return f"{MARK} /[^<]{count}/ {MARK}"

    def _integer(self, schema: dict[str, Any]) -> str:
        return f"%json {json.dumps({key: schema[key] for key in schema.keys() & _NUMBERS})}"

    _number = _integer

    def _boolean(self, _: dict[str, Any]) -> str:
        return '("true" | "false")'

    def _null(self, _: dict[str, Any]) -> str:
        return '"null"'

    def _array(self, schema: dict[str, Any]) -> str:
        item = self.value(schema.get("items", True))
        low, high = schema.get("minItems", 0), schema.get("maxItems")
        if high == 0:
            return '"[" "]"'
        more = f"{{{max(low - 1, 0)},{'' if high is None else high - 1}}}"
        inner = f'{item} ("," {item}){more}'
        return f'"[" {inner} "]"' if low else f'"[" ({inner})? "]"'

    def _object(self, schema: dict[str, Any]) -> str:
        properties, required = schema.get("properties", {}), set(schema.get("required", ()))
        if required - properties.keys():
            raise _UnsupportedError(f"a required key without a schema ({min(required - properties.keys())})")
        if bad := next((key for key in properties if not _KEY.match(key)), None):
            raise _UnsupportedError(f"the key {bad[:64]!r}")
        ordered = sorted(properties, key=str.lower)
        pairs = [(f"{json.dumps(key + ':')} {self.value(properties[key])}", key in required) for key in ordered]
        return f'"{{" {self._pairs(pairs)} "}}"'

    def _pairs(self, pairs: list[tuple[str, bool]]) -> str:
        """Pairs in their order, with commas between those that are there."""
        first = rest = '""'
        for pair, required in reversed(pairs):
            first = self._rule(f"{pair} {rest}" if required else f"{pair} {rest} | {first}")
            rest = self._rule(f'"," {pair} {rest}' if required else f'"," {pair} {rest} | {rest}')
        return first

    def _rule(self, text: str) -> str:
        name = f"{self._name}_r{len(self.lines)}"
        self.lines.append(f"{name}: {text}")
        return name


def _either(texts: list[str]) -> str:
    return f"({' | '.join(texts)})"


def _literal(value: Any) -> str:
    if isinstance(value, str):
        if "<" in value:
            raise _UnsupportedError("a text with <")
        return f"{MARK} {json.dumps(value)} {MARK}" if value else f"{MARK} {MARK}"
    if isinstance(value, (list, dict)):
        raise _UnsupportedError("a list or an object among its values")
    return json.dumps(json.dumps(value))


# ---- what was written -----------------------------------------------------------------------------------------------


def written(name: str, arguments: dict[str, Any], mark: str) -> str:
    """A call in this form."""
    return f"call:{name}{_written(arguments, mark)}"


def _written(value: Any, mark: str) -> str:
    if isinstance(value, str):
        return f"{mark}{value}{mark}"
    if isinstance(value, dict):
        pairs = sorted(value.items(), key=lambda pair: pair[0].lower())
        return f"{{{','.join(f'{key}:{_written(one, mark)}' for key, one in pairs)}}}"
    if isinstance(value, list):
        return f"[{','.join(_written(one, mark) for one in value)}]"
    return json.dumps(value)


def parse(body: str, at: int, mark: str) -> tuple[tuple[str, dict[str, Any]], int]:
    """The call that begins at a place of a text, its name and its arguments; and where it ends. Raises ValueError."""
    begin = _CALL.match(body, at)
    if begin is None:
        raise ValueError("no call begins here")
    arguments, at = _Reader(body, mark).value(begin.end())
    return (begin[1], arguments), at


class _Reader:
    def __init__(self, body: str, mark: str) -> None:
        self._body = body
        self._mark = mark

    def value(self, at: int) -> tuple[Any, int]:
        if self._body.startswith(self._mark, at):
            begin = at + len(self._mark)
            end = self._body.index(self._mark, begin)
            return self._body[begin:end], end + len(self._mark)
        if self._body.startswith("{", at):
            return self._object(at + 1)
        if self._body.startswith("[", at):
            return self._list(at + 1)
        scalar = _SCALAR.match(self._body, at)
        if scalar is None:
            raise ValueError("a value is missing")
        return json.loads(scalar[0]), scalar.end()

    def _object(self, at: int) -> tuple[dict[str, Any], int]:
        found: dict[str, Any] = {}
        while not self._body.startswith("}", at):
            colon = self._body.index(":", at)
            key = self._body[at:colon].replace(self._mark, "").strip()
            if key in found or not _KEY.match(key):
                raise ValueError("a key is there twice, or is none")
            found[key], at = self.value(colon + 1)
            at = self._after(at, "}")
        return found, at + 1

    def _list(self, at: int) -> tuple[list[Any], int]:
        found: list[Any] = []
        while not self._body.startswith("]", at):
            one, at = self.value(at)
            found.append(one)
            at = self._after(at, "]")
        return found, at + 1

    def _after(self, at: int, end: str) -> int:
        """Behind a comma, or where the end is."""
        if self._body.startswith(",", at):
            return at + 1
        if not self._body.startswith(end, at):
            raise ValueError("a comma is missing")
        return at
