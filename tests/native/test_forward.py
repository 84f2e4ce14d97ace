"""The forward pass against transformers, and numbers that hold in any order."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edged.engine.backends.base import Slice
from edged.engine.backends.native_backend import NativeBackend
from edged.engine.backends.native_model import NativeModel, Part
from edged.models.formats.packed import PackedModel, open_packed
from tests.native.helpers import ALL_KERNELS, open_model, pack_tiny

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama3 rope": ("llama", {"rope_parameters": LLAMA3}),
    "heads of 8": ("llama", {"head_dim": 8}),
    "heads of 80": ("llama", {"head_dim": 80, "hidden_size": 72}),
    "heads of 256": ("llama", {"head_dim": 256}),
    "one key/value head": ("llama", {"num_key_value_heads": 1}),
    "as many key/value heads": ("llama", {"num_key_value_heads": 4}),
    "mistral": ("mistral", {"head_dim": 24}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 32}),
}


def _reference(model: Any, tokens: list[int]) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].float().numpy()


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.parametrize("name", FAMILIES)
def test_unquantized_logits_agree_with_transformers(tmp_path: Path, name: str) -> None:
    """Prompt in one step, in pieces, and token by token over the cache: within 1e-3 of transformers."""
    family, changes = FAMILIES[name]
    reference, folder = pack_tiny(tmp_path, family, **changes)
    tokens = np.random.default_rng(1).integers(0, 203, 150).tolist()
    expected = _reference(reference, tokens)
    with open_model(folder, threads=2) as model:
        whole = model.step([Part(tokens, 0, range(10, 16), wanted=150)])
        assert _relative(whole, expected) < 1e-3
        pieces = [model.step([Part(tokens[at : at + 30], at, range(20, 26), wanted=30)]) for at in range(0, 150, 30)]
        assert np.array_equal(np.concatenate(pieces), whole)
        single = [model.step([Part([token], at, range(30, 36))]) for at, token in enumerate(tokens)]
        assert np.array_equal(np.concatenate(single), whole)


@pytest.mark.parametrize("kernels", ALL_KERNELS)
def test_every_instruction_set_agrees(tmp_path: Path, kernels: str) -> None:
    """The same figures from each, up to rounding."""
    reference, folder = pack_tiny(tmp_path, "qwen3")
    tokens = list(range(40))
    with open_model(folder, kernels=kernels) as model:
        assert _relative(model.step([Part(tokens, 0, [5, 9], wanted=40)]), _reference(reference, tokens)) < 1e-3


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in 4 bits with two key/value heads, whose matrices are cut into strips of several tiles."""
    # 18 pairs of gate and up make strips of 5, 5, 5 and 3 pairs with one thread.
    sizes = {"max_position_embeddings": 2048, "intermediate_size": 556}
    return pack_tiny(tmp_path_factory.mktemp("small"), "llama", bits=4, **sizes)[1]


def _greedy(model: NativeModel, prompt: list[int], count: int, blocks: list[int]) -> tuple[list[int], np.ndarray]:
    logits = model.step([Part(prompt, 0, blocks)])
    tokens, rows = [], [logits[0]]
    for at in range(count):
        tokens.append(int(logits[0].argmax()))
        logits = model.step([Part(tokens[-1:], len(prompt) + at, blocks)])
        rows.append(logits[0])
    return tokens, np.stack(rows)


