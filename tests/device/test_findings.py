"""The judge: when findings come and go, and that they do not flap."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.core.health import Change, Finding, Health, changes, health_of
from edged.core.reading import Disk, Memory, Pressure, Reading, Stall, Throttle
from edged.device.findings import JUMP_HOLD_S, Judge, JudgeState, judge
from edged.device.rules import RULES, Limits

EPOCH = 1_800_000_000.0
PI = Limits(temperature_c=80.0, temperature_critical_c=85.0)
GB = 10**9


def reading(seconds: float, **fields: Any) -> Reading:
    """A reading taken `seconds` after the first, by clocks that agree."""
    return msgspec.structs.replace(Reading(at=EPOCH + seconds, uptime_s=100.0 + seconds), **fields)


def codes(judge_: Judge, *readings: Reading) -> list[str]:
    """The codes after the last of the readings."""
    return [finding.code for finding in [judge_.update(one) for one in readings][-1]]


def ram(available: int, swap_used: int = 0) -> Memory:
    """A board with 8 GB and as much swap."""
    return Memory(8 * GB, available, 8 * GB - available, 8 * GB, swap_used)


def test_heat_must_last_and_says_since_when() -> None:
    """On after 20 s at the limit, dated from its first moment; off after 60 s at 5 degrees below it."""
    subject = Judge(PI)
    assert [] == codes(subject, reading(0, temperature_c=80.0), reading(10, temperature_c=82.0))
    (finding,) = subject.update(reading(20, temperature_c=83.24))
    assert ("temperature_high", EPOCH, 83.2, 80.0) == (finding.code, finding.since, finding.value, finding.limit)
    assert "degraded" == finding.severity
    (finding,) = subject.update(reading(30, temperature_c=76.0))
    assert (EPOCH, 76.0) == (finding.since, finding.value)
    assert ["temperature_high"] == codes(subject, *(reading(t, temperature_c=70.0) for t in (40, 50, 90)))
    assert [] == codes(subject, reading(100, temperature_c=70.0))


def test_heat_that_grows_fails_and_keeps_its_date() -> None:
    """The same code gets worse, then better; it is one finding throughout."""
    subject = Judge(PI)
    warm = [subject.update(reading(t, temperature_c=81.0)) for t in range(0, 40, 10)][-1]
    hot = [subject.update(reading(t, temperature_c=90.0)) for t in range(40, 80, 10)][-1]
    cooler = [subject.update(reading(t, temperature_c=78.0)) for t in range(80, 160, 10)][-1]
    assert [1, 1, 1] == [len(findings) for findings in (warm, hot, cooler)]
    assert ["degraded", "failing", "degraded"] == [findings[0].severity for findings in (warm, hot, cooler)]
    assert {EPOCH} == {findings[0].since for findings in (warm, hot, cooler)}
    assert (90.0, 85.0) == (hot[0].value, hot[0].limit)
    assert ["worse"] == [change.kind for change in changes(health_of(warm), health_of(hot))]
    assert ["better"] == [change.kind for change in changes(health_of(hot), health_of(cooler))]


@pytest.mark.parametrize(
    ("code", "bad", "good"),
    [
        ("throttled", {"throttled": True}, {"throttled": False}),
        ("under_voltage", {"throttle": Throttle(now=("under_voltage",))}, {"throttle": Throttle()}),
        ("memory_low", {"memory": ram(GB // 2)}, {"memory": ram(4 * GB)}),
        ("memory_pressure", {"pressure": Pressure(memory=Stall(30, 20))}, {"pressure": Pressure(memory=Stall(0, 0))}),
        ("swap_heavy", {"memory": ram(4 * GB, 4 * GB)}, {"memory": ram(4 * GB)}),
        ("disk_nearly_full", {"disk": Disk(32 * GB, GB)}, {"disk": Disk(32 * GB, 9 * GB)}),
        ("clock_not_synced", {"clock_synced": False}, {"clock_synced": True}),
        ("sensor_broken", {"broken": ("zone:cpu",)}, {}),
        ("sensor_stuck", {"stuck": ("disk", "gpu")}, {}),
    ],
)
def test_each_finding_comes_and_goes_once(code: str, bad: dict[str, Any], good: dict[str, Any]) -> None:
    """Bad for ten minutes, good for ten: it begins once, ends once, and has one sentence of advice."""
    subject = Judge()
    standing = [subject.update(reading(t, **(bad if t < 600 else good))) for t in range(0, 1200, 10)]
    seen = [[finding.code for finding in findings] for findings in standing]
    assert [code] == seen[59]
    assert [] == seen[-1]
    assert sum(a != b for a, b in pairwise(seen)) <= 2
    (finding,) = standing[59]
    assert EPOCH == finding.since
    assert finding.advice.endswith(".")
    assert len(finding.advice) < 130


@pytest.mark.parametrize(
    ("fields", "severity"),
    [
        ({"memory": ram(GB // 5)}, "failing"),
        ({"disk": Disk(32 * GB, GB // 10)}, "failing"),
        ({"pressure": Pressure(memory=Stall(60, 50))}, "failing"),
        ({"disk": Disk(500_000_000, 40_000_000)}, "degraded"),
    ],
)
def test_severity(fields: dict[str, Any], severity: str) -> None:
    """What soon stops the work is failing."""
    subject = Judge()
    findings = [subject.update(reading(t, **fields)) for t in range(0, 60, 10)][-1]
    assert [severity] == [finding.severity for finding in findings]
    assert severity == health_of(findings).state


def test_disk_shows_bytes() -> None:
    """A tenth of the disk should be free, 2 GB at most."""
    (large,) = Judge().update(reading(0, disk=Disk(500 * GB, GB)))
    (small,) = Judge().update(reading(0, disk=Disk(8 * GB, GB // 2)))
    assert (GB, 2 * GB) == (large.value, large.limit)
    assert (GB // 2, 8 * GB // 10) == (small.value, small.limit)


def test_names_of_sensors_are_the_value() -> None:
    """A person reads which ones, also while the finding is about to end."""
    subject = Judge()
    subject.update(reading(0, stuck=("disk", "gpu")))
    assert "disk, gpu" == subject.update(reading(10, stuck=("disk", "gpu")))[0].value
    assert "disk, gpu" == subject.update(reading(20))[0].value


def test_one_bad_line_is_no_finding() -> None:
    """A sensor that gives nonsense once is not broken."""
    assert [] == codes(Judge(), reading(0, broken=("gpu",)), reading(10), reading(20))


def test_nothing_measured_is_nothing_found() -> None:
    """A board without sensors is well."""
    assert [] == codes(Judge(), *(reading(t) for t in range(0, 1000, 10)))
    assert Health("ok") == health_of(())


def test_a_clock_that_was_never_set() -> None:
    """A board without a battery clock wakes up in 1970: found at once, gone with the first synchronisation."""
    subject = Judge()
    early = msgspec.structs.replace(reading(0), at=100.0, clock_synced=False)
    assert ["clock_not_set"] == codes(subject, early)
    assert ["clock_jumped"] == codes(subject, reading(10, clock_synced=True))


@pytest.mark.parametrize("jump", [3600.0, -3600.0, 2.0, 1.7e9])
def test_a_clock_that_jumps(jump: float) -> None:
    """Found by the clock nobody sets, dated by the new time, gone after five minutes; other dates move along."""
    subject = Judge()
    subject.update(reading(0, throttled=True))
    throttled, jumped = subject.update(msgspec.structs.replace(reading(10, throttled=True), at=EPOCH + 10 + jump))
    assert ("throttled", EPOCH + jump) == (throttled.code, throttled.since)
    assert ("clock_jumped", EPOCH + 10 + jump, round(jump, 1)) == (jumped.code, jumped.since, jumped.value)
    for t in range(20, int(JUMP_HOLD_S) + 10, 10):
        assert "clock_jumped" in codes(subject, msgspec.structs.replace(reading(t), at=EPOCH + t + jump))
    end = JUMP_HOLD_S + 10
    assert "clock_jumped" not in codes(subject, msgspec.structs.replace(reading(end), at=EPOCH + end + jump))


@pytest.mark.parametrize("seconds", [0.0, 1.9, -1.9])
def test_a_clock_that_is_slewed_does_not_jump(seconds: float) -> None:
    """A late thread or a time service that steers gently is no jump."""
    subject = Judge()
    subject.update(reading(0))
    assert [] == codes(subject, msgspec.structs.replace(reading(10), at=EPOCH + 10 + seconds))


def test_hold_times_do_not_follow_the_wall_clock() -> None:
    """A jump of a day does not make heat last a day."""
    subject = Judge(PI)
    subject.update(reading(0, temperature_c=90.0))
    found = subject.update(msgspec.structs.replace(reading(10, temperature_c=90.0), at=EPOCH + 86400))
    assert ["clock_jumped"] == [finding.code for finding in found]


def _temperatures(subject: Judge, values: list[float], step: float) -> int:
    """How often the health's state or codes changed over these temperatures."""
    before, count = health_of(()), 0
    for number, value in enumerate(values):
        after = health_of(subject.update(reading(number * step, temperature_c=value)))
        count += len(changes(before, after))
        before = after
    return count


