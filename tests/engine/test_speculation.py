"""Drafts: what is offered, when it is computed, and that no text depends on it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from edged.core.prompt import Choice, Final, Request, Sampling
from edged.engine import load_model
from edged.engine.backends.native_backend import NativeBackend
from edged.engine.engine import Engine
from edged.engine.speculation import Lookup, Offer, Speculation
from edged.models.tokenizer import TextCodec
from tests.engine.conftest import FakeBackend, make_engine
from tests.native.conftest import kernels_missing
from tests.tiny import WORDS

LIKELY = Offer([1] * 7, 0.9)


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ([1, 2, 3, 4, 1, 2], 2, [3, 4]),
        ([1, 2, 3, 4, 1, 2], 7, [3, 4, 1, 2, 3, 4, 1]),  # taken to go round
        ([5, 5, 5], 3, [5, 5, 5]),
        ([1, 2, 7, 9, 1, 2, 8, 0, 1, 2], 1, [8]),  # the latest of equals
        ([3, 1, 2, 7, 9, 1, 2, 8, 3, 1, 2], 1, [7]),  # the longest match before the latest
        ([4, 3, 1, 2, 7, 9, 3, 1, 2, 8, 4, 3, 1, 2], 1, [7]),
        ([1, 2, 3, 4, 5, 2], 3, []),  # one token alone says too little
        ([1, 2], 3, []),
        ([1, 2, 1, 2], 0, []),
    ],
)
def test_what_followed_before_is_offered(text: list[int], most: int, expected: list[int]) -> None:
    """After the last two tokens, better three or four."""
    assert expected == Lookup(text).offer(most)


def test_a_lookup_learns_whether_it_was_right() -> None:
    """Also from drafts that were not computed; a wrong one ends the row, and old ones count for less."""
    lookup = Lookup([1, 2, 3, 4, 1, 2])
    first = lookup.chance
    assert [3, 4] == lookup.offer(2)
    lookup.append(3)
    better = lookup.chance
    lookup.append(9)
    worse = lookup.chance
    lookup.append(9)  # nothing was said of this one
    assert first < worse < better
    assert worse == lookup.chance
    sure = Lookup([7] * 3)
    for _ in range(60):
        sure.offer(1)
        sure.append(7)
    assert sure.chance > 0.85
    for token in range(60):
        sure.append(token)
        sure.append(7)
        sure.append(7)
        sure.offer(1)
    assert sure.chance < 0.15


def test_drafts_are_computed_where_they_pay() -> None:
    """As many as make most tokens a second by what steps took here; none before that is known, or when it is slow."""
    speculation = Speculation()
    assert speculation.count([LIKELY]) == 0
    speculation.measured(1, 1.0)
    assert speculation.count([LIKELY]) == 7  # never tried
    for rows, seconds in ((8, 6.0), (4, 1.5), (2, 1.2)):
        speculation.measured(rows, seconds)
    assert speculation.count([LIKELY]) == 3
    assert speculation.count([Offer([1] * 7, 0.3)]) == 1
    assert speculation.count([Offer([1] * 7, 0.05)]) == 0
    assert speculation.count([Offer([], 0.9)]) == 0
    assert speculation.count([LIKELY] * 9) == 0  # more sequences than that fill a step themselves
    assert speculation.count([]) == 0


def test_an_interrupted_step_is_forgotten() -> None:
    """One that took a hundred times as long counts for little, and what was slow once is tried again some day."""
    speculation = Speculation()
    for rows, seconds in ((1, 1.0), (2, 1.1), (4, 1.2), (8, 1.5)):
        speculation.measured(rows, seconds)
    speculation.measured(8, 150.0)
    assert speculation.count([LIKELY]) == 7
    for _ in range(9):
        speculation.measured(8, 150.0)
    assert speculation.count([LIKELY]) == 3
    steps = 0
    while speculation.count([LIKELY]) != 7:
        speculation.measured(4, 1.2)
        steps += 1
    assert 100 < steps < 5000


class Clock:
    """A step takes one second, whatever it computes."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def repeating(cache: list[int]) -> int | None:
    """A model that mostly goes on as eleven tokens before."""
    return cache[-11] if len(cache) > 60 and len(cache) % 9 else None


def drafting(codec: TextCodec, path: Path, drafts: int, requests: list[Request]) -> tuple[Engine, FakeBackend]:
    backend = FakeBackend(codec.vocabulary, drafts=drafts)
    backend.script = repeating
    engine = make_engine(backend, codec, path)
    engine._clock = Clock()
    for number, request in enumerate(requests):
        engine.add(f"{number}", request)
    return engine, backend


def finals(engine: Engine) -> dict[str, Final]:
    return {
        key: event for _ in iter(lambda: engine.busy, False) for key, event in engine.step() if isinstance(event, Final)
    }


def what(final: Final) -> tuple[object, ...]:
    return final.reason, final.text, final.usage, final.logprobs, final.failure