@pytest.mark.parametrize("kernels", ALL_KERNELS)
def test_numbers_hold_in_any_company(small: Path, kernels: str) -> None:
    """Alone, in company in changing chunks, with 1, 2 and 3 threads, and across chunks of attention: the same bits."""
    random = np.random.default_rng(7)
    prompts = [random.integers(0, 203, size).tolist() for size in (1, 5, 31, 32, 33, 64, 100, 250, 300, 600)]
    steps = 6
    options = {"context": 1024, "blocks": 160, "max_rows": 700, "kernels": kernels}
    with open_model(small, threads=1, **options) as model:
        alone = [_greedy(model, prompt, steps, list(range(20)))[1] for prompt in prompts]
    for threads in (1, 2, 3):
        with open_model(small, threads=threads, **options) as model:
            order = random.permutation(160).tolist()
            tables = [[order.pop() for _ in range((len(prompt) + steps + 31) // 32 + 1)] for prompt in prompts]
            done = [0] * len(prompts)
            texts = [list(prompt) for prompt in prompts]
            seen: list[list[np.ndarray]] = [[] for _ in prompts]
            while any(len(rows) <= steps for rows in seen):
                parts, who = [], []
                budget = int(random.integers(1, 90))
                for index in random.permutation(len(prompts)):
                    todo = texts[index][done[index] :][:budget]
                    if not todo or len(seen[index]) > steps:
                        continue
                    complete = done[index] + len(todo) == len(texts[index])
                    parts.append(Part(todo, done[index], tables[index], wanted=int(complete)))
                    who.append((index, len(todo), complete))
                    budget -= len(todo)
                logits = iter(model.step(parts))
                for index, count, complete in who:
                    done[index] += count
                    if complete:
                        seen[index].append(next(logits).copy())
                        texts[index].append(int(seen[index][-1].argmax()))
            for index in range(len(prompts)):
                assert np.array_equal(alone[index], np.stack(seen[index])), (threads, index)


def test_a_shared_prefix_gives_the_same_numbers(small: Path) -> None:
    """Two sequences whose first blocks are the same blocks: as if each had computed them."""
    random = np.random.default_rng(3)
    prefix, first, second = (random.integers(0, 203, size).tolist() for size in (96, 20, 40))
    with open_model(small) as model:
        expected = [
            model.step([Part(prefix + tail, 0, table)]) for tail, table in ((first, range(8)), (second, range(8, 16)))
        ]
        model.step([Part(prefix, 0, [20, 21, 22], wanted=0)])
        shared = model.step([Part(first, 96, [20, 21, 22, 30]), Part(second, 96, [20, 21, 22, 31, 32])])
    assert np.array_equal(np.concatenate(expected), shared)


@pytest.mark.parametrize("kernels", ALL_KERNELS)
def test_a_prefix_shared_to_the_token_gives_the_same_numbers(small: Path, kernels: str) -> None:
    """Sequences that begin alike up to any token, and a conversation's next turn: bits as in an empty cache."""
    random = np.random.default_rng(5)
    with open_model(small, kernels=kernels) as model, open_model(small, kernels=kernels) as other:
        backend = NativeBackend(model, slots=4)
        slot = backend.open()
        text = random.integers(0, 203, 140).tolist()
        backend.run([Slice(slot, 0, text)])  # still open: its full blocks are shared, its last one is not
        for shared, total in ((0, 20), (1, 9), (31, 60), (32, 64), (33, 34), (100, 112), (127, 129), (128, 160)):
            tokens = [*text[:shared], *random.integers(0, 203, total - shared).tolist()]
            tokens[shared] = (text[shared] + 1) % 203
            _check_against_an_empty_cache(other, backend, tokens, shared)
        backend.close(slot)
        turn = [*text, *random.integers(0, 203, 10).tolist()]
        _check_against_an_empty_cache(other, backend, turn, 140)
        _check_against_an_empty_cache(other, backend, turn, 149)  # computed a moment ago; the last token is left


def _check_against_an_empty_cache(model: NativeModel, backend: NativeBackend, tokens: list[int], shared: int) -> None:
    slot, fresh = backend.open(), NativeBackend(model, slots=1)
    assert backend.reuse(slot, tokens) == shared
    warm = [backend.run([Slice(slot, shared, tokens[shared:])])[0], backend.run([Slice(slot, len(tokens), [7])])[0]]
    backend.close(slot)
    slot = fresh.open()
    assert np.array_equal(warm[0], fresh.run([Slice(slot, 0, tokens)])[0])
    assert np.array_equal(warm[1], fresh.run([Slice(slot, len(tokens), [7])])[0])


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_the_caller_leaves_the_cores_of_pinned_threads(small: Path) -> None:
    """A caller that woke on the other thread's core is elsewhere after a step, with all its cores; one that may use no
    other core stays and gets the same numbers."""
    cores, core_of = os.sched_getaffinity(0), ctypes.CDLL(None).sched_getcpu
    taken = sorted(cores)[1]
    with open_model(small, threads=2) as model:
        expected = model.step([Part([1, 2, 3], 0, [0])])
        left = 0
        try:
            for _ in range(20):
                os.sched_setaffinity(0, {taken})
                os.sched_setaffinity(0, cores)
                assert np.array_equal(model.step([Part([1, 2, 3], 0, [1])]), expected)
                left += core_of() != taken
                assert os.sched_getaffinity(0) == cores
            os.sched_setaffinity(0, {taken})
            assert np.array_equal(model.step([Part([1, 2, 3], 0, [1])]), expected)
            assert os.sched_getaffinity(0) == {taken}
        finally:
            os.sched_setaffinity(0, cores)
    # The system itself may move a thread at any time, so not each time.
    assert left >= 15


@pytest.mark.parametrize("bits", [4, None])
def test_projections_may_lie_apart(tmp_path: Path, bits: int | None) -> None:
    """Query, key and value are one product where they lie together in the file, and the same bits where they do not."""
    _, folder = pack_tiny(tmp_path, "qwen2", bits=bits)
    packed = open_packed(folder)
    for name in [name for name in packed._places if name.endswith(".query")]:  # together, as the format has them
        start, count = packed._places[name]
        assert packed._places[name.replace("query", "key")][0] == start + count
    size = -(-len(packed.data) // 64) * 64
    data, places = mmap.mmap(-1, 2 * size), dict(packed._places)
    data[: len(packed.data)] = packed.data[:]
    at = size
    for name in [name for name in places if name.endswith(".key")]:
        start, count = places[name]
        data[at : at + count] = packed.data[start : start + count]
        data[start : start + count] = bytes(count)
        places[name] = (at, count)
        at += -(-count // 64) * 64
    parts = [Part(list(range(40)), 0, [0, 1]), Part([7], 0, [2]), Part([9, 8], 0, [3], wanted=2)]
    with (
        open_model(folder) as together,
        NativeModel(PackedModel(folder, packed.manifest, data, places), context=256, blocks=64, threads=2) as apart,
    ):
        assert np.array_equal(together.step(parts), apart.step(parts))
