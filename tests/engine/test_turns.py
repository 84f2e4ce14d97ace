"""The engine's order and its promises, on a fake backend whose logits depend on every token before."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from edged.core.prompt import Chunk, Final, Request, Sampling, Started
from edged.engine.backends.base import ComputeError, Logits, Slice
from edged.engine.engine import Engine
from edged.engine.scheduler import QUANTUM
from edged.models.tokenizer.codec import TextCodec
from tests.engine.conftest import FakeBackend
from tests.engine.running import alone, check, drain, drain_loose, raw


def test_one_prompt(engine: Engine, backend: FakeBackend) -> None:
    engine.add("a", raw("What is it?", max_tokens=20))
    assert engine.busy
    events = drain(engine)["a"]
    final = check(events)
    assert Started() == events[0]
    assert ("length", 20, 0) == (final.reason, final.usage.completion_tokens, final.usage.cached_tokens)
    assert [final.usage.prompt_tokens] == backend.log[0]
    assert {} == backend.caches
    assert [] == engine.step()


def test_long_prompts_are_computed_in_chunks(engine: Engine, backend: FakeBackend) -> None:
    engine.add("a", raw("7" * 500, max_tokens=2))
    drain(engine)
    assert [[256], [244], [1]] == backend.log


def on_a_board(engine: Engine, backend: FakeBackend, fixed: float, paces: Callable[[], float]) -> None:
    """Each run takes `fixed` seconds, 0.2 for each reply and a pace for each token of a prompt."""
    now, run = 0.0, backend.run

    def timed(slices: Sequence[Slice], every: bool = False) -> list[Logits | ComputeError]:
        nonlocal now
        pace = paces()
        now += fixed + sum(0.2 if len(item.tokens) == 1 else pace * len(item.tokens) for item in slices)
        return run(slices, every)

    backend.drafts = 7  # numbers hold in any order
    backend.run = timed
    engine._clock = lambda: now


@pytest.mark.parametrize(("fixed", "pace", "longest"), [(0, 0.001, 256), (0, 0.1, 50), (0, 0.7, 8), (6, 0.01, 8)])
def test_p11_on_a_slow_board_chunks_are_as_long_as_the_agent_has_patience(
    engine: Engine, backend: FakeBackend, fixed: float, pace: float, longest: int
) -> None:
    """The first of all is short and shows how fast this board is; a step that is slow in itself has eight tokens."""
    on_a_board(engine, backend, fixed, lambda: pace)
    engine.add("a", raw(" ".join(map(str, range(100))), max_tokens=1))
    drain(engine)
    assert [32] == backend.log[0]
    assert [longest] == backend.log[-2]


def test_a_board_that_gets_faster_gets_longer_chunks(engine: Engine, backend: FakeBackend) -> None:
    """A hot board slows down and cools off again: each chunk shows how long the next may be."""
    paces = iter([0.01, 1.0, 1.0, 0.001, 0.001])
    on_a_board(engine, backend, 0, lambda: next(paces))
    engine.add("a", raw("7" * 390, max_tokens=1))
    drain(engine)
    assert [[32], [256], [8], [8], [86]] == backend.log


def test_many_slow_replies_do_not_starve_a_prompt_beside_them(engine: Engine, backend: FakeBackend) -> None:
    """What the replies take is not charged to the prompt's tokens, and it has at least eight of each step."""
    on_a_board(engine, backend, 0, lambda: 0.01)
    for number in range(3):
        engine.add(f"{number}", raw(f"{number} is", max_tokens=60))
    while backend.log[-1:] != [[1, 1, 1]]:
        engine.step()
    backend.log.clear()
    engine.add("b", raw("8" * 300, max_tokens=1))
    while not any(key == "b" and isinstance(event, Final) for key, event in engine.step()):
        pass
    assert len(backend.log) <= 8


def test_a_short_one_does_not_wait_for_a_long_one(engine: Engine, backend: FakeBackend) -> None:
    """It joins while the long one decodes, and ends before it."""
    engine.add("long", raw("9" * 400, max_tokens=100))
    for _ in range(10):
        engine.step()
    engine.add("short", raw("hi", max_tokens=5))
    steps = 0
    while not any(key == "short" and isinstance(event, Final) for key, event in engine.step()):
        steps += 1
    assert steps <= 12
    assert engine.busy


def test_a_prompt_is_computed_beside_running_replies_in_short_chunks(engine: Engine, backend: FakeBackend) -> None:
    """Each step gives the running reply its token, so a long prompt never holds it up by more than a chunk."""
    engine.add("a", raw("x", max_tokens=100))
    engine.step()
    engine.step()
    engine.add("b", raw("8" * 510, max_tokens=1))
    backend.log.clear()
    for _ in range(1 + 4):  # the first step only says that b begins
        engine.step()
    assert [[1, 64]] * 4 == backend.log


def test_log_probabilities_are_those_of_the_model(engine: Engine, backend: FakeBackend) -> None:
    """Of the tokens chosen, before temperature and penalties; none where they were not asked for."""
    rows: list[np.ndarray] = []
    run = backend.run
    backend.run = lambda slices, every=False: [rows.append(row) or row for row in run(slices, every)]
    sampling = Sampling(temperature=0, max_tokens=6, repetition_penalty=1.5)
    engine.add("a", Request(raw="x", sampling=sampling, logprobs=True))
    asked = check(drain(engine)["a"])
    logs = [row[0].astype(np.float64) - np.log(np.exp(row[0].astype(np.float64)).sum()) for row in rows]
    found = [one.logprob for one in asked.logprobs]
    assert 6 == len(found)
    assert abs(logs[0].max() - found[0]) < 1e-5
    assert all(abs(log - one).min() < 1e-5 for log, one in zip(logs, found, strict=True))
    engine.add("b", Request(raw="x", sampling=sampling))
    assert () == check(drain(engine)["b"]).logprobs


