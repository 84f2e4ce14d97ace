"""From a request to prompt tokens, and to what divides its output: the chat template, or a text as it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edged.core.errors import PromptRefused
from edged.core.prompt import Format, Request, Tool, Turn
from edged.engine.call_style import CallStyle, rest_grammar, whole_grammar
from edged.engine.constraint import CallGrammar
from edged.engine.dialect import Dialect, Thinking
from edged.engine.output import NO_MARKERS, Markers
from edged.models.tokenizer.codec import TextCodec, choose_guard
from edged.models.tokenizer.template import ChatTemplate, Message

_NO_TOOLS = "This model's chat template knows no tools; leave tools and tool turns out, or use a model made for them."
_NO_STYLE = "This version cannot read the form in which this model calls tools; leave tools out, or use another model."
_NO_RESULTS = "This model's chat template knows no results of tools; leave turns of the role tool out."
_NO_THINKING = "This model's chat template knows no thinking; leave reasoning and reasoning_tokens out."


@dataclass(frozen=True)
class Prepared:
    """`tokens` of the prompt, and what divides the output. `thinking`: the prompt has opened a thought.

    `style`: the form of calls, where calls are allowed.
    """

    tokens: list[int]
    markers: Markers = NO_MARKERS
    thinking: bool = False
    style: CallStyle | None = None
    closing: tuple[int, ...] = ()


class PromptEncoder:
    """Turns requests into tokens. `template` None: only raw texts are accepted; `problem` says why, if it is known."""

    def __init__(self, codec: TextCodec, template: ChatTemplate | None, problem: str = "") -> None:
        self._codec = codec
        self._template = template
        self._problem = problem or "This model has no chat template"
        self._dialect = None if template is None else Dialect(template)

    def encode(self, request: Request) -> list[int]:
        """The prompt's tokens. In chat turns, texts that read like control tokens stay texts; `raw` may use them.

        Raises PromptRefused `invalid`.
        """
        return self.prepare(request).tokens

    def encode_text(self, text: str, *, ended: bool) -> list[int]:
        """The tokens of a text for a vector; `ended`: behind it comes the token that ends a text, if there is one."""
        end = self._codec.control.get(self._codec.names.get("eos_token", "")) if ended else None
        tokens = self._codec.begun(self._codec.encode(text, specials=False))
        return tokens if end is None else [*tokens, end]

    def wanted(self, request: Request) -> Format | CallGrammar | None:
        """What the answer, or a call of a tool, must obey. Raises PromptRefused `invalid`."""
        if not request.tools or request.tool_choice == "none":
            return request.format
        style = self._style(request)
        if request.tool_choice == "auto":
            return rest_grammar(style, request.tools, self._codec.control)
        tools = [tool for tool in request.tools if request.tool_name in (None, tool.name)]
        return whole_grammar(style, tools, self._codec.control, single=request.tool_name is not None)

    def prepare(self, request: Request) -> Prepared:
        """The prompt's tokens, and what divides the output. Raises PromptRefused `invalid`."""
        if (request.raw is None) == (not request.turns):
            raise PromptRefused("invalid", "prompt", "Give either chat turns or a raw text, not both and not neither.")
        if request.raw is not None:
            self._check_raw(request)
            return Prepared(self._codec.begun(self._codec.encode(request.raw, specials=True)))
        if self._template is None or self._dialect is None:
            raise PromptRefused(
                "invalid", "template", f"{self._problem}; send a raw prompt, set model.template or use another model."
            )
        return self._prepare_chat(request, self._template, self._dialect)

    def _check_raw(self, request: Request) -> None:
        if request.tools:
            raise PromptRefused("invalid", "tools", "Tools need chat turns; leave raw or tools out.")
        if request.reasoning != "auto" or request.reasoning_tokens is not None:
            raise PromptRefused("invalid", "reasoning", "A raw text has no thought; leave raw, or reasoning, out.")

    def _prepare_chat(self, request: Request, template: ChatTemplate, dialect: Dialect) -> Prepared:
        thinking = dialect.thinking
        if thinking is None and (request.reasoning == "show" or request.reasoning_tokens is not None):
            raise PromptRefused("invalid", "reasoning", _NO_THINKING)
        has_calls = any(turn.role == "tool" or turn.tool_calls for turn in request.turns)
        style = self._style(request) if request.tools or has_calls else None
        if style and dialect.result_role is None and any(turn.role == "tool" for turn in request.turns):
            raise PromptRefused("invalid", "tools", _NO_RESULTS)
        guard = choose_guard(_strings(request))
        guarded = lambda text: self._codec.guarded(text, guard)  # noqa: E731
        messages = messages_of(
            request.turns,
            guarded,
            style=None if dialect.writes_calls else style,
            result_role=(has_calls and dialect.result_role) or "tool",
        )
        tools = [tool_document(tool, guarded) for tool in request.tools] if request.tool_choice != "none" else []
        rendered = template.render(
            messages,
            tools=tools or None,
            continue_last=request.continue_last,
            arrived=request.arrived,
            **_switch(thinking, request),
        )
        constrained = request.format is not None or (bool(tools) and request.tool_choice == "required")
        rendered, opened = _with_thought(rendered, thinking, request, constrained=constrained)
        tags = None if thinking is None or (constrained and not opened) else (thinking.opens, thinking.closes)
        # Where calls are not allowed, the openings are known all the same: an answer ends there.
        called = style if style is not None and request.tool_choice != "required" and not constrained else None
        markers = Markers(tags, called.opens if called else (), bool(tools) and called is not None and called.bare)
        named = "\n".join(_names(markers, style))
        ids = frozenset(token for name, token in self._codec.control.items() if len(name) > 1 and name in named)
        closing = self._codec.encode(f"\n{thinking.closes}\n\n", specials=True) if thinking else []
        return Prepared(
            self._codec.encode_chat(rendered, guard),
            Markers(markers.thought, markers.calls, markers.bare, ids),
            opened,
            style if tools else None,
            tuple(closing),
        )

    def _style(self, request: Request) -> CallStyle:
        """Raises PromptRefused `invalid` for a model whose template knows no tools, or that calls them otherwise."""
        if request.raw is not None:
            self._check_raw(request)
        if self._dialect is None or not self._dialect.knows_tools:
            raise PromptRefused("invalid", "tools", _NO_TOOLS)
        if self._dialect.style is None:
            raise PromptRefused("invalid", "tools", _NO_STYLE)
        return self._dialect.style


