"""Drafts: what is offered, when it is computed, and that no text depends on it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from edged.core.prompt import Choice, Request, Sampling
from edged.engine import load_model
from edged.engine.backends.native_backend import NativeBackend
from edged.engine.engine import Engine
from edged.engine.speculation import STALE_AFTER, PromptLookup, Proposal, Speculation
from edged.models.tokenizer.codec import TextCodec
from tests.engine.conftest import Clock, FakeBackend, finals, make_engine, what
from tests.native.conftest import kernels_missing
from tests.tiny import WORDS

LIKELY = Proposal([1] * 7, 0.9)


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ([1, 2, 3, 4, 1, 2], 2, [3, 4]),
        ([1, 2, 3, 4, 1, 2], 7, [3, 4, 1, 2, 3, 4, 1]),  # taken to go round
        ([5, 5, 5, 5], 3, [5, 5, 5]),
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
    assert expected == PromptLookup(text).propose(most)


def test_a_lookup_learns_whether_it_was_right() -> None:
    """Also from drafts that were not computed; a wrong one ends the row, and old ones count for less."""
    lookup = PromptLookup([1, 2, 3, 4, 9, 1, 2])
    first = lookup.acceptance
    assert [3, 4, 9] == lookup.propose(3)
    lookup.append(3)
    better = lookup.acceptance
    lookup.append(7)
    worse = lookup.acceptance
    lookup.append(9)  # after a wrong one nothing is said of those that followed
    assert first < worse < better
    assert worse == lookup.acceptance
    sure = PromptLookup([7] * 4)
    for _ in range(60):
        sure.propose(1)
        sure.append(7)
    assert sure.acceptance > 0.85
    for token in range(60):
        sure.append(token)
        sure.append(7)
        sure.append(7)
        sure.propose(1)
    assert sure.acceptance < 0.15


def test_drafts_are_computed_where_they_pay() -> None:
    """As many as make most tokens a second by what steps took here; none before that is known, or when it is slow."""
    speculation = Speculation()
    assert 0 == speculation.draft_count([LIKELY])
    speculation.observe(1, 1.0)
    assert 7 == speculation.draft_count([LIKELY])  # never tried
    for rows, seconds in ((8, 6.0), (4, 1.5), (2, 1.2)):
        speculation.observe(rows, seconds)
    assert 3 == speculation.draft_count([LIKELY])
    assert 1 == speculation.draft_count([Proposal([1] * 7, 0.3)])
    assert 0 == speculation.draft_count([Proposal([1] * 7, 0.05)])
    assert 0 == speculation.draft_count([Proposal([], 0.9)])
    assert 0 == speculation.draft_count([Proposal([1] * 7, 0.15)])  # too little to gain
    assert 0 == speculation.draft_count([])


def test_a_step_with_drafts_has_8_tokens_at_most() -> None:
    """Of all sequences together: a processor without much to spare computes no more at once."""
    speculation = Speculation()
    for rows in (6, 7, 8, 9, 10, 13):
        speculation.observe(rows, 1.0)
    assert 0 == speculation.draft_count([LIKELY] * 6)
    assert 0 == speculation.draft_count([LIKELY] * 7)
    assert 0 == speculation.draft_count([LIKELY] * 9)
    assert 1 == speculation.draft_count([Proposal([], 0.9)] * 6 + [Proposal([1], 0.9)])


def test_an_interrupted_step_is_forgotten() -> None:
    """One that took a hundred times as long counts for little, and what was slow once is tried again some day."""
    speculation = Speculation()
    for rows, seconds in ((1, 1.0), (2, 1.1), (4, 1.2), (8, 1.5)):
        speculation.observe(rows, seconds)
    speculation.observe(8, 150.0)
    assert 7 == speculation.draft_count([LIKELY])
    for _ in range(9):
        speculation.observe(8, 150.0)
    assert 3 == speculation.draft_count([LIKELY])
    chosen = run(speculation, LIKELY, {1: 1.0, 2: 1.1, 4: 1.2, 8: 1.5}, STALE_AFTER + 10)
    assert 7 == chosen[-1]


@pytest.mark.parametrize(("rng", "best"), [(0.0, 1.0), (0.04, 1.0), (0.3, 1.2), (0.9, 3.3)])
def test_a_bad_beginning_does_not_last(rng: float, best: float) -> None:
    """The first step without drafts was interrupted: that is measured again, and few tokens are lost."""
    costs = {1: 1.0, 2: 1.08, 4: 1.2, 8: 1.7}
    speculation = Speculation()
    speculation.observe(1, 3.0)
    offer = Proposal([1] * 7, rng)
    chosen = run(speculation, offer, costs, 5000)
    speed = sum(offer.expected_tokens(count) for count in chosen) / sum(costs[1 + count] for count in chosen)
    assert speed > 0.93 * best


def test_a_clock_that_stands_still(codec: TextCodec, tiny_gguf: Path) -> None:
    """Steps of no length are no reason to fail."""
    engine, _ = drafting(codec, tiny_gguf, 7, [Request(raw=" ".join(WORDS), sampling=Sampling(temperature=0))])
    engine._clock = lambda: 5.0
    (final,) = finals(engine).values()
    assert "length" == final.reason


def run(speculation: Speculation, offer: Proposal, costs: dict[int, float], steps: int) -> list[int]:
    """The number of drafts chosen in each of so many steps that take what `costs` says."""
    chosen = []
    for _ in range(steps):
        chosen.append(speculation.draft_count([offer]))
        speculation.observe(1 + chosen[-1], costs[1 + chosen[-1]])
    return chosen


def repeating(cache: list[int]) -> int | None:
    """A model that mostly goes on as eleven tokens before."""
    return cache[-11] if len(cache) > 60 and len(cache) % 9 else None


def drafting(codec: TextCodec, path: Path, drafts: int, requests: list[Request]) -> tuple[Engine, FakeBackend]:
    backend = FakeBackend(codec.vocabulary, drafts=drafts)
    backend.script = repeating
    engine = make_engine(backend, codec, path)
    engine._clock = Clock(0.05)  # too slow for several steps a call, fast enough for whole chunks
    for number, request in enumerate(requests):
        engine.add(f"{number}", request)
    return engine, backend


def test_no_text_depends_on_drafts(codec: TextCodec, tiny_gguf: Path) -> None:
    """Ends by stop text, length, context and format, random draws, penalties, log probabilities: all the same, in
    fewer steps."""
    rng = random.Random(4)
    samplings = [
        Sampling(temperature=temperature, max_tokens=most, seed=seed, stop=stop, repetition_penalty=penalty)
        for seed, (temperature, most, stop, penalty) in enumerate(
            [(0.0, 1, (), 1.0), (0.0, 90, (), 1.0), (1.0, 200, (), 1.0), (0.0, 500, (), 1.0), (0.7, 60, ("e",), 1.2)]
            * 4
        )
    ]
    requests = [
        Request(raw=" ".join(rng.choices(WORDS, k=20)), sampling=sampling, logprobs=True) for sampling in samplings
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
                assert {} == backend.caches
            steps.append((outcome, runs))
        assert steps[0][0] == steps[1][0]
        assert len(requests) == len(steps[0][0])
        assert steps[1][1] < steps[0][1]


def test_a_repeating_text_takes_far_fewer_steps(codec: TextCodec, tiny_gguf: Path) -> None:
    """Here eight of nine tokens are foreseen, so a step that costs no more gives several."""
    request = Request(raw=" ".join(WORDS * 2), sampling=Sampling(temperature=0, max_tokens=200))
    runs = []
    for drafts in (0, 1, 7):
        engine, backend = drafting(codec, tiny_gguf, drafts, [request])
        (final,) = finals(engine).values()
        assert 200 == final.usage.completion_tokens
        runs.append(len(backend.log))
    assert runs[1] < 0.75 * runs[0]
    assert runs[2] < 0.45 * runs[0], runs


def copying(start: int, copied: list[int], ended: int | None) -> Callable[[list[int]], int]:
    """A model that writes the prompt's tokens again, and the end in place of one of them."""
    return lambda cache: 2 if len(cache) - start == ended else copied[(len(cache) - start) % len(copied)]


