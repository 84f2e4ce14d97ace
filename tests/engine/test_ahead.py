"""A few tokens from one call of the backend: when, how many, and that no text depends on it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from edged.core.prompt import Chunk, Final, Request, Sampling
from edged.engine import load_model
from edged.engine.backends.base import ComputeError
from edged.engine.backends.native_backend import NativeBackend
from edged.engine.engine import Engine
from edged.engine.scheduler import MAX_STEPS, steps_per_call
from edged.engine.scheduler import MULTI_STEP_SECONDS as LIMIT
from edged.models.tokenizer.codec import TextCodec
from tests.engine.conftest import Clock, FakeBackend, finals, make_engine, what
from tests.native.conftest import kernels_missing
from tests.tiny import WORDS


def ahead(codec: TextCodec, path: Path, requests: list[Request], decodes: bool = True, step: float = 1e-4) -> Engine:
    backend = FakeBackend(codec.vocabulary)
    backend.max_steps = 8 if decodes else 1
    engine = make_engine(backend, codec, path)
    engine._clock = Clock(step)
    for number, request in enumerate(requests):
        engine.add(f"{number}", request)
    return engine


def fake(engine: Engine) -> FakeBackend:
    assert isinstance(engine._backend, FakeBackend)
    return engine._backend


@pytest.mark.parametrize(
    ("seconds", "steps"),
    [
        (None, 1),
        (1.0, 1),
        (LIMIT * 0.9, 1),
        (LIMIT / 2.01, 2),
        (LIMIT / 3.5, 3),
        (LIMIT / 100, MAX_STEPS),
    ],
)
def test_as_many_steps_as_take_a_moment(seconds: float | None, steps: int) -> None:
    """A slow model computes one at a time, as does one of which nothing is known."""
    assert steps == steps_per_call(seconds)


def test_no_text_depends_on_it(codec: TextCodec, tiny_gguf: Path) -> None:
    """Ends by stop text, end token, length and context, random draws, penalties: all the same, in fewer calls."""
    rng = random.Random(4)
    kinds = [(0.0, 1, (), 1.0), (0.0, 90, (), 1.0), (1.0, 200, (), 1.0), (0.0, 500, (), 1.0), (0.7, 60, ("e",), 1.2)]
    requests = [
        Request(
            raw=" ".join(rng.choices(WORDS, k=20)),
            sampling=Sampling(temperature=heat, max_tokens=most, seed=seed, stop=stop, repetition_penalty=penalty),
        )
        for seed, (heat, most, stop, penalty) in enumerate(kinds * 4)
    ]
    for width in (1, 3, len(requests)):
        steps = []
        for decodes in (False, True):
            outcome, calls = {}, 0
            for begin in range(0, len(requests), width):
                engine = ahead(codec, tiny_gguf, requests[begin : begin + width], decodes)
                fake(engine).script = lambda cache: 2 if sum(cache[-3:]) % 97 == 5 else None
                outcome |= {int(key) + begin: what(final) for key, final in finals(engine).items()}
                calls += len(fake(engine).log) + sum(done > 0 for _, done in fake(engine).steps_log)
                assert {} == fake(engine).caches
            steps.append((outcome, calls))
        assert steps[0][0] == steps[1][0]
        assert {"stop", "length"} == {reason for reason, *_ in steps[0][0].values()}
        assert steps[1][1] < steps[0][1] * 0.6


def test_the_first_token_comes_alone(codec: TextCodec, tiny_gguf: Path) -> None:
    """Nobody waits for others before the first word; a full cache of the prompt changes nothing."""
    engine = ahead(codec, tiny_gguf, [Request(raw="hello", sampling=Sampling(temperature=0, max_tokens=20))])
    prompt = engine.encode(Request(raw="hello"))
    fake(engine).kept = prompt[:-1]
    engine._speculation.observe(1, 1e-4)
    engine.step()
    engine.step()
    assert [[1]] == fake(engine).log
    assert [] == fake(engine).steps_log
    engine.step()
    assert [(8, 8)] == fake(engine).steps_log


def test_none_past_an_end(codec: TextCodec, tiny_gguf: Path) -> None:
    """Neither of the tokens that were asked for nor of the context, of any sequence."""
    requests = [Request(raw="a", sampling=Sampling(temperature=0, max_tokens=most)) for most in (7, 30)]
    engine = ahead(codec, tiny_gguf, requests)
    found = finals(engine)
    assert [7, 30] == [found["0"].usage.completion_tokens, found["1"].usage.completion_tokens]
    assert all(asked == done for asked, done in fake(engine).steps_log)
    engine = ahead(codec, tiny_gguf, [Request(raw="5" * 490, sampling=Sampling(temperature=0, max_tokens=500))])
    (final,) = finals(engine).values()
    assert 512 == final.usage.prompt_tokens + final.usage.completion_tokens


def test_log_probabilities_are_computed_one_at_a_time(codec: TextCodec, tiny_gguf: Path) -> None:
    """They need all logits; company of one that wants them waits for it."""
    requests = [Request(raw="a", logprobs=wanted, sampling=Sampling(max_tokens=9, seed=1)) for wanted in (True, False)]
    engine = ahead(codec, tiny_gguf, requests)
    assert 9 == len(finals(engine)["0"].logprobs)
    assert [] == fake(engine).steps_log


def test_a_failing_step_fails_its_sequence_alone(codec: TextCodec, tiny_gguf: Path) -> None:
    """What was chosen before it is told, and the other goes on."""
    requests = [Request(raw=text, sampling=Sampling(temperature=0, max_tokens=20)) for text in ("a", "bb")]
    engine = ahead(codec, tiny_gguf, requests)
    prompt = len(engine.encode(requests[0]))
    start = engine.encode(requests[0])
    fake(engine).script = lambda cache: (
        ComputeError("no") if cache[:prompt] == start and len(cache) == prompt + 11 else None
    )
    found = finals(engine)
    assert ("failed", 11) == (found["0"].reason, found["0"].usage.completion_tokens)
    assert ("length", 20) == (found["1"].reason, found["1"].usage.completion_tokens)


def test_something_new_ends_a_call(codec: TextCodec, tiny_gguf: Path) -> None:
    """The one that runs or, where none did, the next one; after that it goes on as before."""
    engine = ahead(codec, tiny_gguf, [Request(raw="a", sampling=Sampling(temperature=0, max_tokens=60))])
    for _ in range(4):
        engine.step()
    engine.interrupt()
    for _ in range(3):
        engine.step()
    assert [(8, 8), (8, 8), (8, 1), (8, 8), (8, 8)] == fake(engine).steps_log


def test_a_cancel_is_seen_between_two_calls(codec: TextCodec, tiny_gguf: Path) -> None:
    """With the text so far."""
    engine = ahead(codec, tiny_gguf, [Request(raw="a", sampling=Sampling(temperature=0, max_tokens=60))])
    text = ""
    for _ in range(5):
        text += "".join(event.text for _, event in engine.step() if isinstance(event, Chunk))
    engine.cancel("0")
    found = engine.step()
    final = found[-1][1]
    assert isinstance(final, Final)
    assert "cancelled" == final.reason
    assert final.text == text + "".join(event.text for _, event in found if isinstance(event, Chunk))
    assert 25 == final.usage.completion_tokens


@pytest.mark.parametrize("count", [1, 2, 4, 6, 8])
def test_those_wait_for_drafts_for_which_they_would_pay(codec: TextCodec, tiny_gguf: Path, count: int) -> None:
    """Each as if it alone came to have some; no others, and none where a step has no room for them."""
    requests = [Request(raw=f"a {number}", sampling=Sampling(temperature=0, max_tokens=40)) for number in range(count)]
    engine = ahead(codec, tiny_gguf, requests)
    fake(engine).slots, fake(engine).drafts = 8, 7
    for _ in range(3 + 2 * count):
        engine.step()
    for rows in range(1, 9):  # each token more costs a tenth
        engine._speculation._seconds[rows], engine._speculation._age[rows] = 1e-4 * (1 + 0.1 * rows), 0
    for number, sequence in enumerate(engine._sequences.values()):
        sequence.lookup._accepted, sequence.lookup._proposed = (9.0, 10.0) if number % 2 else (0.0, 10.0)
        sequence.lookup._expected = []
    fake(engine).watched.clear()
    engine.step()
    assert fake(engine).watched == [[number % 2 == 1 and count < 8 for number in range(count)]]


@pytest.mark.skipif(kernels_missing() is not None, reason=f"no kernels: {kernels_missing()}")
def test_the_native_engine_gives_the_same(tiny_gguf: Path, tmp_path: Path) -> None:
    """Texts with and without, with and without drafts beside it, whatever the width; and it was used."""
    rng = random.Random(3)
    requests = [
        Request(
            raw=" ".join([*WORDS[:20], *rng.choices(WORDS, k=12)]),
            sampling=Sampling(temperature=0.4 * (number % 2), max_tokens=70, seed=number, top_k=40 * (number % 3)),
        )
        for number in range(12)
    ]
    expected: list[tuple[object, ...]] = []
    for drafts, step in ((0, 1.0), (0, 1e-4), (7, 1e-4)):
        for width in (1, 5):
            model = load_model(tiny_gguf, "native", store_root=tmp_path, context=256, threads=2)
            assert isinstance(model.backend, NativeBackend)
            model.backend.drafts = drafts
            model.engine._clock = Clock(step)
            lengths = count_steps(model.backend)
            found = {}
            for begin in range(0, 12, width):
                for number, request in enumerate(requests[begin : begin + width], begin):
                    model.engine.add(f"{number}", request)
                found |= {int(key): what(final)[:2] for key, final in finals(model.engine).items()}
            expected = expected or [found[number] for number in range(12)]
            assert expected == [found[number] for number in range(12)]
            assert max(lengths) == (1 if step == 1.0 else MAX_STEPS)


def count_steps(backend: NativeBackend) -> list[int]:
    """The steps done in each call from now on."""
    lengths, decode = [], backend.decode

    def counting(*arguments: object) -> list[list[int]]:
        chosen = decode(*arguments)  # type: ignore[arg-type]
        lengths.append(len(chosen[0]))
        return chosen

    backend.decode = counting  # type: ignore[method-assign, assignment]
    return lengths
