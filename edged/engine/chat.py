"""From a request to prompt tokens: the chat template, or a text as it is."""

from __future__ import annotations

from edged.core.errors import PromptRefused
from edged.core.prompt import Request, Turn
from edged.models.tokenizer.codec import TextCodec, choose_guard
from edged.models.tokenizer.template import ChatTemplate


class PromptEncoder:
    """Turns requests into tokens. `template` None: only raw texts are accepted; `problem` says why, if it is known."""

    def __init__(self, codec: TextCodec, template: ChatTemplate | None, problem: str = "") -> None:
        self._codec = codec
        self._template = template
        self._problem = problem or "This model has no chat template"

    def encode(self, request: Request) -> list[int]:
        """The prompt's tokens. In chat turns, texts that read like control tokens stay texts; `raw` may use them.

        Raises PromptRefused `invalid`.
        """
        if (request.raw is None) == (not request.turns):
            raise PromptRefused("invalid", "prompt", "Give either chat turns or a raw text, not both and not neither.")
        if request.raw is not None:
            return self._codec.begun(self._codec.encode(request.raw, specials=True))
        if self._template is None:
            raise PromptRefused(
                "invalid", "template", f"{self._problem}; send a raw prompt, set model.template or use another model."
            )
        guard = choose_guard(turn.content for turn in request.turns)
        turns = [Turn(turn.role, self._codec.guarded(turn.content, guard)) for turn in request.turns]
        rendered = self._template.render(turns, continue_last=request.continue_last, arrived=request.arrived)
        return self._codec.encode_chat(rendered, guard)