def test_a_text_may_end_amid_its_drafts(codec: TextCodec, tiny_gguf: Path) -> None:
    """By a stop text that a draft completes, with more drafts behind it, and by the model's own end in place of one."""
    words = " ".join(WORDS)
    copied = codec.encode(words, specials=False)
    for ended, stop in (*((None, (word,)) for word in WORDS[5:14]), (21, ()), (22, ())):
        found = []
        for drafts in (0, 7):
            sampling = Sampling(temperature=0, max_tokens=90, stop=stop)
            engine, backend = drafting(codec, tiny_gguf, drafts, [Request(raw=words, sampling=sampling)])
            backend.script = copying(len(engine.encode(Request(raw=words))), copied, ended)
            (final,) = finals(engine).values()
            found.append((what(final), len(backend.log)))
            assert {} == backend.caches
        assert found[0][0] == found[1][0]
        assert "stop" == found[0][0][0]
        assert found[1][1] < found[0][1]


def test_only_steps_that_decode_are_measured(codec: TextCodec, tiny_gguf: Path) -> None:
    """A prompt's chunk takes longer than a token and says nothing about one."""
    requests = [Request(raw="8" * 400, sampling=Sampling(temperature=0, max_tokens=30)) for _ in range(2)]
    engine, backend = drafting(codec, tiny_gguf, 7, requests)
    rows: list[int] = []
    engine._speculation.observe = lambda count, seconds: rows.append(count)  # type: ignore[method-assign]
    finals(engine)
    decoded = [drafts + len(run) for run, drafts in zip(backend.log, backend.draft_log, strict=True) if max(run) == 1]
    assert decoded == rows
    assert 0 < len(rows) < len(backend.log)


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
    assert {0} == set(backend.draft_log)


@pytest.mark.skipif(kernels_missing() is not None, reason=f"no kernels: {kernels_missing()}")
def test_the_native_engine_gives_the_same_with_drafts(tiny_gguf: Path, tmp_path: Path) -> None:
    """Texts, log probabilities and what the cache kept for a second round, whatever the width; drafts were kept."""
    rng = random.Random(2)
    requests = [
        Request(
            raw=" ".join([*WORDS[:20], *rng.choices(WORDS, k=12)]),
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
