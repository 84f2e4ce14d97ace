"""What `edged bench` measures: one case at a time on an open backend, each a number with a unit.

Speeds are tokens a second. Each case follows a quarter of a second of decoding that is not timed, and the peer's does,
too: an idle processor is slow for its first tenth, which would count most for the faster engine. Tokens are random ids
from a fixed seed, and what the model chooses after them: speed does not depend on which they are.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Final

import numpy as np

from edged.core.prompt import Sampling
from edged.engine.backends.base import MAX_SLICE, Backend, ComputeError, Decoding, Logits, Slice
from edged.engine.backends.native_backend import NativeBackend
from edged.engine.backends.native_open import open_native
from edged.engine.kernels.library import load_library
from edged.engine.memory import available_bytes
from edged.engine.scheduler import steps_per_call
from edged.models.formats.packed import PackedModel

DECODE_TOKENS: Final = 64
BATCH_STEPS: Final = 16
ALTERNATE: Final = 8  # tokens of one context before the other's
START: Final = 16  # tokens in each cache before decoding is timed
BATCHES: Final = (1, 2, 4, 8, 16)
PREFILLS: Final = (128, 512, 2048)
BEHIND: Final = (128, 4096)  # tokens of context before decoding is timed
SHARED, PROMPT = 500, 512  # tokens of a prompt that a warm cache has, and all of them
WARM_UP: Final = 0.25  # seconds of decoding before each case
GREEDY: Final = Sampling(temperature=0)
BUFFER: Final = 400_000_000  # bytes read to measure the memory: far more than any cache of a processor


@dataclass(frozen=True)
class Case:
    """One measurement. `peer` is the peer's case and its size, None where the peer has none."""

    name: str
    unit: str
    run: Callable[[], float]
    peer: tuple[str, int] | None = None


def open_for_bench(packed: PackedModel, threads: int | None, kernels: str) -> NativeBackend:
    """The model with room for the largest case. Raises ModelError."""
    context = min(packed.manifest.shape.context, max(*PREFILLS, *BEHIND) + DECODE_TOKENS)
    return open_native(packed, context, threads, available_bytes, kernels, slots=max(BATCHES))


def cases(backend: Backend) -> list[Case]:
    """All that fit the model's context, in the order to show them."""
    ids = np.random.default_rng(0).integers(0, backend.vocabulary, 4096).tolist()
    chosen = [Case("decode", "tokens/s", partial(decode, backend, ids), ("decode", DECODE_TOKENS))]
    for length in PREFILLS:
        if length <= backend.context:
            run = partial(prefill, backend, ids[:length])
            chosen.append(Case(f"prefill {length}", "tokens/s", run, ("prefill", length)))
    for count in BATCHES:
        if 1 < count <= backend.slots:
            run = partial(batch, backend, ids, count)
            chosen.append(Case(f"decode × {count}", "tokens/s", run, ("batch", count)))
    chosen += [
        Case(f"decode behind {length}", "tokens/s", partial(long_context, backend, ids, length))
        for length in BEHIND
        if length + DECODE_TOKENS <= backend.context
    ]
    near, far = BEHIND
    if far + DECODE_TOKENS <= backend.context:
        chosen.append(Case(f"kept behind {far} of {near}", "%", partial(kept, backend, ids, near, far)))
    if backend.context >= PROMPT:
        chosen += [
            Case("first token, cold", "ms", partial(first_token, backend, ids, 0)),
            Case(f"first token, {SHARED} of {PROMPT} shared", "ms", partial(first_token, backend, ids, SHARED)),
        ]
    return [replace(case, run=partial(_warm, backend, ids, case.run)) for case in chosen]


def _warm(backend: Backend, ids: Sequence[int], run: Callable[[], float]) -> float:
    """A case after WARM_UP seconds of decoding."""
    until = time.perf_counter() + WARM_UP
    while time.perf_counter() < until:
        batch(backend, ids, 1, BATCH_STEPS)
    return run()


def decode(backend: Backend, ids: Sequence[int]) -> float:
    """One sequence, one token a step, behind START tokens."""
    return batch(backend, ids, 1, DECODE_TOKENS)


def batch(backend: Backend, ids: Sequence[int], count: int, steps: int = BATCH_STEPS) -> float:
    """`count` sequences, one token each a step: all their tokens a second."""
    slots = [backend.open() for _ in range(count)]
    try:
        for number, slot in enumerate(slots):
            _run(backend, [Slice(slot, 0, ids[number : number + START])])
        return _decode_speed(backend, dict.fromkeys(slots, ids[START]), START, steps)
    finally:
        for slot in slots:
            backend.close(slot)


def prefill(backend: Backend, ids: Sequence[int]) -> float:
    """A prompt computed in the engine's chunks, from nothing."""
    slot = backend.open()
    try:
        begun = time.perf_counter()
        _chunks(backend, slot, 0, ids)
        return len(ids) / (time.perf_counter() - begun)
    finally:
        backend.close(slot)


