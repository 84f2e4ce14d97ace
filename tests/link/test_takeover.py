"""Another board of the same name, told from a broker that is restarted, by sequences of attempts that ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from edged.link.events import Down, Up
from edged.link.takeover import TakeOverDetector
from tests.link.conftest import Line
from tests.link.test_back_off import DROPPED, FAILED
from tests.support import Broker

TAKEN = msgspec.structs.replace(DROPPED, taken_over=True)
GONE = msgspec.structs.replace(DROPPED, broker_gone=True)
FORGOTTEN = msgspec.structs.replace(DROPPED, session_present=False)
GIVEN_UP = msgspec.structs.replace(DROPPED, restarted=True)


@pytest.mark.parametrize(
    ("attempts", "every", "expected"),
    [
        ([TAKEN], 0, True),
        ([DROPPED] * 4, 15, True),  # no reason code: noticed within a minute
        ([FORGOTTEN, *[DROPPED] * 3], 9, True),  # the first of a device's life finds no session
        ([DROPPED] * 3, 1, False),
        ([DROPPED] * 8, 21, False),
        ([GONE] * 5, 9, False),
        ([FORGOTTEN] * 5, 9, False),
        ([DROPPED, DROPPED, DROPPED, GONE, DROPPED, DROPPED, DROPPED], 1, False),
        ([DROPPED, DROPPED, DROPPED, FAILED, DROPPED], 1, False),
        ([DROPPED, DROPPED, DROPPED, GIVEN_UP], 1, False),
        ([msgspec.structs.replace(DROPPED, excess=True)] * 8, 1, False),
    ],
)
def test_sequences(attempts: list[Any], every: float, expected: bool) -> None:
    now = 0.0
    detector = TakeOverDetector(lambda: now)
    found = False
    for attempt in attempts:
        now += every
        found = detector.is_taken_over(attempt)
    assert expected == found


@pytest.mark.broker
@pytest.mark.mosquitto
@pytest.mark.parametrize("version", ["5", "3.1.1"])
@pytest.mark.parametrize("extra", ["", "persistence true\npersistence_location {folder}/\nautosave_interval 1\n"])
def test_a_broker_that_is_restarted_before_it_is_missed_is_no_other_board(
    line: Callable[..., Line], tmp_path: Any, version: str, extra: str
) -> None:
    """Back within the wait before the next attempt, so that no attempt fails."""
    own = Broker(tmp_path, extra.format(folder=tmp_path)).start()
    made = line(url=own.url, version=version)
    made.next(Up)
    made.open.clear()  # the attempt's end waits to be posted
    try:
        for _ in range(5):
            own.stop()
            own.start()
            made.open.set()
            down = made.next(Down)
            while down.reason == "no broker listens there (connection refused)":
                down = made.next(Down)
            assert not down.taken_over
            made.next(Up)
        assert all(low == 0 for low, _ in made.bounds)
    finally:
        made.connection.stop()
        own.stop()
