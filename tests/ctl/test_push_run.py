"""What the sender of a model sends: each requested chunk once for all, until every device has ended."""

from __future__ import annotations

from edged.ctl.push_run import JOIN_WITHIN, OFFER_EVERY, PushRun
from edged.wire.model_push import State


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def made(*expected: str, open_ended: bool = False) -> tuple[PushRun, Clock]:
    clock = Clock()
    return PushRun(10, expected, clock, 60.0, open_ended=open_ended), clock


def sent(run: PushRun) -> list[int]:
    chunks = []
    while (number := run.next_chunk()) is not None:
        chunks.append(number)
    return chunks


def test_requests_of_all_devices_are_one_set_in_the_order_of_the_file() -> None:
    run, _ = made("a", "b")
    run.requested("a", [(0, 2), (7, 8)])
    run.requested("b", [(1, 4)])
    assert [(0, 4), (7, 8)] == run.coming()
    assert [0, 1, 2, 3, 7] == sent(run)
    assert (1.0, 0) == (run.share, run.waiting)


def test_a_request_in_the_middle_does_not_begin_anew() -> None:
    run, _ = made("a", "b")
    run.requested("a", [(0, 10)])
    assert [0, 1, 2] == [run.next_chunk() for _ in range(3)]
    run.requested("b", [(0, 1)])
    assert [3, 4, 5, 6, 7, 8, 9, 0] == sent(run)


def test_it_ends_when_each_expected_device_has_ended_or_is_silent() -> None:
    run, clock = made("a", "b", "c")
    run.reported("a", State("stored"))
    run.reported("b", State("refused", reason="no"))
    run.reported("c", State("receiving"))
    assert not run.finished
    clock.now += 59
    run.reported("c", State("receiving", 0.5))
    clock.now += 59
    assert not run.finished
    clock.now += 1
    assert run.finished


def test_devices_of_a_group_are_waited_for_until_none_joins() -> None:
    run, clock = made(open_ended=True)
    clock.now += JOIN_WITHIN - 1
    run.reported("a", State("stored"))
    clock.now += JOIN_WITHIN - 1
    assert not run.finished
    clock.now += 1
    assert (True, ["a"]) == (run.finished, list(run.devices))


def test_devices_that_were_not_named_are_ignored() -> None:
    run, _ = made("a")
    run.requested("x", [(0, 10)])
    run.reported("x", State("failed"))
    assert (["a"], None) == (list(run.devices), run.next_chunk())


def test_the_offer_is_repeated_and_changes_of_what_is_coming_are_announced() -> None:
    run, clock = made("a")
    assert ["offer"] == run.due()
    assert [] == run.due()
    run.requested("a", [(0, 1)])
    assert ["announce"] == run.due()
    run.requested("a", [(0, 1)])  # nothing new
    assert [] == run.due()
    sent(run)
    assert ["announce"] == run.due()
    assert [] == run.coming()
    clock.now += OFFER_EVERY
    assert ["offer", "announce"] == run.due()
