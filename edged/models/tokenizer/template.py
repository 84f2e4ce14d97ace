"""Chat templates: a model's Jinja code, rendered in a sandbox.

The template is code from whoever made the model. It runs in Jinja's immutable sandbox, may not import, and its source,
its operations and its output are bounded (`template_sandbox`). It may call what
Hugging Face templates expect: `raise_exception`, `strftime_now`, `tojson`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Final

from edged.core.errors import ModelError, PromptRefused
from edged.core.prompt import Turn
from edged.models.tokenizer.template_sandbox import Budget, CountingSandbox, TooMuchError

MAX_SOURCE: Final = 200_000
MAX_EXTRA: Final = 1_000_000  # characters that a template may write beside four times what the turns hold


class ChatTemplate:
    """A compiled chat template. `render` is pure but for the clock that `strftime_now` reads (`now`)."""

    def __init__(self, source: str, names: Mapping[str, str], now: Callable[[], datetime] = datetime.now) -> None:
        self.source = source
        self._names = dict(names)
        if len(source) > MAX_SOURCE:
            raise ModelError("bad_model", f"The chat template has {len(source):,} characters; that is no template.")
        self._sandbox = CountingSandbox()
        self._sandbox.globals["strftime_now"] = lambda form: now().strftime(str(form)[:100])
        try:
            self._template = self._sandbox.from_string(source)
        except Exception as error:
            raise ModelError(
                "bad_model", f"The model's chat template is broken ({error}); use another model."
            ) from error

    def render(self, turns: Sequence[Turn]) -> str:
        """The text of a chat, ready for the assistant to go on. Raises PromptRefused `invalid` for turns it refuses."""
        limit = MAX_EXTRA + 4 * sum(len(turn.content) for turn in turns)
        self._sandbox.budget = Budget(sum(len(turn.content) for turn in turns), limit)
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        pieces: list[str] = []
        try:
            for piece in self._template.generate(
                messages=messages, add_generation_prompt=True, tools=None, documents=None, **self._names
            ):
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
