"""A sequence: one prompt on its way through the engine. Mutable, owned by the engine alone."""

from __future__ import annotations

from collections.abc import Sequence as Tokens

from edged.core.prompt import Final, Reason, Request, Usage
from edged.engine.backends.base import Slice
from edged.engine.detokenizer import TextStream
from edged.engine.sampler import Sampler


class Sequence:
    """`tokens` are the prompt and what was chosen since; the first `computed` of them are in the cache `slot`.

    `served` counts tokens chosen since the slot was given. `began` and `first` are seconds of the engine's clock.
    """

    def __init__(self, key: str, request: Request, prompt: Tokens[int]) -> None:
        self.key = key
        self.request = request
        self.prompt_length = len(prompt)
        self.tokens = list(prompt)
        self.computed = 0
        self.cached = 0  # tokens of the prompt that the cache held when it began
        self.slot: int | None = None
        self.served = 0
        self.started = False
        self.cancelled = False
        self.began: float | None = None
        self.first: float | None = None
        self.sampler = Sampler(request.sampling, prompt)
        self.stream = TextStream(request.sampling.stop)

    @property
    def prefilling(self) -> bool:
        """Whether more than the newest token waits to be computed."""
        return len(self.tokens) - self.computed > 1

    @property
    def completion(self) -> int:
        """The number of tokens chosen so far."""
        return len(self.tokens) - self.prompt_length

    def slice(self, count: int) -> Slice:
        """The next `count` tokens to compute."""
        assert self.slot is not None  # noqa: S101 the scheduler gives a slot before it gives work
        return Slice(self.slot, self.computed, self.tokens[self.computed : self.computed + count])

    def final(self, reason: Reason, now: float) -> Final:
        """The outcome at time `now`."""
        began = now if self.began is None else self.began
        first = now if self.first is None else self.first
        return Final(
            reason=reason,
            text=self.stream.text,
            usage=Usage(self.prompt_length, self.cached, self.completion),
            seed=self.sampler.seed,
            prefill_ms=(first - began) * 1e3,
            decode_ms=(now - first) * 1e3,
        )