def test_what_the_cache_still_has_is_not_computed_again(engine: Engine, backend: FakeBackend, codec: TextCodec) -> None:
    """`cached_tokens` counts it, and the text is the same as without."""
    text = "the capital of France is the " * 20
    engine.add("cold", raw(text, max_tokens=10))
    cold = check(drain(engine)["cold"])
    backend.kept = codec.encode(text, False)[:32]
    backend.log.clear()
    engine.add("warm", raw(text, max_tokens=10))
    warm = check(drain(engine)["warm"])
    assert (0, 32) == (cold.usage.cached_tokens, warm.usage.cached_tokens)
    assert warm.usage.prompt_tokens - 32 + 9 == sum(map(sum, backend.log))
    assert warm.text == cold.text


def test_company_does_not_change_the_text(
    engine: Engine, backend: FakeBackend, codec: TextCodec, tiny_gguf: Path
) -> None:
    """40 sequences on 4 slots, preempted many times: each text is what it is alone, greedy or with a seed."""
    requests = {
        f"k{index}": raw(
            f"{index} " * (1 + index % 50), max_tokens=10 + 7 * index % 120, temperature=float(index % 2), seed=index
        )
        for index in range(40)
    }
    for key, request in requests.items():
        engine.add(key, request)
    events = drain(engine)
    assert 4 == backend.most_open
    for key, request in requests.items():
        expected, found = alone(backend, codec, tiny_gguf, request), events[key][-1]
        assert isinstance(found, Final)
        assert (expected.text, expected.seed, expected.usage) == (found.text, found.seed, found.usage)


def test_nobody_starves(engine: Engine) -> None:
    """With more sequences than slots, every one gets tokens before any one has had many quanta."""
    for index in range(12):
        engine.add(f"k{index}", raw("go", max_tokens=400))
    written: dict[str, int] = {}
    while len(written) < 12:
        for key, event in engine.step():
            if isinstance(event, Chunk):
                written[key] = written.get(key, 0) + 1
    assert max(written.values()) <= 3 * QUANTUM


def test_a_better_class_goes_first(engine: Engine, backend: FakeBackend) -> None:
    """It takes a slot at once, and nothing of a worse class is computed meanwhile."""
    for index in range(4):
        engine.add(f"worse{index}", raw("go", priority=5, max_tokens=200))
    for _ in range(20):
        engine.step()
    engine.add("better", raw("now", priority=0, max_tokens=30))
    seen = [key for _ in range(1 + 30) for key, _ in engine.step()]  # the first step only says that it begins
    assert {"better"} == set(seen)
    finals = {key: events[-1] for key, events in drain_loose(engine).items()}
    assert {f"worse{index}" for index in range(4)} == set(finals)


def test_sequences_one_level_apart_are_computed_together(engine: Engine, backend: FakeBackend) -> None:
    for key, level in (("a", 3), ("b", 4), ("c", 5)):
        engine.add(key, raw("go", max_tokens=200), level=level)
    for _ in range(10):
        engine.step()
    assert {"a", "b"} == {key for _ in range(20) for key, _ in engine.step()}


def test_a_level_may_change_while_a_sequence_runs(engine: Engine, backend: FakeBackend) -> None:
    """What became less urgent waits until nothing more urgent is there."""
    for key in ("a", "b"):
        engine.add(key, raw("go", priority=5, max_tokens=200), level=3)
    for _ in range(20):
        engine.step()
    engine.set_level("a", 5)
    engine.set_level("unknown", 0)
    seen = [key for _ in range(20) for key, _ in engine.step()]
    assert {"b"} == set(seen)
    engine.set_level("a", 1)
    seen = [key for _ in range(20) for key, _ in engine.step()]
    assert {"a"} == set(seen)
    finals = {key: events[-1] for key, events in drain_loose(engine).items()}
    assert {"a", "b"} == set(finals)


def test_anything_at_any_time(engine: Engine, backend: FakeBackend) -> None:
    """Random adds, cancels and steps: every sequence ends once, its chunks are its text, no cache is left."""
    chance, events, alive = random.Random(7), {}, 0
    for number in range(300):
        if chance.random() < 0.4 and alive < 64:
            engine.add(
                f"{number}",
                raw("5" * chance.randrange(1, 400), chance.randrange(3), max_tokens=chance.randrange(1, 90)),
            )
        if chance.random() < 0.2:
            engine.cancel(f"{chance.randrange(number + 1)}")
        for _ in range(chance.randrange(12)):
            for key, event in engine.step():
                events.setdefault(key, []).append(event)
        alive = len(engine._sequences)
    for key, found in drain_loose(engine).items():
        events.setdefault(key, []).extend(found)
    for found in events.values():
        check(found)
    assert {} == backend.caches
    assert backend.most_open <= 4


def test_a_sequence_is_announced_before_its_first_work(engine: Engine, backend: FakeBackend) -> None:
    """Should that work end the process, it is known whose it was."""
    engine.add("a", raw("x", max_tokens=3))
    assert [("a", Started())] == engine.step()
    assert [] == backend.log
    engine.cancel("a")
    ((key, final),) = engine.step()
    assert ("a", "cancelled") == (key, final.reason)  # type: ignore[union-attr]
    assert not engine.busy
