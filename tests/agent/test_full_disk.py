"""The queue while nothing can be stored: answers wait, crashes count, and all is stored once there is space."""

from __future__ import annotations

import pytest

from tests.agent.bench import Bench, fill_disk


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_p01_an_answer_that_cannot_be_stored_is_kept_and_published_when_there_is_space(bench: Bench) -> None:
    """It is not computed again, cannot be cancelled any more, and is published only once it is stored."""
    a, b = bench.accept("a"), bench.accept("b", expires_in=60)
    disk = fill_disk(bench.journal)
    bench.finished(a, "the answer")
    bench.finished(b, "another")
    bench.queue.cancel("me", None)
    bench.clock.wait(120)
    bench.queue.tick()
    bench.queue.worker_exited("died")
    bench.queue.submit_waiting()
    bench.queue.retry_unstored()
    bench.queue.refuse_all("no model")
    assert bench.replies.finals == []
    assert (bench.queue.open, bench.queue.running, bench.queue.next_deadline()) == (2, 0, None)
    assert bench.worker.added == [str(a), str(b)]
    disk.full = False
    bench.queue.retry_unstored()
    assert [(f["id"], f["reason"], f["text"]) for f in bench.replies.finals] == [
        ("a", "stop", "the answer"),
        ("b", "stop", "another"),
    ]
    assert (bench.queue.open, len(bench.journal.undelivered())) == (0, 2)


def test_p11_a_crash_that_cannot_be_stored_still_counts(bench: Bench) -> None:
    a = bench.accept("a")
    disk = fill_disk(bench.journal)
    for _ in range(2):
        bench.started(a)
        bench.queue.worker_exited("died")
        bench.queue.submit_waiting()
    disk.full = False
    bench.queue.retry_unstored()
    assert [f["error"]["code"] for f in bench.replies.finals] == ["worker_died"]