def _names(markers: Markers, style: CallStyle | None) -> Iterator[str]:
    yield from markers.thought or ()
    if style is not None:
        yield from (*style.opens, style.close, style.mark, "[ARGS]")


def _switch(thinking: Thinking | None, request: Request) -> dict[str, Any]:
    """The template's own variable that allows a thought, where the prompt says whether it may have one."""
    if thinking is None or thinking.switch is None or request.reasoning == "auto":
        return {}
    return {thinking.switch: request.reasoning == "show"}


def _with_thought(rendered: str, thinking: Thinking | None, request: Request, *, constrained: bool) -> tuple[str, bool]:
    """The rendered chat, and whether it ends within a thought.

    A template without a switch gets an empty thought where none is wanted. An answer that is `constrained` from its
    beginning gets its thought opened where one is to be shown, since the model could not open it.
    """
    if thinking is None:
        return rendered, False
    if request.continue_last:
        last = request.turns[-1].content
        return rendered, last.rfind(thinking.opens) > last.rfind(thinking.closes)
    opened = rendered.rstrip().endswith(thinking.opens)
    if request.reasoning == "off":
        if opened:
            return f"{rendered.rstrip()}\n\n{thinking.closes}\n\n", False
        if thinking.switch is None:
            return f"{rendered}{thinking.opens}\n\n{thinking.closes}\n\n", False
    elif request.reasoning == "show" and constrained and not opened:
        return f"{rendered}{thinking.opens}\n", True
    return rendered, opened


def messages_of(
    turns: Sequence[Turn], guarded: Callable[[str], str], *, style: CallStyle | None, result_role: str
) -> list[Message]:
    """Turns as templates see them. `guarded` is applied to every text of them.

    `style`: calls are part of the content in this form, for a template that leaves them out. `result_role`: that of
    turns with results of tools.
    """
    names = {call.id: call.name for turn in turns for call in turn.tool_calls}
    messages: list[Message] = []
    for turn in turns:
        message: dict[str, Any] = {"role": turn.role, "content": guarded(turn.content)}
        calls = [(guarded(call.name), _guarded(json.loads(call.arguments), guarded)) for call in turn.tool_calls]
        if turn.tool_calls and style is not None:
            written = style.written([(name, json.dumps(found, ensure_ascii=False)) for name, found in calls])
            message["content"] = f"{message['content']}\n{written}" if turn.content else written
        elif turn.tool_calls:
            message["tool_calls"] = [
                {"id": guarded(call.id), "type": "function", "function": {"name": name, "arguments": arguments}}
                for call, (name, arguments) in zip(turn.tool_calls, calls, strict=True)
            ]
        if turn.role == "tool":
            message["role"] = result_role
            message["tool_call_id"] = guarded(turn.tool_call_id)
            message["name"] = guarded(names.get(turn.tool_call_id, ""))
        messages.append(message)
    return messages


def tool_document(tool: Tool, guarded: Callable[[str], str]) -> dict[str, Any]:
    """A tool as templates see it: OpenAI's shape."""
    function: dict[str, Any] = {"name": guarded(tool.name), "description": guarded(tool.description)}
    function["parameters"] = _guarded(json.loads(tool.parameters), guarded)
    return {"type": "function", "function": function}


def _guarded(value: Any, guarded: Callable[[str], str]) -> Any:
    """A JSON value with every text in it guarded, keys among them."""
    if isinstance(value, str):
        return guarded(value)
    if isinstance(value, list):
        return [_guarded(one, guarded) for one in value]
    if isinstance(value, dict):
        return {guarded(key): _guarded(one, guarded) for key, one in value.items()}
    return value


def _strings(request: Request) -> Iterator[str]:
    """Every text of a request that a template may write, also as JSON spells it."""
    for turn in request.turns:
        yield turn.content
        yield turn.tool_call_id
        for call in turn.tool_calls:
            yield from (call.id, call.name, call.arguments, json.dumps(json.loads(call.arguments), ensure_ascii=False))
    for tool in request.tools:
        yield from (tool.name, tool.description, json.dumps(json.loads(tool.parameters), ensure_ascii=False))
