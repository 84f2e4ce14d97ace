"""Sampling against a plain reference; streams that never break a character or show a part of a stop text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.core.prompt import Sampling
from edged.engine.choose_plain import candidates, draw
from edged.engine.detokenizer import TextStream
from edged.engine.sampler import BadLogitsError, Sampler


def reference(logits: np.ndarray, sampling: Sampling) -> dict[int, float]:
    """The distribution, written as the definitions read."""
    scaled = [float(value) / sampling.temperature for value in logits]
    best = max(scaled)
    weights = [np.exp(value - best) for value in scaled]
    order = sorted(range(len(weights)), key=lambda token: (-weights[token], token))
    if sampling.top_k:
        order = order[: sampling.top_k]
    total, kept, mass = sum(weights[token] for token in order), [], 0.0
    for token in order:
        if kept and sampling.top_p < 1 and mass >= sampling.top_p * total:
            break
        kept.append(token)
        mass += weights[token]
    kept = [token for token in kept if weights[token] >= sampling.min_p * weights[order[0]]]
    total = sum(weights[token] for token in kept)
    return {token: weights[token] / total for token in kept}


SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.1, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 3, 10, 100]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.01, 0.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 60), SAMPLINGS)
def test_candidates_are_the_reference(seed: int, size: int, sampling: Sampling) -> None:
    random = np.random.default_rng(seed)
    logits = (random.standard_normal(size) * 3).round(1).astype(np.float32)  # rounded: with ties
    check_candidates(logits, sampling)


def check_candidates(logits: np.ndarray, sampling: Sampling) -> None:
    tokens, weights = candidates(logits, sampling)
    expected = reference(logits, sampling)
    chosen = list(range(len(logits))) if tokens is None else tokens.tolist()
    assert sorted(expected) == chosen
    found = dict(zip(chosen, (weights / weights.sum(dtype=np.float64)).tolist(), strict=True))
    assert all(abs(found[token] - share) < 1e-6 for token, share in expected.items())


@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(40, 1.0), (5000, 0.9), (0, 0.9), (0, 0.5), (1, 1.0)])
def test_candidates_of_a_long_vocabulary(spread: float, top_k: int, top_p: float) -> None:
    """Where only a part is looked at, and where (a flat one) that is not enough."""
    logits = (np.random.default_rng(1).standard_normal(20_000) * spread).astype(np.float32)
    check_candidates(logits, Sampling(temperature=0.7, top_k=top_k, top_p=top_p))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=1200).filter(any), st.floats(0, 1, exclude_max=True))
def test_a_draw_falls_where_the_running_sum_says(weights: list[int], chance: float) -> None:
    """Whole numbers, so that sums are exact: against the plain search through all of them."""
    ends = np.cumsum(weights)
    expected = int(np.searchsorted(ends, chance * float(ends[-1]), side="right"))
    assert expected == draw(np.asarray(weights, np.float32), chance)


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2, 1e-9], np.float32))
    sampler = Sampler(Sampling(temperature=1.0, seed=3), [])
    counts = np.bincount([sampler.sample(logits) for _ in range(20_000)], minlength=4) / 20_000
    assert np.abs(counts - [0.5, 0.3, 0.2, 0.0]).max() < 0.015


def test_greedy_and_penalty() -> None:
    logits = np.array([1.0, 3.0, 3.0, -1.0], np.float32)
    assert 1 == Sampler(Sampling(temperature=0), []).sample(logits)
    assert 2 == Sampler(Sampling(temperature=0, repetition_penalty=1.5), [1]).sample(logits)
    assert logits.tolist() != [3.0, 1.0, 3.0, -1.0]
    assert [1.0, 3.0, 3.0, -1.0] == logits.tolist()  # the backend's array is not written to
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=2.0), [])
    assert [1, 2, 1, 1] == [sampler.sample(logits) for _ in range(4)]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_logits(value: float) -> None:
    logits = np.zeros(10, np.float32)
    logits[3] = value
    for temperature in (0.0, 1.0):
        with pytest.raises(BadLogitsError):
            Sampler(Sampling(temperature=temperature), []).sample(logits)
    with pytest.raises(BadLogitsError):
        Sampler(Sampling(), []).sample(np.full(10, -np.inf, np.float32))


def test_tiny_temperatures_do_not_overflow() -> None:
    logits = np.array([5.0, -500.0, 4.99], np.float32)
    assert 0 == Sampler(Sampling(temperature=1e-12, seed=1), []).sample(logits)


STOPS = st.lists(st.text("abé€\n", min_size=1, max_size=4), max_size=3)


@settings(max_examples=500, deadline=None)
@given(st.text("abé€😀\n", max_size=40), STOPS, st.lists(st.integers(1, 4), max_size=80))
def test_streams(text: str, stops: list[str], cuts: list[int]) -> None:
    """Cut anywhere in its bytes: what is shown is the text before the stop text that ends first, no more."""
    data, stream, shown = text.encode(), TextStream(stops), ""
    ends = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    expected = text[: min(ends)[1]] if ends else text
    while data:
        size = cuts.pop() if cuts else 1
        shown += stream.push(data[:size])
        data = data[size:]
        assert expected.startswith(shown)
        assert "\ufffd" not in shown
    shown += stream.finish()
    assert shown == stream.text
    assert bool(ends) == stream.stopped
    assert expected == shown


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers(1, 5))
def test_bytes_that_are_no_text(data: bytes, size: int) -> None:
    """Broken bytes become the replacement character, an incomplete end is left out, nothing raises."""
    stream = TextStream()
    for at in range(0, len(data), size):
        stream.push(data[at : at + size])
    stream.finish()
    stream.text.encode()
    assert data.decode("utf-8", "replace").startswith(stream.text)
