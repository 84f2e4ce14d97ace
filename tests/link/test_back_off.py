"""What follows from an attempt that ended, decided without a network."""

from __future__ import annotations

import msgspec
import pytest

from edged.link.attempt import Ended
from edged.link.back_off import BACK_OFF_CAP, TAKE_OVER_BACK_OFF, BackOff

FAILED = Ended(
    version="5",
    reason="no broker listens there",
    answered=False,
    accepted=False,
    silent=False,
    version_refused=False,
    up_for=None,
    taken_over=False,
    restarted=False,
    closed_by_broker=False,
)
SILENT = msgspec.structs.replace(FAILED, silent=True)
DROPPED = msgspec.structs.replace(FAILED, answered=True, accepted=True, up_for=1.0, closed_by_broker=True)


class Bench:
    """A back-off that always waits as long as it may, and its clock."""

    def __init__(self, version: str = "auto") -> None:
        self.now = 0.0
        self.back_off = BackOff(version, lambda: self.now, lambda _low, high: high)

    def wait_after(self, ended: Ended) -> float:
        return self.back_off.after(ended).seconds


def test_the_bound_doubles_with_each_failure_up_to_the_cap() -> None:
    bench = Bench()
    assert [1, 2, 4, 8, 16, 32, 60, 60] == [bench.wait_after(FAILED) for _ in range(8)]


def test_a_connection_that_lasted_resets_the_bound() -> None:
    bench = Bench()
    for _ in range(5):
        bench.back_off.after(FAILED)
    assert 1 == bench.wait_after(msgspec.structs.replace(DROPPED, up_for=BACK_OFF_CAP))


def test_four_drops_within_a_minute_mean_that_another_board_uses_the_name() -> None:
    bench = Bench()
    assert [False, False, False, True] == [bench.back_off.after(DROPPED).taken_over for _ in range(4)]
    assert [1, 2, 4, TAKE_OVER_BACK_OFF[1]] == [bench.wait_after(DROPPED) for _ in range(4)]


def test_drops_over_more_than_a_minute_do_not() -> None:
    bench = Bench()
    for _ in range(8):
        bench.now += 21
        assert not bench.back_off.after(DROPPED).taken_over


def test_a_connection_that_we_gave_up_is_not_a_drop_by_another_board() -> None:
    bench = Bench()
    for _ in range(3):
        bench.back_off.after(DROPPED)
    assert not bench.back_off.after(msgspec.structs.replace(DROPPED, restarted=True)).taken_over


def test_a_refused_version_falls_back_at_once() -> None:
    bench = Bench()
    assert 0 == bench.wait_after(msgspec.structs.replace(FAILED, answered=True, version_refused=True))
    assert "3.1.1" == bench.back_off.version


def test_three_silent_connects_fall_back_unless_version_5_was_accepted_before() -> None:
    bench, known = Bench(), Bench()
    known.back_off.after(DROPPED)
    for _ in range(3):
        assert bench.back_off.version == known.back_off.version == "5"
        bench.back_off.after(SILENT)
        known.back_off.after(SILENT)
    assert ("3.1.1", "5") == (bench.back_off.version, known.back_off.version)


@pytest.mark.parametrize("setting", ["5", "3.1.1"])
def test_a_version_that_is_set_stays(setting: str) -> None:
    bench = Bench(setting)
    for _ in range(5):
        bench.back_off.after(msgspec.structs.replace(SILENT, version_refused=True))
    assert setting == bench.back_off.version
