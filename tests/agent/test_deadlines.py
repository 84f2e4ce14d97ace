"""Deadlines: refused at once where the measured speed says that the prompt would not begin, and kept while it waits."""

from __future__ import annotations

import pytest

from edged.agent.measured_speed import EstimateError, MeasuredSpeed
from tests.agent.bench import Bench, message


@pytest.fixture
def bench() -> Bench:
    """Ten tokens take a second, an answer has eleven, and the worker computes four at a time."""
    made = Bench(queue=1000)
    seq = made.accept("first")
    made.started(seq)
    made.generated(seq, 0, "x")
    made.finished(seq, tokens=11, ms=1000.0)
    return made


def reasons(bench: Bench) -> dict[str, str]:
    return {final["id"]: final["reason"] for final in bench.replies.finals}


def fill(bench: Bench, count: int) -> None:
    for number in range(count):
        bench.accept(f"w{number}", requester=f"r{number}")


def test_a_deadline_that_cannot_be_met_is_refused_at_once(bench: Bench) -> None:
    fill(bench, 100)
    bench.arrive(message({"id": "late", "prompt": "x", "deadline_ms": 3000}))
    bench.arrive(message({"id": "fine", "prompt": "x", "deadline_ms": 60_000}), requester="you")
    assert ("expired", None) == (reasons(bench)["late"], reasons(bench).get("fine"))
    assert "late" not in [entry.job.id for entry in bench.journal.open_entries()]


def test_without_others_no_deadline_is_refused(bench: Bench) -> None:
    bench.arrive(message({"id": "a", "prompt": "x", "deadline_ms": 1}))
    assert "a" not in reasons(bench)


def test_before_anything_was_measured_no_deadline_is_refused() -> None:
    bench = Bench(queue=1000)
    fill(bench, 100)
    bench.arrive(message({"id": "a", "prompt": "x", "deadline_ms": 1}))
    assert {} == reasons(bench)


def test_an_urgent_prompt_does_not_wait_for_those_of_a_worse_priority(bench: Bench) -> None:
    fill(bench, 100)
    bench.arrive(message({"id": "urgent", "prompt": "x", "deadline_ms": 3000, "priority": 0}))
    assert "urgent" not in reasons(bench)


def test_a_model_that_must_be_loaded_first_counts(bench: Bench) -> None:
    bench.worker.load_left = 20.0
    bench.arrive(message({"id": "late", "prompt": "x", "deadline_ms": 5000}))
    assert "expired" == reasons(bench)["late"]


def test_a_deadline_is_checked_when_the_worker_is_to_get_the_prompt(bench: Bench) -> None:
    bench.worker.replaced = True
    seq = bench.accept("a", expires_in=1.0)
    bench.clock.wait(2.0)
    bench.worker.replaced = False
    bench.queue.submit_waiting()
    assert str(seq) not in bench.worker.added
    assert "expired" == reasons(bench)["a"]
    assert 0 == bench.queue.open


def test_the_wait_is_what_lies_ahead_in_turns_of_the_slots() -> None:
    speed = MeasuredSpeed(tokens_per_second=10.0, tokens=20.0)
    assert [0.0, 0.0, 0.5, 1.0] == [speed.until_begun(ahead, 4) for ahead in (0, 3, 4, 5)]
    assert MeasuredSpeed().until_begun(5, 4) is None


def test_the_error_of_the_estimates_is_measured(bench: Bench) -> None:
    seq = bench.accept("a")
    bench.clock.wait(0.5)
    bench.started(seq)
    bench.started(seq)
    assert EstimateError(count=1, total=0.5) == bench.queue.estimates
    assert 0.5 == bench.queue.estimates.mean_error
