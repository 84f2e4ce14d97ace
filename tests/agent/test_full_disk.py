"""The desk while nothing can be stored: answers wait, deaths count, and all is stored once there is room."""

from __future__ import annotations

import pytest

from tests.agent.bench import Bench, fill_disk


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_p01_an_answer_that_cannot_be_stored_is_kept_and_goes_out_when_there_is_room(bench: Bench) -> None:
    """It is not computed again, cannot be cancelled any more, and is published only once it is stored."""
    a, b = bench.accept("a"), bench.accept("b", expires_in=60)
    disk = fill_disk(bench.journal)
    bench.ended(a, "the answer")
    bench.ended(b, "another")
    bench.desk.cancel("me", None)
    bench.clock.wait(120)
    bench.desk.expire()
    bench.desk.lost_worker("died")
    bench.desk.hand_out()
    bench.desk.store_again()
    bench.desk.refuse_all("no model")
    assert bench.replies.finals == []
    assert (bench.desk.open, bench.desk.running, bench.desk.next_deadline()) == (2, 0, None)
    assert bench.worker.added == [str(a), str(b)]
    disk.full = False
    bench.desk.store_again()
    assert [(f["id"], f["reason"], f["text"]) for f in bench.replies.finals] == [
        ("a", "stop", "the answer"),
        ("b", "stop", "another"),
    ]
    assert (bench.desk.open, len(bench.journal.undelivered())) == (0, 2)


def test_p11_a_death_that_cannot_be_stored_still_counts(bench: Bench) -> None:
    a = bench.accept("a")
    disk = fill_disk(bench.journal)
    for _ in range(2):
        bench.began(a)
        bench.desk.lost_worker("died")
        bench.desk.hand_out()
    disk.full = False
    bench.desk.store_again()
    assert [f["error"]["code"] for f in bench.replies.finals] == ["worker_died"]