def test_no_text_depends_on_drafts(codec: TextCodec, tiny_gguf: Path) -> None:
    """Ends by stop text, length, context and format, random draws, penalties, log probabilities: all the same, in
    fewer steps."""
    chance = random.Random(4)
    samplings = [
        Sampling(temperature=temperature, max_tokens=most, seed=seed, stop=stop, repetition_penalty=penalty)
        for seed, (temperature, most, stop, penalty) in enumerate(
            [(0.0, 1, (), 1.0), (0.0, 90, (), 1.0), (1.0, 200, (), 1.0), (0.0, 500, (), 1.0), (0.7, 60, ("e",), 1.2)]
            * 4
        )
    ]
    requests = [
        Request(raw=" ".join(chance.choices(WORDS, k=20)), sampling=sampling, logprobs=True) for sampling in samplings
    ]
    requests.append(Request(raw="go", format=Choice(("one two one two one two one two",)), sampling=Sampling(seed=1)))
    for width in (1, 3, len(requests)):
        steps = []
        for drafts in (0, 7):
            outcome = {}
            runs = 0
            for begin in range(0, len(requests), width):
                engine, backend = drafting(codec, tiny_gguf, drafts, requests[begin : begin + width])
                outcome |= {int(key) + begin: what(final) for key, final in finals(engine).items()}
                runs += len(backend.log)
                assert backend.caches == {}
            steps.append((outcome, runs))
        assert steps[0][0] == steps[1][0]
        assert len(steps[0][0]) == len(requests)
        assert steps[1][1] < steps[0][1]


def test_a_repeating_text_takes_far_fewer_steps(codec: TextCodec, tiny_gguf: Path) -> None:
    """Here eight of nine tokens are foreseen, so a step that costs no more gives several."""
    request = Request(raw=" ".join(WORDS * 2), sampling=Sampling(temperature=0, max_tokens=200))
    runs = []
    for drafts in (0, 1, 7):
        engine, backend = drafting(codec, tiny_gguf, drafts, [request])
        (final,) = finals(engine).values()
        assert final.usage.completion_tokens == 200
        runs.append(len(backend.log))
    assert runs[1] < 0.75 * runs[0]
    assert runs[2] < 0.45 * runs[0], runs


def test_a_prompt_is_not_held_up_by_drafts(codec: TextCodec, tiny_gguf: Path) -> None:
    """While a chunk of a prompt is computed, a reply has its one token beside it."""
    sampling = Sampling(temperature=0, max_tokens=300)
    engine, backend = drafting(codec, tiny_gguf, 7, [Request(raw=" ".join(WORDS), sampling=sampling)])
    for _ in range(60):
        engine.step()
    assert sum(backend.draft_log) > 0
    engine.add("b", Request(raw="8" * 300, sampling=Sampling(temperature=0, max_tokens=1)))
    engine.step()
    backend.draft_log.clear()
    while any(sequence.prefilling for sequence in engine._sequences.values()):
        engine.step()
    assert set(backend.draft_log) == {0}


@pytest.mark.skipif(kernels_missing() is not None, reason=f"no kernels: {kernels_missing()}")
def test_the_native_engine_gives_the_same_with_drafts(tiny_gguf: Path, tmp_path: Path) -> None:
    """Texts, log probabilities and what the cache kept for a second round, whatever the width; drafts were kept."""
    chance = random.Random(2)
    requests = [
        Request(
            raw=" ".join([*WORDS[:20], *chance.choices(WORDS, k=12)]),
            sampling=Sampling(temperature=0.3 * (number % 2), max_tokens=80, seed=number, repetition_penalty=0.6),
            logprobs=True,
        )
        for number in range(12)
    ]
    expected: list[object] = []
    for drafts in (0, 7):
        for width in (1, 4):
            model = load_model(tiny_gguf, "native", store_root=tmp_path, context=256, threads=2)
            assert isinstance(model.backend, NativeBackend)
            model.backend.drafts = drafts
            model.engine._clock = Clock()
            kept = count_kept(model.backend)
            found = []
            for begin in (*range(0, 12, width), *range(0, 12, width)):  # the second time out of the cache
                for number, request in enumerate(requests[begin : begin + width]):
                    model.engine.add(f"{begin + number}", request)
                found += sorted((int(key), what(final)) for key, final in finals(model.engine).items())
            if width == 1:  # in company other beginnings are in the cache
                expected = expected or found
                assert expected == found
            assert [text(one) for one in expected] == [text(one) for one in found]
            assert bool(kept) == bool(drafts)


def text(found: object) -> object:
    number, (_, words, *_) = found  # type: ignore[misc]
    return number, words


def count_kept(backend: NativeBackend) -> list[int]:
    kept: list[int] = []
    keep = backend.keep

    def note(slot: int, token: int) -> None:
        kept.append(token)
        keep(slot, token)

    backend.keep = note  # type: ignore[method-assign]
    return kept
