"""What decides the next token of a sequence beside the sampling: formats, calls of tools, the end of a thought.

A format begins to hold where the answer begins, after a thought. A call is constrained by the tools' schemas from its
opening on. A thought that has used up its tokens is closed with the model's own tag.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Tokens
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edged.core.prompt import Failure, Reason
from edged.engine.call_style import CallStyle, parse_calls
from edged.engine.constraint import Constraint, ConstraintError
from edged.engine.output import Output
from edged.engine.sampler import Sampler
from edged.models.tokenizer.codec import TextCodec


@dataclass(frozen=True)
class Calls:
    """The calls that are allowed: their form, the tools' names, and a constraint for each call after its opening.

    `rest` None: the whole answer is calls. `ends`: tokens that end an answer behind its calls.
    """

    style: CallStyle
    names: frozenset[str]
    rest: Constraint | None
    ends: frozenset[int] = frozenset()


class Guide:
    """See the module. Mutable, owned by a sequence. `answer`: what the answer obeys. `limit`: tokens of a thought;
    `closing`: the tokens that end one."""

    def __init__(
        self,
        output: Output,
        codec: TextCodec,
        *,
        answer: Constraint | None = None,
        calls: Calls | None = None,
        limit: int | None = None,
        closing: Tokens[int] = (),
    ) -> None:
        self.output = output
        self.calls: list[tuple[str, str]] = []  # names and arguments of those that are complete
        self._codec = codec
        self._answer = answer
        self._allowed = calls
        self._limit = limit
        self._closing = closing
        self._forced: deque[int] = deque()
        self._thought = 0  # tokens of thoughts so far
        self._ended = False
        self._call: Constraint | None = None  # the call that is being written

    @property
    def is_free(self) -> bool:
        """Whether nothing but the sampling decides, whatever comes."""
        return self._answer is None and self._allowed is None and self._limit is None

    @property
    def complete(self) -> bool:
        """Whether nothing more may follow."""
        if self._ended or (self.output.state == "call" and self._allowed is None):  # a call where none is allowed
            return True
        return self._answer is not None and self.output.state != "thought" and self._answer.complete

    def choose(self, sampler: Sampler, logits: npt.NDArray[np.float32]) -> int:
        """The next token from float32 [vocabulary]. Raises BadLogitsError or ConstraintError."""
        if self._forced:
            token = self._forced.popleft()
            sampler.advance(token)
            return token
        constraint = self._constraint
        if constraint is None:
            return sampler.sample(logits)
        token = sampler.sample(constraint.mask(logits))
        constraint.accept(token)
        return token

    def push(self, token: int) -> None:
        """The text of a token that was chosen. Raises ConstraintError for a call that cannot go on."""
        self._ended = self._allowed is not None and token in self._allowed.ends and self.output.state == "text"
        before = self.output.state
        is_marker = token in self.output.marker_ids
        self.output.push(self._codec.written(token) if is_marker else self._codec.token_bytes(token))
        if "thought" in (before, self.output.state):
            self._after_thought_token(ended=self.output.state != "thought")
        if self._allowed is not None and self._allowed.rest is not None:
            self._after_call_token(self._allowed, self._allowed.rest)

    def violation(self, reason: Reason) -> Failure | None:
        """Why what ends for this reason may not be returned: it does not obey, or a call is not complete."""
        if reason not in {"stop", "length"}:
            return None
        if self._allowed is not None and (self._allowed.rest is None or self.output.state == "call"):
            constraint = self._answer if self._allowed.rest is None else self._call
            if self.output.state == "thought" or constraint is None or not constraint.satisfied:
                return Failure(
                    "tool_call_incomplete",
                    "the answer ended within a tool call, or before one; raise max_tokens or shorten the prompt",
                )
            return self._add_calls(self._allowed, self.output.end_call())
        return None if self._answer is None else self._answer.violation(self.output.text)

    @property
    def _constraint(self) -> Constraint | None:
        if self._call is not None:
            return self._call
        return None if self.output.state == "thought" else self._answer

    def _after_thought_token(self, *, ended: bool) -> None:
        self._thought += 1
        if ended:
            if self._answer is not None:  # the token that closed the thought may have begun the answer
                self._feed(self._answer, (self.output.text or self.output.call).strip())
        elif self._limit is not None and self._thought >= self._limit and not self._forced:
            self._forced.extend(self._closing)

    def _after_call_token(self, allowed: Calls, rest: Constraint) -> None:
        if self.output.state == "call" and self._call is None:
            self._call = rest.copy()
            try:
                self._feed(self._call, self.output.call)
            except ConstraintError:  # what came in one token with the opening is left out
                self._call = rest.copy()
                self.output.drop_call()
        if self._call is not None and self._call.complete:
            self._call = None
            if (failure := self._add_calls(allowed, self.output.end_call())) is not None:
                raise ConstraintError(failure)

    def _feed(self, constraint: Constraint, text: str) -> None:
        """What was written before a constraint began to hold."""
        for token in self._codec.encode(text, specials=False):
            constraint.accept(token)

    def _add_calls(self, allowed: Calls, body: str) -> Failure | None:
        found = parse_calls(allowed.style, body, allowed.names)
        if found is None:
            return Failure("tool_call", "the model wrote a tool call that cannot be read; send the prompt again")
        self.calls += found
        return None
