"""Choosing a token in C++, against the distribution as its definitions read, on each instruction set that runs here."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.core.prompt import Sampling
from edged.engine import choose_plain, sampler
from edged.engine.kernels.library import KernelError, SamplingCall, load_library
from edged.engine.sampler import BadLogitsError, Sampler
from tests.engine.test_text import SAMPLINGS, reference
from tests.native.helpers import ALL_KERNELS

CHANCES = (0.0, 1e-9, 0.1, 0.25, 0.5, 0.77, 0.999, 1 - 2**-53)


def chosen(
    logits: np.ndarray, sampling: Sampling, chance: float, kernels: str = "auto", seen: np.ndarray | None = None
) -> int:
    """What the kernels choose."""
    seen = np.zeros(0, np.int32) if seen is None else seen.astype(np.int32)
    logits = np.ascontiguousarray(logits, np.float32)
    call = SamplingCall(
        sampling.temperature,
        sampling.top_p,
        sampling.min_p,
        sampling.repetition_penalty,
        chance,
        sampling.top_k,
        len(seen),
        seen.ctypes.data,
    )
    return load_library().choose(logits.ctypes.data, len(logits), call, kernels)


def check_draws(logits: np.ndarray, sampling: Sampling, kernels: str) -> None:
    """Each chance falls on the token whose part of the line it is in, by rising id."""
    shares = reference(logits, sampling)
    tokens = sorted(shares)
    ends = np.cumsum([shares[token] for token in tokens])
    for chance in CHANCES:
        token = chosen(logits, sampling, chance, kernels)
        assert token in shares, (token, chance)
        at = tokens.index(token)
        assert (ends[at - 1] if at else 0.0) - 1e-5 <= chance <= ends[at] + 1e-5


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 600), SAMPLINGS, st.sampled_from(ALL_KERNELS))
def test_draws_are_the_reference(seed: int, size: int, sampling: Sampling, kernels: str) -> None:
    random = np.random.default_rng(seed)
    logits = (random.standard_normal(size) * 3).round(1).astype(np.float32)  # rounded: with ties
    check_draws(logits, sampling, kernels)


@pytest.mark.parametrize("kernels", ALL_KERNELS)
@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 4.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (40, 1.0), (5000, 0.9), (0, 0.9), (0, 0.5), (1, 1.0)])
def test_draws_from_a_long_vocabulary(spread: float, top_k: int, top_p: float, kernels: str) -> None:
    """Where few are candidates, and where most or all weigh the same."""
    logits = (np.random.default_rng(1).standard_normal(20_003) * spread).astype(np.float32)
    check_draws(logits, Sampling(temperature=0.7, top_k=top_k, top_p=top_p), kernels)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(1, 700),
    st.sampled_from([0.0, 1e-9, 0.7, 5.0]),
    st.sampled_from([1.0, 1.0, 0.9]),
    st.sampled_from(ALL_KERNELS),
)
def test_what_is_masked_is_never_chosen(seed: int, size: int, temperature: float, top_p: float, kernels: str) -> None:
    random = np.random.default_rng(seed)
    logits = random.standard_normal(size).astype(np.float32)
    allowed = random.choice(size, random.integers(1, min(size, 4) + 1), replace=False)
    logits[np.setdiff1d(np.arange(size), allowed)] = -np.inf
    logits[allowed] -= random.choice([0.0, 50.0, 1e30], len(allowed)).astype(np.float32)
    for chance in CHANCES:
        assert chosen(logits, Sampling(temperature=temperature, top_p=top_p), chance, kernels) in allowed


@pytest.mark.parametrize("kernels", ALL_KERNELS)
@pytest.mark.parametrize("size", [1, 8, 255, 256, 257, 1000])
def test_greedy_takes_the_lowest_of_the_best(size: int, kernels: str) -> None:
    random = np.random.default_rng(size)
    for _ in range(20):
        logits = random.integers(0, 4, size).astype(np.float32)
        assert chosen(logits, Sampling(temperature=0), 0.0, kernels) == int(logits.argmax())


@pytest.mark.parametrize("kernels", ALL_KERNELS)
@pytest.mark.parametrize("shift", [0.0, -5.0])  # with positive and with negative logits a penalty is another one
@pytest.mark.parametrize("penalty", [0.7, 1.3])
def test_penalties_are_the_plain_ones(shift: float, penalty: float, kernels: str) -> None:
    given = (np.random.default_rng(3).standard_normal(1000) + shift).astype(np.float32)
    logits = given.copy()
    sampling = Sampling(temperature=0, repetition_penalty=penalty)
    seen = np.array([-1, 1000, 2**31 - 1], np.int32)  # what the model does not know is not looked at
    for _ in range(50):
        token = chosen(logits, sampling, 0.0, kernels, seen)
        assert token == choose_plain.choose(logits, sampling, seen[3:], 0.0)
        seen = seen if token in seen else np.append(seen, np.int32(token))
    assert np.array_equal(logits, given)  # the backend's array is not written to


@pytest.mark.parametrize("kernels", ALL_KERNELS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nothing_is_chosen_from_what_is_not_finite(value: float, kernels: str) -> None:
    for at in (0, 8, 99, 100):
        logits = np.zeros(101, np.float32)
        logits[at] = value
        assert [-1, -1] == [chosen(logits, Sampling(temperature=t), 0.5, kernels) for t in (0.0, 1.0)]
    assert -1 == chosen(np.full(10, -np.inf), Sampling(), 0.5, kernels)
    with pytest.raises(KernelError, match="no logits"):
        chosen(np.zeros(0), Sampling(), 0.5, kernels)


@pytest.mark.parametrize("kernels", ALL_KERNELS)
def test_rounding_at_the_end_of_the_line_falls_on_the_last_that_may_be_drawn(kernels: str) -> None:
    logits = np.full(1000, -np.inf, np.float32)
    logits[[3, 260]] = 0.0
    assert [3, 3, 260, 260] == [chosen(logits, Sampling(), chance, kernels) for chance in (0.0, 0.49, 0.51, 1.0)]


@pytest.mark.parametrize("kernels", ALL_KERNELS)
@pytest.mark.parametrize("temperature", [0.01, 5.0])
def test_the_best_one_is_the_greedy_one(temperature: float, kernels: str) -> None:
    """However near the next is, and where all others weigh nothing."""
    logits = np.full(9000, 0.9999999, np.float32)
    logits[8000] = 1.0
    assert 8000 == chosen(logits, Sampling(temperature=temperature, top_k=1), 0.3, kernels)


def test_without_a_compiler_numpy_chooses_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same seeds, with and without the library: the same tokens, and the same complaint."""
    logits = (np.random.default_rng(2).standard_normal((40, 5000)) * 3).astype(np.float32)
    wishes = [
        Sampling(temperature=0, repetition_penalty=1.3),
        Sampling(temperature=0, repetition_penalty=0.5),
        Sampling(temperature=0.8, seed=1),
        Sampling(temperature=0.8, top_k=2**53, seed=3),
        Sampling(temperature=1.2, top_k=50, top_p=0.95, min_p=0.01, repetition_penalty=1.1, seed=2),
    ]
    compiled = [[one.sample(row) for row in logits] for one in (Sampler(wish, [1, 2]) for wish in wishes)]
    monkeypatch.setattr(sampler, "compiled", lambda: None)
    assert compiled == [[one.sample(row) for row in logits] for one in (Sampler(wish, [1, 2]) for wish in wishes)]
    with pytest.raises(BadLogitsError):
        Sampler(Sampling(), []).sample(np.full(10, np.nan, np.float32))
