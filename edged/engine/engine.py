"""The engine: sequences in, text out, a bounded piece of work at a time.

One thread owns an engine. A step schedules a batch, computes it, applies the results (samples, emits what is new,
retires what is finished), and observes what it cost.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import zip_longest

import msgspec

from edged.core.errors import PromptRefused
from edged.core.prompt import LEVELS_PER_PRIORITY, Chunk, Failure, Final, ModelInfo, Reason, Request, Sampling, Started
from edged.engine.backends.base import Backend, ComputeError, Logits
from edged.engine.chat import Prepared, PromptEncoder
from edged.engine.constraint import ConstraintError, FormatCompiler, Wanted
from edged.engine.embeddings import Embeddings
from edged.engine.guide import Calls, Guide
from edged.engine.output import Output
from edged.engine.sampler import SEEDS, BadLogitsError
from edged.engine.scheduler import Batch, Scheduler, Work
from edged.engine.sequence import Sequence
from edged.engine.speculation import Speculation
from edged.models.formats.pooling import MEAN, Pooling
from edged.models.tokenizer.codec import TextCodec

Event = Started | Chunk | Final
Result = list[int] | Logits | ComputeError
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
        pooling: Pooling = MEAN,
    ) -> None:
        self.info = info
        self._backend = backend
        self._codec = codec
        self._encoder = encoder
        self._formats = FormatCompiler(codec)
        self._clock = clock
        self._stops = array("i", sorted(codec.stops))
        self._interrupt = array("i", [0])
        self._speculation = Speculation()
        self._scheduler = Scheduler(backend, self._speculation)
        self._sequences: dict[str, Sequence] = {}
        self._embeddings = Embeddings(backend, pooling, clock)
        self._announced: Batch | None = None  # computed by the next step

    @property
    def busy(self) -> bool:
        """Whether `step` has work."""
        return bool(self._sequences) or self._embeddings.busy

    def encode(self, request: Request) -> list[int]:
        """The tokens of a prompt. Raises PromptRefused `invalid`."""
        return self._encoder.encode(request)

    def wanted(self, request: Request) -> Wanted | None:
        """What the answer to a request must obey, in whole or in part. Raises PromptRefused `invalid`."""
        return self._encoder.wanted(request)

    def is_checked(self, wanted: Wanted) -> bool:
        """Whether `add` with this format is quick. For any thread."""
        return self._formats.is_checked(wanted)

    def check_format(self, wanted: Wanted) -> None:
        """Check a format ahead of `add`, which may take seconds. For any thread. Raises PromptRefused as `add` does."""
        self._formats.check(wanted)

    def add(self, key: str, request: Request, level: int | None = None) -> None:
        """Queues a request under a key that is not in use. `level`: how urgent it is, 0 first; None: by its priority.

        Raises PromptRefused `too_long` for a prompt that fills the context alone, `invalid` for what cannot be run.
        """
        if key in self._sequences or key in self._embeddings:
            raise PromptRefused("invalid", "key", f"A prompt {key} is being answered already; use another id.")
        if request.embed:
            self._add_embedding(key, request, level)
            return
        request = self._with_own_sampling(request)
        check_sampling(request.sampling)
        prepared = self._encoder.prepare(request)
        prompt = prepared.tokens
        self._check_tokens(prompt, self.info.context - 1)
        if request.format is not None and request.sampling.stop:
            raise PromptRefused("invalid", "format", "Give either a format or stop texts, not both.")
        self._sequences[key] = sequence = Sequence(key, request, prompt, self._guide(request, prepared))
        if level is not None:
            sequence.level = level
        self._scheduler.add(sequence)

    def _with_own_sampling(self, request: Request) -> Request:
        """The request with the model's own sampling where nobody set any."""
        own = {name: self.info.sampling[name] for name in request.unset if name in self.info.sampling}
        if not own:
            return request
        if "top_k" in own:
            own["top_k"] = int(own["top_k"])
        return msgspec.structs.replace(request, sampling=msgspec.structs.replace(request.sampling, **own))

    def _add_embedding(self, key: str, request: Request, level: int | None) -> None:
        if not self._backend.embeds:
            message = f"The {self.info.backend} backend gives no vectors; use a model that the native engine runs."
            raise PromptRefused("invalid", "embed", message)
        if request.turns or request.raw is not None:
            raise PromptRefused("invalid", "embed", "Give either texts for vectors or a prompt, not both.")
        texts = [self._encoder.encode_text(text, ended=self._embeddings.pooling.ended) for text in request.embed]
        for tokens in texts:
            self._check_tokens(tokens, self.info.context)
        self._embeddings.add(key, texts, LEVELS_PER_PRIORITY * request.priority if level is None else level)

    def _check_tokens(self, tokens: list[int], most: int) -> None:
        """Raises PromptRefused for tokens that cannot be computed."""
        if not tokens:
            raise PromptRefused("invalid", "prompt", "The prompt is empty; give it some text.")
        if len(tokens) > most:
            raise PromptRefused(
                "too_long",
                "too_long",
                f"The prompt has {len(tokens)} tokens but the context holds {self.info.context}; "
                "shorten it or set a larger model.context.",
            )
        if max(tokens) >= self._backend.vocabulary:
            raise PromptRefused("invalid", "prompt", "The prompt has tokens that the model does not know; change it.")

    def _guide(self, request: Request, prepared: Prepared) -> Guide:
        """What decides the tokens of an answer beside the sampling. Raises PromptRefused as `add` does."""
        wanted = self.wanted(request)
        constraint = None if wanted is None else self._formats.compile(wanted)
        only_calls = request.tool_choice == "required" and prepared.style is not None
        is_whole = only_calls or request.format is not None
        calls = None
        if prepared.style is not None:
            names = frozenset(tool.name for tool in request.tools)
            control = self._codec.control
            ends = frozenset(control[name] for name in prepared.style.ends if name in control)
            calls = Calls(prepared.style, names, None if only_calls else constraint, ends)
        output = Output(
            request.sampling.stop,
            prepared.markers,
            thinking=prepared.thinking,
            only_calls=only_calls,
            plain=request.format is not None,
            shown=request.reasoning == "show",
        )
        return Guide(
            output,
            self._codec,
            answer=constraint if is_whole else None,
            calls=calls,
            limit=request.reasoning_tokens,
            closing=prepared.closing,
        )

    def cancel(self, key: str) -> None:
        """Ends a sequence with its text so far; its final comes out of the next step. An unknown key is ignored."""
        sequence = self._sequences.get(key)
        if sequence:
            sequence.cancelled = True
        self._embeddings.cancel(key)

    def set_level(self, key: str, level: int) -> None:
        """A sequence is more or less urgent from the next step on. An unknown key is ignored."""
        sequence = self._sequences.get(key)
        if sequence:
            sequence.level = level
        self._embeddings.set_level(key, level)

    def interrupt(self) -> None:
        """Ends a step of several tokens after the one it is computing: there is something new. For any thread."""
        self._interrupt[0] = 1

    def step(self) -> Events:
        """One bounded piece of work: a token for each sequence that decodes, or a few, and a chunk of a prompt.

        A step that begins a sequence only announces it (`Started`): should its first work end the process, it is known
        which sequence that was.
        """
        events = self._end_cancelled()
        if self._embeddings.busy:
            events += self._embeddings.step(min((one.level for one in self._sequences.values()), default=None))
        batch = self._schedule()
        if started := self._announce(batch):
            return events + started
        if not batch.work:
            return events
        begun = self._clock()
        results = self._compute(batch)
        events += self._apply(batch, results)
        self._observe(batch, results, self._clock() - begun)
        return events

    def _end_cancelled(self) -> Events:
        events: Events = []
        for sequence in [sequence for sequence in self._sequences.values() if sequence.cancelled]:
            events += self._retire(sequence, "cancelled")
        return events

    def _schedule(self) -> Batch:
        """The batch that was announced, or a new one; without sequences that were cancelled since."""
        batch, self._announced = self._announced or self._scheduler.schedule(), None
        return replace(batch, work=tuple(work for work in batch.work if work.sequence.key in self._sequences))

    def _announce(self, batch: Batch) -> Events:
        """`Started` for each sequence that begins; the batch is then left to the next step."""
        starting = [work.sequence for work in batch.work if not work.sequence.started]
        if starting:
            self._announced = batch
        return [self._start(sequence) for sequence in starting]

    def _compute(self, batch: Batch) -> list[Result]:
        """For each sequence the tokens that the backend chose, its logits, or its error."""
        if batch.steps:
            with suppress(ComputeError):  # `run` finds out which sequence it was
                return [*self._decode(batch)]
        return [*self._backend.run([work.sequence.slice(work.tokens, work.drafts) for work in batch.work])]

    def _decode(self, batch: Batch) -> list[list[int]]:
        sequences = [work.sequence.decoding(batch.steps, work.watch) for work in batch.work]
        try:
            return self._backend.decode(sequences, batch.steps, self._stops, self._interrupt)
        finally:
            self._interrupt[0] = 0  # what is new was queued before the flag was set, and is looked at after this step

    def _apply(self, batch: Batch, results: list[Result]) -> Events:
        """Adds what was computed to each sequence."""
        events: Events = []
        for work, result in zip(batch.work, results, strict=True):
            if isinstance(result, ComputeError):
                message = f"the model could not compute this ({result}); send it again or shorten it"
                events += self._retire(work.sequence, "failed", Failure("compute", message))
            elif isinstance(result, list):
                events += self._append_chosen(work.sequence, result)
            else:
                events += self._append_sampled(work, result)
        return events

    def _append_chosen(self, sequence: Sequence, tokens: list[int]) -> Events:
        """Appends tokens that the backend chose, up to one that ends the sequence."""
        events: Events = []
        for token in tokens:
            sequence.computed += 1
            sequence.append_token(token)
            events += self._emit_token(sequence, token)
            if sequence.slot is None:
                break
        return events

    def _append_sampled(self, work: Work, logits: Logits) -> Events:
        """Samples from [1 + drafts, vocabulary], once a prompt is computed whole: one token, and one more after each
        draft that was sampled."""
        sequence, events = work.sequence, []
        sequence.computed += work.tokens
        if sequence.computed < len(sequence.tokens):
            return []
        for row, draft in zip_longest(logits, work.drafts[: len(logits) - 1]):
            events += self._sample(sequence, row)
            if sequence.slot is None or sequence.tokens[-1] != draft:
                break
            self._backend.keep(sequence.slot, draft)
            sequence.computed += 1
        return events

    def _observe(self, batch: Batch, results: list[Result], seconds: float) -> None:
        """Records what the step cost, by which the next ones are scheduled."""
        if prefilled := sum(work.tokens for work in batch.work if work.prefill):
            replies = self._speculation.seconds(len(batch.work) - 1) or 0.0
            self._scheduler.observe_prefill(prefilled, seconds - replies)
        elif isinstance(results[0], list):
            self._speculation.observe(len(results), seconds, len(results[0]))
        else:
            rows = sum(1 if isinstance(result, ComputeError) else len(result) for result in results)
            self._speculation.observe(rows, seconds)

    def _start(self, sequence: Sequence) -> tuple[str, Event]:
        sequence.started = True
        sequence.started_at = self._clock()
        return sequence.key, Started()

    def _sample(self, sequence: Sequence, logits: Logits) -> Events:
        """Chooses a sequence's next token from [vocabulary]."""
        try:
            token = sequence.sample(logits)
        except BadLogitsError:
            return self._retire(sequence, "failed")
        except ConstraintError as error:
            return self._retire(sequence, "failed", error.failure)
        return self._emit_token(sequence, token)

    def _emit_token(self, sequence: Sequence, token: int) -> Events:
        """The text of a token that was appended; retires the sequence that it ends."""
        if sequence.first_token_at is None:
            sequence.first_token_at = self._clock()
        if token in self._codec.stops:
            return self._retire(sequence, "stop")
        try:
            sequence.guide.push(token)
        except ConstraintError as error:
            return self._retire(sequence, "failed", error.failure)
        events = self._emit_text(sequence)
        if sequence.output.stopped or sequence.complete:
            return events + self._retire(sequence, "stop")
        if sequence.completion >= sequence.request.sampling.max_tokens or len(sequence.tokens) >= self.info.context:
            return events + self._retire(sequence, "length")
        return events

    def _emit_text(self, sequence: Sequence) -> Events:
        chunk = sequence.output.chunk()
        return [(sequence.key, chunk)] if chunk else []

    def _retire(self, sequence: Sequence, reason: Reason, failure: Failure | None = None) -> Events:
        sequence.output.finish(whole=reason == "stop")
        events = self._emit_text(sequence)
        if (violation := sequence.violation(reason)) is not None:
            reason, failure = "failed", violation
        self._scheduler.retire(sequence)
        del self._sequences[sequence.key]
        return [*events, (sequence.key, sequence.final(reason, self._clock(), self._codec, failure))]


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
