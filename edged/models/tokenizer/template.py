"""Chat templates: a model's Jinja code, rendered in a sandbox as transformers' `apply_chat_template` renders it.

The template is code from whoever made the model. It runs in Jinja's immutable sandbox, may not import, and its source,
its operations and its output are bounded (`template_sandbox`). It may call what
Hugging Face templates expect: `raise_exception`, `strftime_now`, `tojson`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import count
from typing import Any, Final

from jinja2 import Template

from edged.core.errors import ModelError, PromptRefused
from edged.core.prompt import Turn
from edged.models.tokenizer.template_budget import Budget, RaisedError, TooMuchError, size_of
from edged.models.tokenizer.template_sandbox import CountingSandbox

MAX_SOURCE: Final = 200_000
MAX_EXTRA: Final = 1_000_000  # characters that a template may write beside four times what it is given
DEFAULT: Final = "default"

Message = Mapping[str, Any]
"""A turn as templates see it: `role`, `content`, and what else the turn has."""


class ChatTemplate:
    """A compiled chat template, or several by name: `tool_use` is for prompts with tools, `rag` for those with
    documents, `default` for others. `names`: the texts of special tokens (`bos_token`).

    `render` is pure but for the clock `now`, which `strftime_now` reads for a prompt whose arrival is not known.
    Raises ModelError `bad_model`.
    """

    def __init__(
        self,
        source: str | Mapping[str, str],
        names: Mapping[str, str],
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.sources = {DEFAULT: source} if isinstance(source, str) else dict(source)
        # GGUF files have other names for two of them.
        aliases = {"unk_token": "unknown_token", "pad_token": "padding_token"}
        self._names = {name: names[other] for name, other in aliases.items() if other in names} | dict(names)
        self._now = now
        self._at: datetime | None = None
        self._sandbox = CountingSandbox()
        self._sandbox.globals["strftime_now"] = self._strftime_now
        self._templates = {name: self._compiled(text) for name, text in self.sources.items()}

    def render(
        self,
        turns: Sequence[Turn | Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_last: bool = False,
        arrived: float | None = None,
        **variables: Any,
    ) -> str:
        """The text of a chat, ready for the assistant to go on.

        `tools` and `documents` in the shapes of transformers; `arrived`: the prompt's Unix time, for templates that
        write the date; `variables`: what else the template reads (`enable_thinking`). `continue_last`: the text ends
        with the last turn, which goes on. A system turn that the template refuses goes before the first user's text.
        Raises PromptRefused `invalid` for turns that the template refuses, `failed` for a template that is stopped.
        """
        messages = [message_of(turn) for turn in turns]
        given = {**self._names, **variables, "tools": tools, "documents": documents}
        given["add_generation_prompt"] = add_generation_prompt and not continue_last
        self._at = None if arrived is None else datetime.fromtimestamp(arrived)
        template = self._template_for(tools, documents)
        render = self._continued if continue_last else self._rendered
        try:
            return render(template, messages, given)
        except PromptRefused as refusal:
            merged = without_system(messages) if isinstance(refusal.__cause__, RaisedError) else None
            if merged is None:
                raise
            try:
                return render(template, merged, given)
            except PromptRefused:
                raise refusal from None

    def _compiled(self, source: str) -> Template:
        if len(source) > MAX_SOURCE:
            raise ModelError("bad_model", f"The chat template has {len(source):,} characters; that is no template.")
        try:
            return self._sandbox.from_string(source)
        except Exception as error:
            raise ModelError(
                "bad_model", f"The model's chat template is broken ({error}); use another model."
            ) from error

    def _strftime_now(self, form: object) -> str:
        return (self._at or self._now()).strftime(str(form)[:100])

    def _template_for(self, tools: Any, documents: Any) -> Template:
        for name, wanted in (("tool_use", tools), ("rag", documents), (DEFAULT, True)):
            if wanted and name in self._templates:
                return self._templates[name]
        return next(iter(self._templates.values()))

    def _continued(self, template: Template, messages: list[dict[str, Any]], given: Mapping[str, Any]) -> str:
        """The text up to where the last turn's text ends; blanks before that are dropped where the template does."""
        last = messages[-1] if messages else {}
        if last.get("role") != "assistant" or not isinstance(last.get("content"), str):
            raise PromptRefused("invalid", "template", "Only a last turn of the assistant with text can be continued.")
        texts = "".join(str(message.get("content")) for message in messages)
        mark = next(mark for number in count() if (mark := f"CONTINUED{number}HERE") not in texts)
        marked = [*messages[:-1], {**last, "content": f"{last['content']}{mark} "}]
        rendered = self._rendered(template, marked, given)
        end = rendered.rfind(mark)
        if end < 0:
            raise PromptRefused("invalid", "template", "The model's chat template leaves the last turn's text out.")
        return rendered[:end] if rendered.startswith(f"{mark} ", end) else rendered[:end].rstrip()

    def _rendered(self, template: Template, messages: list[dict[str, Any]], given: Mapping[str, Any]) -> str:
        size = size_of(messages) + size_of(given)
        limit = MAX_EXTRA + 4 * size
        self._sandbox.budget = Budget(size, limit)
        pieces: list[str] = []
        try:
            for piece in template.generate(messages=messages, **given):
                pieces.append(piece)
                limit -= len(piece)
                if limit < 0:
                    raise PromptRefused(
                        "failed", "template", "The model's chat template writes without end; use another model."
                    )
        except PromptRefused:
            raise
        except TooMuchError as error:
            raise PromptRefused(
                "failed",
                "template",
                f"The model's chat template was stopped because it exceeded a limit ({error}); use another model.",
            ) from error
        except Exception as error:  # the template is foreign code: whatever it raises is its refusal
            raise PromptRefused(
                "invalid", "template", f"The model's chat template refuses these messages: {error}."
            ) from error
        return "".join(pieces)


def message_of(turn: Turn | Message) -> dict[str, Any]:
    """A turn as templates see it."""
    return {"role": turn.role, "content": turn.content} if isinstance(turn, Turn) else dict(turn)


def without_system(messages: Sequence[Message]) -> list[dict[str, Any]] | None:
    """The same chat with a first system turn's text before that of the first user turn; None where it has none."""
    if len(messages) < 2 or messages[0].get("role") != "system" or messages[1].get("role") != "user":
        return None
    system, user = messages[0].get("content"), messages[1].get("content")
    if not isinstance(system, str) or not isinstance(user, str):
        return None
    return [{**messages[1], "content": f"{system}\n\n{user}"}, *map(dict, messages[2:])]