@given(st.lists(st.floats(min_value=75.1, max_value=84.9), max_size=200), st.sampled_from([1.0, 10.0, 60.0]))
def test_values_around_the_limit_change_at_most_once(values: list[float], step: float) -> None:
    """Whatever a sensor does within the band, the finding begins once or never."""
    assert _temperatures(Judge(PI), values, step) <= 1


@given(st.lists(st.booleans(), max_size=300))
def test_swings_across_both_thresholds_do_not_flap(hot: list[bool]) -> None:
    """However wild the swings at a 10 s interval, a finding that changes has lasted its hold time before."""
    values = [84.0 if one else 60.0 for one in hot]
    assert _temperatures(Judge(PI), values, 10.0) <= 2 * (len(values) * 10 // 80 + 1)


def test_alternating_throttling_is_one_finding() -> None:
    """The firmware's flag comes and goes by the second under load; the finding stays."""
    subject, seen = Judge(), set()
    for t in range(0, 3600, 10):
        seen.add(tuple(finding.code for finding in subject.update(reading(t, throttled=bool(t % 20 == 0)))))
    assert {("throttled",)} == seen


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "temperature_c": st.none() | st.floats(-60, 180),
                "throttled": st.none() | st.booleans(),
                "clock_synced": st.none() | st.booleans(),
                "disk": st.none() | st.builds(Disk, st.integers(1, 10**15), st.integers(0, 10**15)),
                "broken": st.sampled_from([(), ("a",), ("a", "b")]),
                "at": st.floats(0, 1e11),
            }
        ),
        max_size=40,
    )
)
def test_any_readings_give_a_lawful_health(many: list[dict[str, Any]]) -> None:
    """Each code once, no exception, JSON can carry it, and the state is the worst severity."""
    subject = Judge()
    for number, fields in enumerate(many):
        health = health_of(subject.update(msgspec.structs.replace(reading(number * 10.0), **fields)))
        found = [finding.code for finding in health.findings]
        assert len(found) == len(set(found))
        assert (health.state == "failing") == any(one.severity == "failing" for one in health.findings)
        assert health == msgspec.json.decode(msgspec.json.encode(health), type=Health)


