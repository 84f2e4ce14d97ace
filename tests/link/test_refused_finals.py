"""What becomes of a stored final that the broker refuses, in words or by hanging up: the link under a daemon's loop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.link.events import Acked, Down
from edged.link.suspect import SET_ASIDE_FOR
from tests.agent.test_daemon import CANCEL, Bench, arrived, up


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A daemon with one final that is stored and on its way."""
    made = Bench(tmp_path)
    made.turn(up(), arrived(1), arrived(2, {"id": "p1"}, topic=CANCEL))
    assert 1 == len(made.finals())
    yield made
    made.daemon._journal.close()


def mid_of_final(bench: Bench) -> int:
    """The packet id of the final that was sent last."""
    return max(n for n, (topic, _, _) in enumerate(bench.connection.published, 1) if "/reply/" in topic)


def test_p09_one_that_is_refused_for_now_is_sent_again_within_a_minute(bench: Bench) -> None:
    bench.turn(Acked(1, mid_of_final(bench), "quota exceeded", temporary=True))
    assert 1 == len(bench.daemon._journal.undelivered())
    bench.now += 61
    bench.turn()
    assert ["p1", "p1"] == [final["id"] for final in bench.finals()]
    bench.turn(Acked(1, mid_of_final(bench)))
    assert [] == bench.daemon._journal.undelivered()


def test_one_that_is_refused_for_good_is_not_sent_again(bench: Bench) -> None:
    bench.turn(Acked(1, mid_of_final(bench), "not authorized"))
    assert [] == bench.daemon._journal.undelivered()
    assert ["publish_refused"] == bench.findings()


def test_p09_one_that_the_broker_hangs_up_on_is_set_aside_told_and_tried_again_later(bench: Bench) -> None:
    for mid in range(1, mid_of_final(bench)):
        bench.turn(Acked(1, mid))
    for session in (2, 3, 4):
        bench.turn(Down("closed", 0.0, taken_over=False, closed_by_broker=True), up(session))
    assert ["publish_refused"] == bench.findings()
    assert 3 == len(bench.finals())
    bench.now += 61
    bench.turn()
    assert (3, 1) == (len(bench.finals()), len(bench.daemon._journal.undelivered()))
    bench.now += SET_ASIDE_FOR
    bench.turn()
    assert 4 == len(bench.finals())
    bench.turn(Acked(4, mid_of_final(bench)))
    assert [] == bench.daemon._journal.undelivered()
