"""Recurrent states: the same bits in any company, steps that are repeated, and memory that is bounded."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edged.core.errors import ModelError
from edged.core.prompt import Sampling
from edged.engine.backends.base import ComputeError, Decoding, Slice
from edged.engine.backends.native_backend import NativeBackend
from edged.engine.backends.native_model import BLOCK, Part
from edged.engine.backends.native_open import cache_bytes, open_native, state_bytes
from edged.engine.kernels.library import KernelError
from edged.engine.memory import WORKSPACE_BYTES
from edged.engine.states import StatePool
from edged.models.formats.packed import open_packed
from tests.native.families import DELTA
from tests.native.helpers import ALL_KERNELS, open_model, pack_tiny

SHAPES = {
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"], "tie_word_embeddings": True},
    "qwen3_5": {**DELTA, "linear_num_value_heads": 4, "full_attention_interval": 2},
}


@pytest.fixture(scope="module", params=SHAPES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in 4 bits with recurrent layers."""
    return pack_tiny(tmp_path_factory.mktemp("states"), request.param, bits=4, **SHAPES[request.param])[1]


def one(backend: NativeBackend, item: Slice) -> npt.NDArray[np.float32]:
    (result,) = backend.run([item])
    assert not isinstance(result, ComputeError), result
    return result


def greedy(backend: NativeBackend, prompt: Sequence[int], count: int) -> list[int]:
    """The answer of a prompt alone, one token a step."""
    slot, tokens = backend.open(), list(prompt)
    for at in range(len(prompt) - 1):
        one(backend, Slice(slot, at, [tokens[at]]))
    for _ in range(count):
        tokens.append(int(one(backend, Slice(slot, len(tokens) - 1, tokens[-1:]))[-1].argmax()))
    backend.close(slot)
    return tokens[len(prompt) :]


def decoding(slot: int, tokens: Sequence[int], steps: int) -> Decoding:
    sampling, draws = Sampling(temperature=0), array("d", [0.0] * steps)
    return Decoding(slot, len(tokens) - 1, tokens[-1], sampling, draws, array("i"))


@pytest.mark.parametrize("kernels", ALL_KERNELS)
def test_answers_hold_in_any_company(folder: Path, kernels: str) -> None:
    """Prompts in random chunks, several decode steps in one call, sequences that begin again: as each alone."""
    random = np.random.default_rng(3)
    prompts = [random.integers(0, 203, size).tolist() for size in (1, 2, 3, 5, 33, 64, 100)]
    with open_model(folder, threads=1, kernels=kernels) as model:
        alone = [greedy(NativeBackend(model, slots=1), prompt, 24) for prompt in prompts]
    for threads in (2, 3):
        with open_model(folder, threads=threads, kernels=kernels) as model:
            backend = NativeBackend(model, slots=7)
            texts, slots = [list(prompt) for prompt in prompts], [backend.open() for _ in prompts]
            done = [0] * len(prompts)
            while any(len(text) < len(prompt) + 24 for text, prompt in zip(texts, prompts, strict=True)):
                chosen = random.permutation(len(prompts))[: int(random.integers(1, 8))].tolist()
                if all(len(texts[i]) - done[i] == 1 and len(texts[i]) < 220 for i in chosen):
                    steps = int(random.integers(1, 9))
                    orders = [decoding(slots[i], texts[i], steps) for i in chosen]
                    answers = backend.decode(orders, steps, array("i"), array("i", [0]))
                    for i, tokens in zip(chosen, answers, strict=True):
                        texts[i] += tokens
                        done[i] += len(tokens)
                    continue
                counts = {i: min(len(texts[i]) - done[i], int(random.integers(1, 30))) for i in chosen}
                slices = [Slice(slots[i], done[i], texts[i][done[i] : done[i] + n]) for i, n in counts.items()]
                for (i, count), rows in zip(counts.items(), backend.run(slices), strict=True):
                    assert not isinstance(rows, ComputeError)
                    done[i] += count
                    if done[i] == len(texts[i]):
                        texts[i].append(int(rows[-1].argmax()))
                again = int(random.integers(0, 40))
                if again < len(prompts):  # as after a preemption: computed again from its tokens
                    backend.close(slots[again])
                    slots[again], done[again] = backend.open(), 0
            for text, prompt, expected in zip(texts, prompts, alone, strict=True):
                assert expected == text[len(prompt) : len(prompt) + 24]
            for slot in slots:
                backend.close(slot)
            assert model.states == backend.states.free
            assert [model.blocks] == [pool.free for pool in backend.cache.pools]


