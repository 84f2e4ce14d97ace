"""The forms in which models write calls of tools: their openings, a grammar for each, and what a written call says.

- Hermes and Qwen, SmolLM3 and Granite 4: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`
- Mistral: `[TOOL_CALLS][{"name": …, "arguments": {…}}]`, later `[TOOL_CALLS]NAME[ARGS]{…}`
- Granite 3: `<|tool_call|>[{"name": …, "arguments": {…}}]`
- Llama 3: `{"name": …, "parameters": {…}}` with or without `<|python_tag|>`
- Gemma 3, by its maker's guide: the same object between fences
- FunctionGemma and Gemma 4: `call:NAME{key:value}` (`gemma_calls.py`)

They are those of the models' own chat templates and guides.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edged.core.prompt import Tool, ToolCall
from edged.engine import gemma_calls
from edged.engine.constraint import HEAD, CallGrammar, json_term

MAX_CALLS: Final = 8  # of one answer, where calls are required
_ID: Final = string.ascii_letters + string.digits
_SPACE: Final = "/ ?/"
_LINES: Final = "/[ \\n]{0,2}/"


@dataclass(frozen=True)
class CallStyle:
    """`opens`: what comes before a call, the usual one first; `close`: what ends it. `listed`: calls are a JSON list.

    `arguments`: the key of the arguments. `bare`: a call may begin the answer without an opening. `named`: the name
    comes before the arguments, which are all of the JSON. `several`: an answer may have more than one call. `mark`:
    what is around texts in Gemma's form. `ends`: control tokens that end an answer behind its calls.
    """

    name: str
    opens: tuple[str, ...]
    close: str = ""
    arguments: str = "arguments"
    listed: bool = False
    bare: bool = False
    named: bool = False
    several: bool = True
    mark: str = ""
    ends: tuple[str, ...] = ()

    def written(self, calls: Sequence[tuple[str, str]]) -> str:
        """Calls (names and arguments as JSON) as the model writes them; for templates that leave this to the text."""
        if self.mark:
            texts = (gemma_calls.written(name, json.loads(arguments), self.mark) for name, arguments in calls)
            return "".join(f"{self.opens[0]}{text}{self.close}" for text in texts)
        objects = [f'{{"name": {json.dumps(name)}, "{self.arguments}": {arguments}}}' for name, arguments in calls]
        start = "" if self.bare and not self.close else self.opens[0]
        if self.named:
            return "".join(f"{start}{name}[ARGS]{arguments}" for name, arguments in calls)
        if self.listed:
            return f"{start}[{', '.join(objects)}]"
        line = "\n" if self.close else ""
        return "\n".join(f"{start}{line}{one}{line}{self.close}" for one in objects)


HERMES: Final = CallStyle("hermes", ("<tool_call>",), "</tool_call>")
LLAMA: Final = CallStyle("llama", ("<|python_tag|>",), arguments="parameters", bare=True, several=False)
MISTRAL: Final = CallStyle("mistral", ("[TOOL_CALLS]",), listed=True)
MISTRAL_NAMED: Final = CallStyle("mistral-named", ("[TOOL_CALLS]",), named=True)
GRANITE: Final = CallStyle("granite", ("<|tool_call|>",), listed=True)
GEMMA: Final = CallStyle("gemma", ("```tool_code",), "```", arguments="parameters", bare=True, several=False)

FUNCTION_GEMMA: Final = CallStyle(
    "function-gemma",
    ("<start_function_call>",),
    "<end_function_call>",
    mark="<escape>",
    ends=("<start_function_response>",),
)
GEMMA_4: Final = CallStyle("gemma-4", ("<|tool_call>",), "<tool_call|>", mark='<|"|>', ends=("<|tool_response>",))


def detect(source: str, tools: str, call: str) -> CallStyle | None:
    """The form in which a template's model writes calls; None where it is none of these.

    `tools`, `call`: what the template makes of a tool, and of a call of it ("" where it refuses that).
    """
    text = f"{source}\n{tools}\n{call}"
    for style in (FUNCTION_GEMMA, GEMMA_4):
        if style.opens[0] in text and style.close in text:
            return style
    if "[TOOL_CALLS]" in text:
        return MISTRAL_NAMED if "[ARGS]" in text and "[TOOL_CALLS][" not in call.replace(" ", "") else MISTRAL
    if "<|tool_call|>" in text:
        return GRANITE
    if "<tool_call>" in text:
        return None if "<function=" in text or "<arg_key>" in text else HERMES
    if "tool_code" in text:
        return GEMMA
    return LLAMA if "<|python_tag|>" in text or '"parameters":{"place"' in call.replace(" ", "") else None


# ---- grammars -------------------------------------------------------------------------------------------------------


def whole_grammar(style: CallStyle, tools: Sequence[Tool], control: Mapping[str, int], *, single: bool) -> CallGrammar:
    """An answer that is calls alone, at least one; `single`: exactly one."""
    more = 0 if single or not style.several else MAX_CALLS - 1
    if style.bare:
        start = f"{_block(style, 0)}" if not style.close else f"OPEN {_block(style, 0)}"
    elif style.listed:
        start = f"OPEN {_block(style, more)}"
    else:
        start = f"OPEN {_block(style, 0)}" + (f" ({_LINES} OPEN {_block(style, 0)}){{0,{more}}}" if more else "")
        start += " ENDS"
    return _grammar(style, start, tools, control)


def rest_grammar(style: CallStyle, tools: Sequence[Tool], control: Mapping[str, int]) -> CallGrammar:
    """What follows an opening that the model has written: a call, or a list of them, and what closes it."""
    start = _block(style, MAX_CALLS - 1)
    if style.bare and style.close:
        start = f"{start} | {_LINES} call"
    return _grammar(style, start, tools, control)


def _block(style: CallStyle, more: int) -> str:
    """What follows an opening; `more`: how many calls may be in the same list."""
    if style.listed:
        again = f' ({_SPACE} "," {_LINES} call){{0,{more}}}' if more else ""
        return f'{_SPACE} "[" {_LINES} call{again} {_LINES} "]"'
    return f"{_LINES} call {_LINES} CLOSE" if style.close else f"{_SPACE} call"


def _grammar(style: CallStyle, start: str, tools: Sequence[Tool], control: Mapping[str, int]) -> CallGrammar:
    lines = []
    alternatives = []
    for index, tool in enumerate(tools):
        if style.mark:
            lines += gemma_calls.rules(tool, f"args{index}")
            alternatives.append(f"{json.dumps(f'call:{tool.name}')} args{index}")
            continue
        lines.append(f"args{index}: {json_term(tool.parameters)}")
        if style.named:
            alternatives.append(f'{json.dumps(tool.name)} "[ARGS]" args{index}')
        else:
            alternatives.append(f"{json.dumps(json.dumps(tool.name))} middle args{index}")
    either = " | ".join(alternatives)
    if style.named or style.mark:
        lines.append(f"call: {either}")
    else:
        lines.append(f'call: "{{" {_SPACE} "\\"name\\"" {_SPACE} ":" {_SPACE} ({either}) {_SPACE} "}}"')
        lines.append(f'middle: {_SPACE} "," {_SPACE} "\\"{style.arguments}\\"" {_SPACE} ":" {_SPACE}')
    body = "\n".join(lines)

    ends = [f"<[{control[name]}]>" for name in style.ends if name in control]

    def with_markers(marker: Mapping[str, str], end: str) -> str:
        text = start.replace("OPEN", marker[style.opens[0]]).replace("ENDS", end)
        text = text.replace("CLOSE", marker[style.close]) if style.close else text
        calls = body.replace(ARGS, marker[ARGS_NAME])
        return f"{HEAD}start: {text}\n{calls.replace(gemma_calls.MARK, marker[style.mark]) if style.mark else calls}"

    plain = {text: json.dumps(text) for text in (*style.opens[:1], style.close, style.mark, ARGS_NAME)}
    tokens = {text: f"<[{control[text]}]>" if text in control else literal for text, literal in plain.items()}
    return CallGrammar(with_markers(plain, ""), with_markers(tokens, f"({' | '.join(ends)})?" if ends else ""))


ARGS_NAME: Final = "[ARGS]"
ARGS: Final = '"[ARGS]"'


# ---- what was written -----------------------------------------------------------------------------------------------


class _MalformedError(ValueError):
    """A text that is no call."""


def parse_calls(style: CallStyle, body: str, names: Iterable[str]) -> list[tuple[str, str]] | None:
    """The name and the arguments, as JSON, of each call that a text consists of; None where it is anything else.

    `body` may begin with an opening or without the first one. `names`: the tools that there are.
    """
    known = frozenset(names)
    try:
        calls = list(_named(style, body) if style.named else _objects(style, body))
        if not calls or any(name not in known for name, _ in calls):
            return None
        return [(name, json.dumps(found, ensure_ascii=False, allow_nan=False)) for name, found in calls]
    except (ValueError, RecursionError):
        return None


def _objects(style: CallStyle, body: str) -> Iterable[tuple[str, dict[str, Any]]]:
    between = (*style.opens, *((style.close,) if style.close else ()), *("[", "]", ",") * style.listed)
    at = 0
    while (at := _skip(body, at, between)) < len(body):
        if style.mark:
            call, at = gemma_calls.parse(body, at, style.mark)
            yield call
            continue
        value, at = _DECODER.raw_decode(body, at)
        if not isinstance(value, dict) or not isinstance(name := value.get("name"), str):
            raise _MalformedError
        arguments = value.get("arguments", value.get("parameters"))
        if not isinstance(arguments, dict) or not {"name", "arguments", "parameters", "id", "type"} >= value.keys():
            raise _MalformedError
        yield name, arguments


def _named(style: CallStyle, body: str) -> Iterable[tuple[str, dict[str, Any]]]:
    at = 0
    while (at := _skip(body, at, style.opens)) < len(body):
        brace = body.find("{", at)
        if brace < 0:
            raise _MalformedError
        name = body[at:brace].removesuffix(ARGS_NAME).strip()
        arguments, at = _DECODER.raw_decode(body, brace)
        if not isinstance(arguments, dict):
            raise _MalformedError
        yield name, arguments


def _skip(body: str, at: int, between: Sequence[str]) -> int:
    """The first place from `at` on that is neither a blank nor one of some texts."""
    while at < len(body):
        if body[at].isspace():
            at += 1
        elif found := next((text for text in between if body.startswith(text, at)), None):
            at += len(found)
        else:
            break
    return at


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _MalformedError
    return found


def _no_constant(_: str) -> Any:
    raise _MalformedError


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_distinct, parse_constant=_no_constant)


def tool_calls(calls: Sequence[tuple[str, str]], seed: int, prompt_tokens: int) -> tuple[ToolCall, ...]:
    """Calls with ids: 9 letters and digits, as Mistral's templates want them; the same for the same answer."""
    return tuple(
        ToolCall(_call_id(f"{seed} {prompt_tokens} {index} {name} {arguments}"), name, arguments)
        for index, (name, arguments) in enumerate(calls)
    )


def _call_id(what: str) -> str:
    return "".join(_ID[byte % len(_ID)] for byte in hashlib.sha256(what.encode("utf-8", "replace")).digest()[:9])