def first_token(backend: Backend, ids: Sequence[int], shared: int) -> float:
    """Milliseconds until the logits after a prompt of PROMPT tokens, of which another had the first `shared`."""
    fresh = np.random.default_rng(time.perf_counter_ns()).integers(0, backend.vocabulary, PROMPT).tolist()
    earlier = [*ids[:shared], *fresh[shared:]]
    if shared:
        slot = backend.open()
        _chunks(backend, slot, 0, earlier)
        backend.close(slot)
        fresh = fresh[::-1]
    prompt = [*ids[:shared], *fresh[shared:]]
    slot = backend.open()
    try:
        begun = time.perf_counter()
        kept = backend.reuse(slot, prompt)
        _chunks(backend, slot, kept, prompt)
        return (time.perf_counter() - begun) * 1e3
    finally:
        backend.close(slot)


def long_context(backend: Backend, ids: Sequence[int], context: int) -> float:
    """Decode behind `context` tokens."""
    slot = backend.open()
    try:
        _chunks(backend, slot, 0, [ids[index % len(ids)] for index in range(context)])
        return _decode_speed(backend, {slot: ids[0]}, context, DECODE_TOKENS)
    finally:
        backend.close(slot)


def kept(backend: Backend, ids: Sequence[int], near: int, far: int) -> float:
    """Percent of the speed behind `near` tokens that decode has behind `far`: a few tokens of each in turn, so that
    both run under the same load of the machine; the median of the pairs."""
    slots = {context: backend.open() for context in (near, far)}
    try:
        for context, slot in slots.items():
            _chunks(backend, slot, 0, ids[:context])
        pairs = [
            [_decode_speed(backend, {slot: ids[done]}, context + done, ALTERNATE) for context, slot in slots.items()]
            for done in range(0, DECODE_TOKENS, ALTERNATE)
        ]
        return median(behind_far / behind_near for behind_near, behind_far in pairs) * 100
    finally:
        for slot in slots.values():
            backend.close(slot)


class ReadLoop:
    """A plain loop that reads a buffer.

    The buffer is kept: freeing it slows what is measured a second or two later, on a virtual machine by a sixth
    (docs/decisions/0014).
    """

    def __init__(self, threads: int) -> None:
        self._buffer = np.ones(BUFFER // 8, np.float64)
        self._threads = threads
        self._library = load_library()

    def bandwidth(self) -> float:
        """Bytes a second at which it reads memory, right now."""
        return self._library.read_bandwidth(self._buffer.ctypes.data, self._buffer.nbytes, self._threads, 5)


def token_bytes(packed: PackedModel) -> int:
    """Bytes of weights that a decoded token reads: all, but for an embedding that is not the head as well."""
    tensors = packed.manifest.tensors
    return packed.weights_bytes - (tensors["embedding"].size if "head" in tensors else 0)


def outside_ms(backend: NativeBackend, ids: Sequence[int]) -> float:
    """Milliseconds of a decode step outside the kernels."""
    slot = backend.open()
    try:
        _run(backend, [Slice(slot, 0, ids[:START])])
        begun, before = time.perf_counter(), backend.model.kernel_seconds
        _decode_speed(backend, {slot: ids[START]}, START, DECODE_TOKENS)
        return (time.perf_counter() - begun - (backend.model.kernel_seconds - before)) / DECODE_TOKENS * 1e3
    finally:
        backend.close(slot)


def _decode_speed(backend: Backend, newest: dict[int, int], at: int, steps: int) -> float:
    """All tokens a second of `steps` decode steps, as many in a call as the engine would ask for. `newest`: by slot."""
    nothing, interrupt, draws, done = array("i"), array("i", [0]), array("d", bytes(8 * steps)), 0
    seconds: float | None = None
    begun = now = time.perf_counter()
    while done < steps:
        sequences = [Decoding(slot, at + done, token, GREEDY, draws, nothing) for slot, token in newest.items()]
        chosen = backend.decode(sequences, min(steps - done, steps_per_call(seconds)), nothing, interrupt)
        newest = {slot: tokens[-1] for slot, tokens in zip(newest, chosen, strict=True)}
        done += len(chosen[0])
        since, now = now, time.perf_counter()
        seconds = (now - since) / len(chosen[0])
    return len(newest) * steps / (now - begun)


def _chunks(backend: Backend, slot: int, start: int, ids: Sequence[int]) -> None:
    for begin in range(start, len(ids), MAX_SLICE):
        _run(backend, [Slice(slot, begin, ids[begin : begin + MAX_SLICE])])


def _run(backend: Backend, slices: Sequence[Slice]) -> list[Logits]:
    results = []
    for result in backend.run(slices):
        if isinstance(result, ComputeError):
            raise result
        results.append(result)
    return results