def test_a_step_that_fails_is_repeated_from_the_same_states(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a step was computed and then refused, each sequence alone gives what it would have given."""
    with open_model(folder) as model, open_model(folder) as other:
        backend, plain = NativeBackend(model, slots=2), NativeBackend(other, slots=2)
        slots = [backend.open(), backend.open()]
        for slot in slots:
            for of in (backend, plain):
                one(of, Slice(slot if of is backend else of.open(), 0, [1, 2, 3]))
        step = model.step

        def refuse(parts: Sequence[Part]) -> npt.NDArray[np.float32]:
            logits = step(parts)
            if any(99 in part.tokens for part in parts):
                raise KernelError("the logits are not finite")
            return logits

        monkeypatch.setattr(model, "step", refuse)
        good, bad = backend.run([Slice(slots[0], 3, [4, 5]), Slice(slots[1], 3, [99])])
        assert not isinstance(good, ComputeError)
        assert isinstance(bad, ComputeError)
        assert np.array_equal(one(plain, Slice(1, 3, [4, 5])), good)
        assert np.array_equal(one(plain, Slice(1, 5, [6])), one(backend, Slice(slots[0], 5, [6])))


def test_decode_steps_that_fail_leave_the_state(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No step, or an even number of them: the next token is as after the same tokens alone."""
    with open_model(folder) as model:
        backend = NativeBackend(model, slots=1)
        expected = greedy(backend, [1, 2, 3], 6)
        slot = backend.open()
        one(backend, Slice(slot, 0, [1, 2]))
        with monkeypatch.context() as patch:
            patch.setattr(model, "decode", lambda *_: [[]])
            with pytest.raises(ComputeError):
                backend.decode([decoding(slot, [1, 2, 3], 4)], 4, array("i"), array("i", [0]))
        tokens = [1, 2, 3]
        for steps in (2, 1, 3):
            (chosen,) = backend.decode([decoding(slot, tokens, steps)], steps, array("i"), array("i", [0]))
            tokens += chosen
        assert expected == tokens[3:]
        backend.close(slot)
        assert model.states == backend.states.free


def test_neither_drafts_nor_beginnings_of_others(folder: Path) -> None:
    """A state holds all tokens before it, so such a model computes every prompt itself."""
    with open_model(folder) as model:
        backend = NativeBackend(model, slots=2)
        assert (0, True) == (backend.drafts, backend.exact)
        slot = backend.open()
        one(backend, Slice(slot, 0, list(range(70))))
        backend.close(slot)
        slot = backend.open()
        assert 0 == backend.reuse(slot, list(range(70)))
        one(backend, Slice(slot, 0, list(range(64))))
        assert 64 == backend.reuse(slot, list(range(70)))


@pytest.mark.parametrize(
    ("states", "words"),
    [
        ([(-1, -1)], "does not exist"),
        ([(-1, 4)], "does not exist"),
        ([(0, 1)], "state of its position"),
        ([(-1, 1), (-1, 1)], "same state"),
    ],
)
def test_wrong_states_are_refused(folder: Path, states: list[tuple[int, int]], words: str) -> None:
    """Each with KernelError, and the model goes on; also where a sequence goes on without one, or reads what another
    writes."""
    with open_model(folder, states=4) as model:
        before = model.step([Part([1, 2, 3], 0, [0], next_state=0)])
        with pytest.raises(KernelError, match=words):
            model.step([Part([1], 0, [1 + at], 1, *pair) for at, pair in enumerate(states)])
        for wrong in (-1, 0, 4):
            with pytest.raises(KernelError, match="state"):
                model.step([Part([4], 3, [0], 1, wrong, 0)])
        assert np.array_equal(before, model.step([Part([1, 2, 3], 0, [0], next_state=1)]))


def test_states_are_admitted_with_the_cache(folder: Path) -> None:
    """Two for each slot and one more; where memory is short there are fewer slots, and each has its whole context."""
    packed = open_packed(folder)
    shape = packed.manifest.shape
    block, state = cache_bytes(shape, (1, 1)), state_bytes(shape)
    slot = 8 * block + 2 * state
    fixed = packed.weights_bytes + state + WORKSPACE_BYTES
    with pytest.raises(ModelError, match="MB are free"):
        open_native(packed, 256, 1, lambda: fixed + slot - 1)
    for slots in (1, 3):
        backend = open_native(packed, 256, 1, lambda slots=slots: int(fixed + slots * slot / 0.8) + 8)
        assert (slots, 2 * slots + 1) == (backend.slots, backend.model.states)
        (pool,) = backend.cache.pools
        assert pool.count >= 8 * slots
        assert 256 <= pool.count * BLOCK
        assert backend.model.memory()[0] == pool.count * block + (2 * slots + 1) * state
        backend.model.close()


def test_a_used_up_pool_refuses() -> None:
    """MemoryError; of a model without states there is nothing to use up."""
    pool = StatePool(2)
    first = pool.allocate()
    pool.allocate()
    with pytest.raises(MemoryError, match="all 2 recurrent states"):
        pool.allocate()
    pool.release(first)
    assert first == pool.allocate()
    none = StatePool(0)
    none.release(none.allocate())
    assert 0 == none.free
