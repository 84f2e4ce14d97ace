"""What follows for a roll-out from what the broker retains: pure functions, no broker."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edged.core.errors import BadValue
from edged.ctl import rollout_state
from edged.ctl.rollout_state import View, judge, progress
from edged.wire import rollout_schedule
from edged.wire.layers import Layer
from edged.wire.rollout_schedule import Schedule
from edged.wire.rollouts import Rollout, belongs

SCHEDULE = Schedule("r1", "fleet", (10.0, 50.0, 100.0), 60.0, 20.0, 7, 10.0, 1000.0, 900.0)
LAYER = Layer(7, {}, rollout=Rollout("r1", 10.0, "s"))
DEVICES = [f"pi-{number}" for number in range(100)]
FIRST = [device for device in DEVICES if belongs("s", device, 10)]
WAITING = {"phase": "waiting", "layer": "fleet", "revision": 7, "in_force": {}}
APPLIED = {"phase": "applied", "layer": "fleet", "revision": 7, "in_force": {"fleet": 7}}
FAILED = {"phase": "rolled_back", "layer": "fleet", "revision": 7, "reason": "it is bad", "in_force": {}}
TRIAL = {"phase": "trial", "layer": "fleet", "revision": 7, "in_force": {}}


def view(**reports: dict[str, Any] | None) -> View:
    """Everyone waits, the first stage has it; `first0` … name devices of the first stage. None: no report."""
    found: dict[str, Any] = {device: APPLIED if device in FIRST else WAITING for device in DEVICES}
    for name, report in reports.items():
        found[FIRST[int(name.removeprefix("first"))]] = report
    known = {device: report for device, report in found.items() if report is not None}
    return View(dict.fromkeys(DEVICES, "online"), known, {})


def test_the_first_stage_has_devices() -> None:
    assert 6 <= len(FIRST) <= 14


@pytest.mark.parametrize(
    ("reports", "early", "late"),
    [
        ({}, "soak", "next"),
        ({"first0": TRIAL}, "soak", "soak"),
        ({"first0": WAITING}, "soak", "soak"),  # busy, or out of its window
        ({"first0": FAILED}, "soak", "next"),
        ({f"first{n}": FAILED for n in range(3)}, "stop", "stop"),
        ({f"first{n}": {**FAILED, "phase": "rejected"} for n in range(3)}, "stop", "stop"),
        ({f"first{n}": None for n in range(3)}, "soak", "stop"),
        ({"first0": None, "first1": FAILED, "first2": None}, "soak", "stop"),
        ({f"first{n}": {**APPLIED, "layer": "device", "revision": 99} for n in range(3)}, "soak", "next"),
        ({f"first{n}": {**APPLIED, "revision": 6, "in_force": {"fleet": 6}} for n in range(3)}, "soak", "stop"),
    ],
)
def test_a_stage_goes_on_after_its_soak_time_or_stops_at_failures_and_silence(
    reports: dict[str, Any], early: str, late: str
) -> None:
    assert early == judge(SCHEDULE, LAYER, view(**reports), 1030.0).step
    assert late == judge(SCHEDULE, LAYER, view(**reports), 1060.0).step


def test_why_it_stopped_is_one_line_with_a_device_and_its_reason() -> None:
    found = judge(SCHEDULE, LAYER, view(**{f"first{n}": FAILED for n in range(3)}), 1030.0)
    start = f"3 of {len(FIRST)} devices at 10 % failed (at most 20 % may): "
    assert any(f"{start}{device}: it is bad" == found.why for device in FIRST)
    assert "\n" not in found.why


def test_devices_that_were_offline_when_the_stage_began_are_not_waited_for() -> None:
    away = msgspec.structs.replace(SCHEDULE, absent=frozenset(FIRST[:3]))
    silent = view(**{f"first{n}": None for n in range(3)})
    assert "next" == judge(away, LAYER, silent, 1060.0).step
    assert tuple(sorted(FIRST[:3])) == progress(away, LAYER, silent).absent
    failed = view(**{f"first{n}": FAILED for n in range(3)})
    assert "stop" == judge(away, LAYER, failed, 1030.0).step


def test_a_device_that_has_it_must_report_each_later_stage() -> None:
    later = msgspec.structs.replace(SCHEDULE, percent=50.0)
    layer = Layer(8, {}, rollout=Rollout("r1", 50.0, "s"))
    found = progress(later, layer, view())
    assert set(found.cohort) == set(found.silent) > set(FIRST)
    assert set(FIRST) == set(found.applied)


def test_a_stage_without_devices_is_passed_at_once() -> None:
    assert "next" == judge(SCHEDULE, LAYER, View({}, {}, {}), 1001.0).step


def test_the_last_stage_ends_it() -> None:
    last = msgspec.structs.replace(SCHEDULE, percent=100.0)
    everyone = View(dict.fromkeys(DEVICES, "online"), dict.fromkeys(DEVICES, APPLIED), {})
    found = judge(last, Layer(7, {}, rollout=Rollout("r1", 100.0, "s")), everyone, 1060.0)
    assert ("done", "100 of 100 devices have it; none is missing") == (found.step, found.why)


@pytest.mark.parametrize("state", ["halted", "stopped", "done"])
def test_nothing_follows_where_it_is_not_running(state: Any) -> None:
    assert "ended" == judge(msgspec.structs.replace(SCHEDULE, state=state), LAYER, view(), 1e9).step


def test_a_halted_layer_is_halted_whatever_the_schedule_says() -> None:
    halted = Layer(8, {}, rollout=Rollout("r1", 10.0, "s", halted=True))
    assert "ended" == judge(SCHEDULE, halted, view(), 1e9).step
    assert "halted" == rollout_state.state(SCHEDULE, halted)


def test_the_devices_of_a_group_are_known_by_their_health_or_their_reports() -> None:
    reports = {"b": {"layer": "group:k", "in_force": {}}, "c": {"in_force": {"group:k": 3}}, "d": APPLIED}
    found = View(dict.fromkeys("abcd", "online"), reports, {"a": ("k",), "d": ("other",)})
    assert ("a", "b", "c") == rollout_state.members(found, "group:k")


def test_the_page_names_who_failed_and_who_is_silent_and_what_to_do_next() -> None:
    stopped = msgspec.structs.replace(SCHEDULE, state="stopped", why="because")
    text = rollout_state.page(stopped, LAYER, view(first0=FAILED, first1=None), 1060.0, "{}")
    assert f"  failed:   {FIRST[0]}: it is bad" in text.splitlines()
    assert f"  silent:   {FIRST[1]}" in text.splitlines()
    assert "edgectl rollout resume r1" in text
    assert "edgectl config undo" in text


def test_the_schedule_is_read_as_it_was_written_and_a_damaged_one_is_refused() -> None:
    full = msgspec.structs.replace(SCHEDULE, absent=frozenset({"a", "b"}), state="stopped", why="é")
    payload = rollout_schedule.schedule(full)
    assert full == rollout_schedule.parse(payload)
    for cut in range(len(payload)):
        with pytest.raises(BadValue):
            rollout_schedule.parse(payload[:cut])


@pytest.mark.parametrize("stages", [[], [0, 100], [5, 1, 100], [5, 5, 100], [50], [1, 101], "100"])
def test_stages_grow_to_100(stages: Any) -> None:
    with pytest.raises(BadValue):
        rollout_schedule.stages("--stages", stages)
