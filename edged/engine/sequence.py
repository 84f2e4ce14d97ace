"""A sequence: one prompt on its way through the engine. Mutable, owned by the engine alone."""

from __future__ import annotations

from collections.abc import Sequence as Tokens

import numpy as np
import numpy.typing as npt

from edged.core.prompt import LEVELS_PER_PRIORITY, ChosenLogprob, Failure, Final, Reason, Request, Usage
from edged.engine.backends.base import Decoding, Slice
from edged.engine.call_style import tool_calls
from edged.engine.guide import Guide
from edged.engine.logprobs import LogprobRecord
from edged.engine.sampler import Sampler
from edged.engine.speculation import PromptLookup, Proposal
from edged.models.tokenizer.codec import TextCodec


class Sequence:
    """`tokens` are the prompt and what was chosen since; the first `computed` of them are in the cache `slot`.

    `slot_tokens` counts tokens chosen since the slot was given. Times are seconds of the engine's clock.
    """

    def __init__(self, key: str, request: Request, prompt: Tokens[int], guide: Guide) -> None:
        self.key = key
        self.request = request
        self.level = LEVELS_PER_PRIORITY * request.priority  # how urgent it is, 0 first
        self.prompt_length = len(prompt)
        self.tokens = list(prompt)
        self.computed = 0
        self.most_computed = 0  # the most that was ever in its cache
        self.cached = 0  # tokens of the prompt that the cache had from other sequences
        self.slot: int | None = None
        self.slot_tokens = 0
        self.started = False
        self.cancelled = False
        self.started_at: float | None = None
        self.first_token_at: float | None = None
        self.sampler = Sampler(request.sampling, prompt)
        self.lookup = PromptLookup(prompt)
        self.guide = guide
        self.output = guide.output
        self.logprobs = LogprobRecord(request.top_logprobs)

    @property
    def prefilling(self) -> bool:
        """Whether more than the newest token waits to be computed."""
        return len(self.tokens) - self.computed > 1

    @property
    def completion(self) -> int:
        """The number of tokens chosen so far."""
        return len(self.tokens) - self.prompt_length

    @property
    def remaining(self) -> int:
        """How many tokens may still be chosen."""
        return self.request.sampling.max_tokens - self.completion

    @property
    def sampled_by_backend(self) -> bool:
        """Whether the backend may choose its next tokens, a few in one call: the first is out, and nothing but the
        sampling decides."""
        return self.first_token_at is not None and self.guide.is_free and not self.request.logprobs

    @property
    def complete(self) -> bool:
        """Whether nothing more may follow."""
        return self.guide.complete

    def slice(self, count: int, drafts: Tokens[int] = ()) -> Slice:
        """The next `count` tokens to compute, and drafts to follow them."""
        assert self.slot is not None  # noqa: S101 the scheduler gives a slot before it gives work
        return Slice(self.slot, self.computed, self.tokens[self.computed : self.computed + count], drafts)

    def decoding(self, steps: int, watch: bool) -> Decoding:
        """What a backend needs to choose its next `steps` tokens. `watch`: it ends where drafts could follow."""
        assert self.slot is not None  # noqa: S101 the scheduler gives a slot before it gives work
        sampler = self.sampler
        return Decoding(
            slot=self.slot,
            start=self.computed,
            token=self.tokens[-1],
            sampling=self.request.sampling,
            uniforms=sampler.uniforms(steps),
            seen=sampler.seen,
            history=self.lookup.tokens if watch else None,
        )

    def propose(self, most: int) -> Proposal:
        """At most `most` drafts, none past the last token that may still be chosen."""
        most = min(most, self.remaining - 1)
        return Proposal(self.lookup.propose(most), self.lookup.acceptance)

    def sample(self, logits: npt.NDArray[np.float32]) -> int:
        """Chooses and appends the next token from float32 [vocabulary]. Raises BadLogitsError or ConstraintError."""
        token = self.guide.choose(self.sampler, logits)
        if self.request.logprobs:
            self.logprobs.add(self.output.position, logits, token)
        self._append(token)
        return token

    def append_token(self, token: int) -> None:
        """Appends the next token, which a backend chose with the sequence's draw."""
        self.sampler.advance(token)
        self._append(token)

    def _append(self, token: int) -> None:
        self.tokens.append(token)
        self.lookup.append(token)
        self.slot_tokens += 1

    def violation(self, reason: Reason) -> Failure | None:
        """Why an output that ends for this reason may not be returned as an answer: it does not obey."""
        return self.guide.violation(reason)

    def final(self, reason: Reason, now: float, codec: TextCodec, failure: Failure | None = None) -> Final:
        """The outcome at time `now`."""
        started = now if self.started_at is None else self.started_at
        first = now if self.first_token_at is None else self.first_token_at
        return Final(
            reason=reason,
            text=self.output.text,
            usage=Usage(self.prompt_length, self.cached, self.completion),
            seed=self.sampler.seed,
            prefill_ms=(first - started) * 1e3,
            decode_ms=(now - first) * 1e3,
            failure=failure,
            logprobs=self._logprobs(codec),
            tool_calls=tool_calls(self.guide.calls, self.sampler.seed, self.prompt_length),
            reasoning=self.output.reasoning if self.request.reasoning == "show" else None,
        )

    def _logprobs(self, codec: TextCodec) -> tuple[ChosenLogprob, ...]:
        """Those of the tokens of the text; one that ends the answer is none of them."""
        return self.logprobs.of_text(
            lambda position, token: token not in codec.stops and self.output.is_text(position),
            lambda token: codec.written(token).decode("utf-8", "replace") if token < codec.vocabulary else "",
        )
