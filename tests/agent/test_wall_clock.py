"""Unix time on a board without a battery clock."""

from __future__ import annotations

from edged.agent.clock import WallClock


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
    board.wall.begin(4000.0)
    board.wait(10)
    assert board.wall() == 5010.0


def test_a_board_that_wakes_up_in_the_past_goes_on_from_what_it_saw_last() -> None:
    board = Board(system=0.0)
    board.wall.begin(4000.0)
    assert board.wall() == 4000.0
    board.wait(10)
    assert board.wall() == 4010.0


def test_once_the_clock_is_set_it_is_believed_and_nothing_is_added_to_it() -> None:
    board = Board(system=0.0)
    board.wall.begin(4000.0)
    board.wait(10)
    board.system = 6000.0
    assert board.wall() == 6000.0
    board.wait(10)
    assert board.wall() == 6010.0