def test_the_judge_is_pure() -> None:
    """The same state and reading give the same answer; the state given is not changed."""
    state, _ = judge(JudgeState(), reading(0, throttled=True), PI)
    first, second = (judge(state, reading(10, throttled=True), PI) for _ in range(2))
    assert first == second
    assert state == replace(state)


def test_thresholds_leave_room_between_them() -> None:
    """Every rule has its two thresholds on the right sides of each other, the graver one further out."""
    for rule in RULES:
        levels = [rule.degraded(PI), *([rule.failing(PI)] if rule.failing else [])]
        sign = 1 if rule.rising else -1
        assert all(level.on * sign > level.off * sign for level in levels), rule.code
        assert [level.on * sign for level in levels] == sorted(level.on * sign for level in levels), rule.code
    assert len({rule.code for rule in RULES}) == len(RULES)


def test_health_sorts_and_compares() -> None:
    """Worst first, then oldest; a new value is no change."""
    old = Finding("throttled", 10.0, None, None, "Cool it.")
    new = Finding("memory_low", 20.0, 3.0, 10, "Stop it.", "failing")
    before, after = health_of([old]), health_of([old, new])
    assert ["memory_low", "throttled"] == [finding.code for finding in after.findings]
    assert (Change("began", new),) == changes(before, after)
    assert (Change("ended", new),) == changes(after, before)
    assert () == changes(after, health_of([old, msgspec.structs.replace(new, value=2.0)]))
