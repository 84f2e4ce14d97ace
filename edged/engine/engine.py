"""The engine: sequences in, text out, a bounded piece of work at a time.

One thread owns an engine. `step` reads as one sentence: schedule a batch, run it, sample, hand on what is new, retire
what is done.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from itertools import zip_longest

from edged.core.errors import PromptRefused
from edged.core.prompt import Chunk, Failure, Final, ModelInfo, Reason, Request, Sampling, Started
from edged.engine.backends.base import Backend, ComputeError, Logits
from edged.engine.chat import PromptEncoder
from edged.engine.constraint import ConstraintError, FormatCompiler
from edged.engine.sampler import SEEDS, BadLogitsError
from edged.engine.scheduler import Scheduler, Work
from edged.engine.sequence import Sequence
from edged.engine.speculation import Speculation
from edged.models.tokenizer.codec import TextCodec

Event = Started | Chunk | Final
Events = list[tuple[str, Event]]


class Engine:
    """Computes many sequences in turns. `clock` gives seconds and never goes back."""

    def __init__(
        self,
        info: ModelInfo,
        backend: Backend,
        codec: TextCodec,
        encoder: PromptEncoder,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.info = info
        self._backend = backend
        self._codec = codec
        self._encoder = encoder
        self._formats = FormatCompiler(codec)
        self._clock = clock
        self._stops = array("i", sorted(codec.stops))
        self._hurry = array("i", [0])
        self._speculation = Speculation()
        self._scheduler = Scheduler(backend, self._speculation)
        self._sequences: dict[str, Sequence] = {}
        self._begun: list[Work] = []  # a batch that was announced and is computed by the next step

    @property
    def busy(self) -> bool:
        """Whether `step` has work."""
        return bool(self._sequences)

    def encode(self, request: Request) -> list[int]:
        """The tokens of a prompt. Raises PromptRefused `invalid`."""
        return self._encoder.encode(request)

    def add(self, key: str, request: Request) -> None:
        """Takes a request in under a key that is not in use.

        Raises PromptRefused `too_long` for a prompt that fills the context alone, `invalid` for what cannot be run.
        """
        if key in self._sequences:
            raise PromptRefused("invalid", "key", f"A prompt {key} is being answered already; use another id.")
        check_sampling(request.sampling)
        prompt = self.encode(request)
        if not prompt:
            raise PromptRefused("invalid", "prompt", "The prompt is empty; give it some text.")
        if len(prompt) >= self.info.context:
            raise PromptRefused(
                "too_long",
                "too_long",
                f"The prompt has {len(prompt)} tokens but the context holds {self.info.context}; "
                "shorten it or set a larger model.context.",
            )
        if max(prompt) >= self._backend.vocabulary:
            raise PromptRefused("invalid", "prompt", "The prompt has tokens that the model does not know; change it.")
        if request.format is not None and request.sampling.stop:
            raise PromptRefused("invalid", "format", "Give either a format or stop texts, not both.")
        constraint = None if request.format is None else self._formats.compile(request.format)
        self._sequences[key] = sequence = Sequence(key, request, prompt, constraint)
        self._scheduler.add(sequence)

    def cancel(self, key: str) -> None:
        """Ends a sequence with its text so far; its final comes out of the next step. An unknown key is ignored."""
        sequence = self._sequences.get(key)
        if sequence:
            sequence.cancelled = True

    def interrupt(self) -> None:
        """Ends a step of several tokens after the one it is computing: there is something new. For any thread."""
        self._hurry[0] = 1

    def step(self) -> Events:
        """One bounded piece of work: a token for each that decodes, or a few, and a chunk of a prompt.

        A step that begins a sequence only says so (`Started`): should its first work end the process, it is known whose
        work that was.
        """
        events: Events = []
        for sequence in [sequence for sequence in self._sequences.values() if sequence.cancelled]:
            events += self._retire(sequence, "cancelled")
        batch = [work for work in self._begun or self._scheduler.schedule() if work.sequence.key in self._sequences]
        self._begun = []
        if fresh := [work.sequence for work in batch if not work.sequence.started]:
            self._begun = batch
            return events + [self._start(sequence) for sequence in fresh]
        if not batch:
            return events
        prefilled, begun = sum(work.tokens for work in batch if work.sequence.prefilling), self._clock()
        if decoded := self._decode(batch):
            for work, tokens in zip(batch, decoded, strict=True):
                events += self._take_chosen(work.sequence, tokens)
            self._speculation.measured(len(batch), self._clock() - begun, len(decoded[0]))
            return events
        results = self._run(batch)
        for work, result in zip(batch, results, strict=True):
            sequence = work.sequence
            sequence.computed += work.tokens
            if isinstance(result, ComputeError):
                failure = Failure(
                    "compute", f"the model could not compute this ({result}); send it again or shorten it"
                )
                events += self._retire(sequence, "failed", failure)
            elif sequence.computed == len(sequence.tokens):
                events += self._take(work, result)
        took = self._clock() - begun
        if prefilled:
            replies = self._speculation.seconds(len(batch) - 1) or 0.0
            self._scheduler.prefilled(prefilled, took - replies)
        else:
            rows = sum(1 if isinstance(result, ComputeError) else len(result) for result in results)
            self._speculation.measured(rows, took)
        return events

    def _decode(self, batch: list[Work]) -> list[list[int]]:
        """The tokens that the backend chose for each, in one step or a few; [] where `_run` is to give logits."""
        if not batch[0].steps:
            return []
        sequences = [work.sequence.decoding(work.steps, work.watch) for work in batch]
        decoded = self._backend.decode(sequences, batch[0].steps, self._stops, self._hurry)
        self._hurry[0] = 0  # who asks first makes known what is new, which is looked at before the next step
        return decoded

    def _take_chosen(self, sequence: Sequence, tokens: list[int]) -> Events:
        """Takes tokens that the backend chose, up to one that ends the sequence."""
        events: Events = []
        for token in tokens:
            sequence.computed += 1
            sequence.take(token)
            events += self._follow(sequence, token)
            if sequence.slot is None:
                break
        return events

    def _run(self, batch: list[Work]) -> list[Logits | ComputeError]:
        return self._backend.run([work.sequence.slice(work.tokens, work.drafts) for work in batch])

    def _take(self, work: Work, logits: Logits) -> Events:
        """Chooses tokens after what was computed: one, and one more after each draft that was chosen."""
        sequence, events = work.sequence, []
        for row, draft in zip_longest(logits, work.drafts[: len(logits) - 1]):
            events += self._sample(sequence, row)
            if sequence.slot is None or sequence.tokens[-1] != draft:
                break
            self._backend.keep(sequence.slot, draft)
            sequence.computed += 1
        return events

    def _start(self, sequence: Sequence) -> tuple[str, Event]:
        sequence.started = True
        sequence.began = self._clock()
        return sequence.key, Started()

    def _sample(self, sequence: Sequence, logits: Logits) -> Events:
        """Chooses a sequence's next token from [vocabulary]."""
        try:
            token = sequence.choose(logits)
        except BadLogitsError:
            return self._retire(sequence, "failed")
        except ConstraintError as error:
            return self._retire(sequence, "failed", error.failure)
        return self._follow(sequence, token)

    def _follow(self, sequence: Sequence, token: int) -> Events:
        """Hands on the text of a token that was chosen, and retires the sequence that it ends."""
        if sequence.first is None:
            sequence.first = self._clock()
        if token in self._codec.stops:
            return self._retire(sequence, "stop")
        events = self._hand_on(sequence, sequence.stream.push(self._codec.token_bytes(token)))
        if sequence.stream.stopped or sequence.complete:
            return events + self._retire(sequence, "stop")
        if sequence.completion >= sequence.request.sampling.max_tokens or len(sequence.tokens) >= self.info.context:
            return events + self._retire(sequence, "length")
        return events

    def _hand_on(self, sequence: Sequence, text: str) -> Events:
        return [(sequence.key, Chunk(at=len(sequence.stream.text) - len(text), text=text))] if text else []

    def _retire(self, sequence: Sequence, reason: Reason, failure: Failure | None = None) -> Events:
        events = self._hand_on(sequence, sequence.stream.finish())
        if (disobeyed := sequence.verdict(reason)) is not None:
            reason, failure = "failed", disobeyed
        self._scheduler.retire(sequence)
        del self._sequences[sequence.key]
        return [*events, (sequence.key, sequence.final(reason, self._clock(), failure))]


def check_sampling(sampling: Sampling) -> None:
    """Raises PromptRefused `invalid` for values out of range (a program may not have checked them)."""
    checks = {
        "max_tokens of at least 1": sampling.max_tokens >= 1,
        "temperature from 0 to 5": 0 <= sampling.temperature <= 5,
        "top_k of at least 0": sampling.top_k >= 0,
        "top_p from 0 to 1": 0 <= sampling.top_p <= 1,
        "min_p from 0 to 1": 0 <= sampling.min_p <= 1,
        "repetition_penalty from 0.5 to 2": 0.5 <= sampling.repetition_penalty <= 2,
        "seed from 0 to 2^53 - 1": sampling.seed is None or 0 <= sampling.seed < SEEDS,
        "stop of at most 8 texts, none empty": len(sampling.stop) <= 8 and all(sampling.stop),
    }
    wrong = [words for words, holds in checks.items() if not holds]
    if wrong:
        raise PromptRefused("invalid", "sampling", f"Give a {wrong[0]}.")
