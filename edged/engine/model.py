"""A loaded model for programs: logits and generation, one thread at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import count

import msgspec
import numpy as np
import numpy.typing as npt

from edged.core.errors import PromptRefused
from edged.core.prompt import MODEL_SAMPLING, Chunk, Final, ModelInfo, Request, Sampling, Started, Turn
from edged.engine.backends.base import MAX_SLICE, Backend, ComputeError, Slice
from edged.engine.engine import Engine, Event
from edged.models.tokenizer.codec import TextCodec


class Model:
    """A model in memory. `engine` computes, on `backend`; use either it or `generate`, not both at once."""

    def __init__(self, engine: Engine, backend: Backend, codec: TextCodec) -> None:
        self.engine = engine
        self.codec = codec
        self.backend = backend
        self._keys = count()
        self._inbox: dict[str, deque[Event]] = {}

    @property
    def info(self) -> ModelInfo:
        """What is loaded."""
        return self.engine.info

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """The logits after each token: float32 [tokens, vocabulary].

        Raises PromptRefused `invalid` for no tokens or ids out of range, `too_long` for more than the context.
        """
        if not tokens or min(tokens) < 0 or max(tokens) >= self.backend.vocabulary:
            raise PromptRefused(
                "invalid", "tokens", f"Give at least one token, each from 0 to {self.backend.vocabulary - 1}."
            )
        if len(tokens) > self.info.context:
            raise PromptRefused(
                "too_long",
                "too_long",
                f"{len(tokens)} tokens do not fit the context of {self.info.context}; give fewer.",
            )
        slot = self.backend.open()
        try:
            rows = []
            for start in range(0, len(tokens), MAX_SLICE):
                (result,) = self.backend.run([Slice(slot, start, tokens[start : start + MAX_SLICE])], every=True)
                if isinstance(result, ComputeError):
                    raise PromptRefused("failed", "compute", f"The model cannot compute this: {result}.")
                rows.append(result)
            return np.concatenate(rows)
        finally:
            self.backend.close(slot)

    def encode(self, prompt: str | Sequence[Turn] | Request) -> list[int]:
        """The tokens that `generate` computes for a prompt. Raises PromptRefused `invalid`."""
        return self.engine.encode(_request(prompt, None))

    def generate(
        self, prompt: str | Sequence[Turn] | Request, sampling: Sampling | None = None
    ) -> Iterator[Chunk | Final]:
        """Answers a prompt: chunks of text, then one final. A text is one turn of the user.

        `sampling` replaces that of a Request. Several generators may be read by turns; closing one cancels its prompt.
        Raises PromptRefused at once, before anything is computed.
        """
        request = _request(prompt, sampling)
        key = f"generate-{next(self._keys)}"
        self.engine.add(key, request)
        self._inbox[key] = deque()
        return self._events(key)

    def _events(self, key: str) -> Iterator[Chunk | Final]:
        inbox = self._inbox[key]
        try:
            while True:
                while not inbox:
                    self._step()
                event = inbox.popleft()
                if not isinstance(event, Started):
                    yield event
                if isinstance(event, Final):
                    return
        finally:
            del self._inbox[key]
            self.engine.cancel(key)

    def _step(self) -> None:
        for key, event in self.engine.step():
            if key in self._inbox:
                self._inbox[key].append(event)


def _request(prompt: str | Sequence[Turn] | Request, sampling: Sampling | None) -> Request:
    if isinstance(prompt, Request):
        return prompt if sampling is None else msgspec.structs.replace(prompt, sampling=sampling, unset=())
    turns = (Turn("user", prompt),) if isinstance(prompt, str) else tuple(prompt)
    return Request(turns=turns, sampling=sampling or Sampling(), unset=() if sampling else MODEL_SAMPLING)
