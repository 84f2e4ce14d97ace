"""What a model's chat template knows beside turns: tools, and thinking. Found out by rendering, when first needed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from edged.core.errors import PromptRefused
from edged.engine.call_style import CallStyle, detect
from edged.models.tokenizer.template import ChatTemplate

# The tags between which models think, as their templates and vocabularies write them.
_TAGS: Final = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<|channel>thought", "<channel|>"),
    ("Here is my thought process:", "Here is my response:"),
)
_SWITCHES: Final = ("enable_thinking", "thinking", "enable_reasoning", "think")
_NAME: Final = "probe_tool"
_PLACE: Final = "probe-place"
_RESULT: Final = "probe-result"
_TOOL: Final = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "A probe.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
_HELLO: Final = {"role": "user", "content": "Hello"}
_CALL: Final = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "aaaaaaaaa", "type": "function", "function": {"name": _NAME, "arguments": {"place": _PLACE}}}
    ],
}
_RESULT_ROLES: Final = ("tool", "tool_response", "tool_results", "ipython")
_ANSWER: Final = {"role": "tool", "content": _RESULT, "tool_call_id": "aaaaaaaaa", "name": _NAME}


@dataclass(frozen=True)
class Thinking:
    """`opens` and `closes` are the tags of a thought. `switch`: the template's variable that allows one, if any."""

    opens: str
    closes: str
    switch: str | None


class Dialect:
    """See the module. Pure but for rendering; owned by the engine's thread."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._source = "\n".join(template.sources.values())

    @cached_property
    def knows_tools(self) -> bool:
        """Whether a tool is part of what the template makes of a chat."""
        return _NAME in self._rendered([_HELLO], tools=[_TOOL])

    @cached_property
    def writes_calls(self) -> bool:
        """Whether the template writes the calls of earlier turns itself."""
        return _PLACE in self._rendered([_HELLO, _CALL, _ANSWER], tools=[_TOOL])

    @cached_property
    def result_role(self) -> str | None:
        """The role by which the template knows turns with results of tools; None where it knows none."""
        call = _CALL if self.writes_calls else {"role": "assistant", "content": _PLACE}
        for role in _RESULT_ROLES:
            if _RESULT in self._rendered([_HELLO, call, {**_ANSWER, "role": role}], tools=[_TOOL]):
                return role
        return None

    @cached_property
    def style(self) -> CallStyle | None:
        """The form in which the model writes calls; None for a template without tools, or one of another form."""
        if not self.knows_tools:
            return None
        tools = self._rendered([_HELLO], tools=[_TOOL])
        return detect(self._source, tools, self._rendered([_HELLO, _CALL, _ANSWER], tools=[_TOOL]))

    @cached_property
    def thinking(self) -> Thinking | None:
        """How the model thinks; None where the template says nothing of it."""
        tags = next((pair for pair in _TAGS if pair[1] in self._source), None)
        return None if tags is None else Thinking(*tags, self._switch())

    def _switch(self) -> str | None:
        for name in _SWITCHES:
            if re.search(rf"\b{name}\b", self._source):
                on, off = (self._rendered([_HELLO], tools=None, **{name: value}) for value in (True, False))
                if on != off:
                    return name
        return None

    def _rendered(self, messages: list[dict[str, Any]], **variables: Any) -> str:
        """What the template makes of a chat; nothing where it refuses it."""
        try:
            return self._template.render(messages, **variables)
        except PromptRefused:
            return ""
