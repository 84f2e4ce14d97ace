"""Chat templates: a model's Jinja code, rendered in a sandbox.

The template is code from whoever made the model. It runs in Jinja's immutable sandbox, may not import, and its source
and output are bounded. It may call what Hugging Face templates expect: `raise_exception`, `strftime_now`, `tojson`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edged.core.errors import ModelError, PromptRefused
from edged.core.prompt import Turn

MAX_SOURCE: Final = 200_000
MAX_EXTRA: Final = 1_000_000  # characters that a template may write beside four times what the turns hold
MAX_RANGE: Final = 10_000


class ChatTemplate:
    """A compiled chat template. `render` is pure but for the clock that `strftime_now` reads (`now`)."""

    def __init__(self, source: str, names: Mapping[str, str], now: Callable[[], datetime] = datetime.now) -> None:
        self.source = source
        self._names = dict(names)
        if len(source) > MAX_SOURCE:
            raise ModelError("bad_model", f"The chat template has {len(source):,} characters; that is no template.")
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, autoescape=False)
        environment.globals = {
            "namespace": environment.globals["namespace"],
            "dict": dict,
            "range": _range,
            "raise_exception": _raise,
            "strftime_now": lambda form: now().strftime(str(form)),
        }
        environment.filters["tojson"] = _tojson
        try:
            self._template = environment.from_string(source)
        except (TemplateError, RecursionError, ValueError) as error:
            raise ModelError(
                "bad_model", f"The model's chat template is broken ({error}); use another model."
            ) from error

    def render(self, turns: Sequence[Turn]) -> str:
        """The text of a chat, ready for the assistant to go on. Raises PromptRefused `invalid` for turns it refuses."""
        limit = MAX_EXTRA + 4 * sum(len(turn.content) for turn in turns)
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
        except (
            TemplateError,
            ValueError,
            TypeError,
            LookupError,
            ArithmeticError,
            RecursionError,
            AttributeError,
        ) as error:
            raise PromptRefused(
                "invalid", "template", f"The model's chat template refuses these messages: {error}."
            ) from error
        return "".join(pieces)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, without what could make large values from small ones."""

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or (
            operator == "*" and not (isinstance(left, int | float) and isinstance(right, int | float))
        ):
            raise TemplateError(f"the operator {operator} is not allowed here")
        return super().call_binop(context, operator, left, right)

    intercepted_binops = frozenset({"**", "*"})


def _range(*bounds: int) -> range:
    span = range(*bounds)
    if len(span) > MAX_RANGE:
        raise TemplateError(f"a range of {len(span)} is too long")
    return span


def _raise(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)
