"""Unix time on a board without a battery clock."""

from __future__ import annotations

import pytest

from edged.agent.wall_clock import WallClock


class Board:
    """A monotonic clock and a system clock that can be set."""

    def __init__(self, system: float) -> None:
        self.up = 1000.0
        self.system = system
        self.wall = WallClock(lambda: self.up, lambda: self.system)

    def wait(self, seconds: float) -> None:
        self.up += seconds
        self.system += seconds


def test_a_clock_that_is_right_is_believed() -> None:
    board = Board(system=5000.0)
    board.wall.start_from(4000.0)
    board.wait(10)
    assert board.wall() == 5010.0


def test_a_board_that_wakes_up_in_the_past_goes_on_from_what_it_saw_last() -> None:
    board = Board(system=0.0)
    board.wall.start_from(4000.0)
    assert board.wall() == 4000.0
    board.wait(10)
    assert board.wall() == 4010.0


def test_once_the_clock_is_set_it_is_believed_and_nothing_is_added_to_it() -> None:
    board = Board(system=0.0)
    board.wall.start_from(4000.0)
    board.wait(10)
    board.system = 6000.0
    assert board.wall() == 6000.0
    board.wait(10)
    assert board.wall() == 6010.0


def test_a_floor_that_was_fast_does_not_outlive_a_synchronized_clock() -> None:
    """Once fast and stored, it would go on at the rate of the system's clock and be stored again."""
    board = Board(system=5000.0)
    board.wall.start_from(9000.0)
    assert board.wall() == 9000.0
    board.wall.set_synchronized(True)
    assert board.wall() == board.wall.reliable() == 5000.0
    board.wait(10)
    assert board.wall() == board.wall.reliable() == 5010.0


def test_a_clock_that_is_no_longer_synchronized_does_not_bring_the_old_floor_back() -> None:
    board = Board(system=5000.0)
    board.wall.start_from(9000.0)
    board.wall.set_synchronized(True)
    board.wait(10)
    board.wall.set_synchronized(False)
    assert board.wall() == 5010.0
    board.system = 0.0
    board.wait(10)
    assert board.wall() == 5020.0


@pytest.mark.parametrize(("synced", "sure"), [(False, 4010.0), (None, 9010.0)])
def test_a_fast_clock_that_nobody_keeps_is_shown_but_not_stored(synced: bool | None, sure: float) -> None:
    """Where it cannot be told whether anybody does, it is believed: else each time switched off would be missing."""
    board = Board(system=9000.0)
    board.wall.start_from(4000.0)
    board.wall.set_synchronized(synced)
    board.wait(10)
    assert board.wall() == 9010.0
    assert board.wall.reliable() == sure


def test_a_board_that_never_hears_a_time_server_still_moves_on_from_run_to_run() -> None:
    board = Board(system=700.0)
    board.wall.start_from(0.0)
    board.wait(10)
    assert board.wall.reliable() == 710.0
    again = Board(system=700.0)
    again.wall.start_from(board.wall.reliable())
    again.wait(10)
    assert again.wall() == again.wall.reliable() == 720.0
