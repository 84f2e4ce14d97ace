"""Vectors of texts: the hidden states after the last layer and its norm, pooled and divided by their length.

A request is computed a chunk at a time, one chunk in each step of the engine, beside the sequences.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from edged.core.prompt import Embedding, Failure, Reason, Started, Usage
from edged.core.prompt import Final as Answer
from edged.engine.backends.base import MAX_SLICE, MIXED_SLICE, Backend, ComputeError
from edged.models.formats.pooling import Pooling

DIGITS: Final = 6  # after the decimal point: float32 has seven of all

Events = list[tuple[str, Started | Answer]]


class _Job:
    """A request. `texts` are tokens that are still to be computed, the first one partly: `done` of it."""

    def __init__(self, key: str, texts: Sequence[Sequence[int]], level: int) -> None:
        self.key = key
        self.level = level
        self.texts = deque(texts)
        self.tokens = sum(map(len, texts))
        self.done = 0
        self.slot: int | None = None
        self.started_at: float | None = None
        self.sum: npt.NDArray[np.float64] | None = None
        self.vectors: list[tuple[float, ...]] = []


class Embeddings:
    """The requests for vectors of an engine, in order of their levels. Owned by the engine's thread."""

    def __init__(self, backend: Backend, pooling: Pooling, clock: Callable[[], float]) -> None:
        self.pooling = pooling
        self._backend = backend
        self._clock = clock
        self._jobs: dict[str, _Job] = {}
        self._cancelled: set[str] = set()

    @property
    def busy(self) -> bool:
        """Whether `step` has work."""
        return bool(self._jobs)

    def __contains__(self, key: str) -> bool:
        return key in self._jobs

    def add(self, key: str, texts: Sequence[Sequence[int]], level: int) -> None:
        """Queues texts, as tokens, none empty and none longer than the context."""
        self._jobs[key] = _Job(key, texts, level)

    def cancel(self, key: str) -> None:
        """Ends a request in the next step. An unknown key is ignored."""
        if key in self._jobs:
            self._cancelled.add(key)

    def set_level(self, key: str, level: int) -> None:
        """A request is more or less urgent. An unknown key is ignored."""
        if key in self._jobs:
            self._jobs[key].level = level

    def step(self, most_urgent: int | None) -> Events:
        """One chunk of the most urgent request; `most_urgent`: the level of the most urgent sequence, if any.

        A request that is less urgent than that one's level and the next waits.
        """
        events: Events = [(key, self._end(self._jobs[key], "cancelled")) for key in sorted(self._cancelled)]
        self._cancelled.clear()
        job = min(self._jobs.values(), key=lambda job: job.level, default=None)
        if job is None or (most_urgent is not None and job.level > most_urgent + 1):
            return events
        if job.started_at is None:  # only announced: should its computation end the process, it is known which it was
            job.started_at = self._clock()
            return [*events, (job.key, Started())]
        return events + self._compute(job, MAX_SLICE if most_urgent is None else MIXED_SLICE)

    def _compute(self, job: _Job, most: int) -> Events:
        text = job.texts[0]
        chunk = text[job.done : job.done + most]
        if job.slot is None:
            job.slot = self._backend.open()
        hidden = self._backend.hidden(job.slot, job.done, chunk)
        if isinstance(hidden, ComputeError):
            message = f"the model could not compute this ({hidden}); send it again or shorten it"
            return [(job.key, self._end(job, "failed", Failure("compute", message)))]
        self._pool(job, hidden)
        job.done += len(chunk)
        if job.done == len(text):
            self._end_text(job)
        return [] if job.texts else [(job.key, self._end(job, "stop"))]

    def _pool(self, job: _Job, hidden: npt.NDArray[np.float32]) -> None:
        rows = hidden[-1:] if self.pooling.kind == "last" else hidden
        added = rows.sum(0, dtype=np.float64)
        job.sum = added if job.sum is None or self.pooling.kind == "last" else job.sum + added

    def _end_text(self, job: _Job) -> None:
        """The pooled vector, of length 1: a sum and a mean have the same direction."""
        if job.sum is not None:
            job.vectors.append(tuple(np.round(job.sum / (np.linalg.norm(job.sum) or 1.0), DIGITS).tolist()))
        self._close(job)
        job.texts.popleft()
        job.done, job.sum = 0, None

    def _close(self, job: _Job) -> None:
        if job.slot is not None:
            self._backend.close(job.slot)
            job.slot = None

    def _end(self, job: _Job, reason: Reason, failure: Failure | None = None) -> Answer:
        self._close(job)
        del self._jobs[job.key]
        now = self._clock()
        took = (now - (now if job.started_at is None else job.started_at)) * 1e3
        embedding = Embedding(tuple(job.vectors), self.pooling.kind) if reason == "stop" else None
        return Answer(reason, "", Usage(job.tokens), 0, took, 0.0, failure, embedding=embedding)
