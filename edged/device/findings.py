"""From readings to findings, without flapping. Pure: time comes with the readings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from edged.core.health import Finding
from edged.core.reading import Reading
from edged.device.rules import RULES, Level, Limits, Rule, Shown

JUMP_LIMIT_S = 2.0
JUMP_HOLD_S = 300.0
_JUMP_ADVICE = (
    "The clock was set while edged ran: prompts with an absolute expires_at may have expired at the wrong time; "
    "keep the clock synchronised (`timedatectl set-ntp true`)."
)


@dataclass(frozen=True, slots=True)
class Latch:
    """One severity of one rule. `turning` is the uptime since which the measure contradicts the present state.

    `since` is the wall time at which it first passed the threshold; `shown` the last value beyond the threshold.
    """

    active: bool = False
    turning: float | None = None
    since: float = 0.0
    shown: Shown = (None, None)


@dataclass(frozen=True, slots=True)
class Jump:
    """The wall clock's last jump (seconds, forwards positive), when it was found, and when the series began."""

    seconds: float
    uptime_s: float
    since: float


@dataclass(frozen=True, slots=True)
class JudgeState:
    """What must be remembered between two readings."""

    latches: Mapping[str, tuple[Latch, Latch]] = field(default_factory=dict)
    clocks: tuple[float, float] | None = None
    jump: Jump | None = None


class Judge:
    """Holds the state for one caller. `update` returns the findings of a reading; call it in the order of time."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._state = JudgeState()

    def update(self, reading: Reading) -> tuple[Finding, ...]:
        """The findings after this reading."""
        self._state, findings = judge(self._state, reading, self._limits)
        return findings


def judge(state: JudgeState, reading: Reading, limits: Limits) -> tuple[JudgeState, tuple[Finding, ...]]:
    """The state after this reading, and the findings."""
    jumped = _jumped(state.clocks, reading)
    latches = dict(state.latches)
    if jumped:
        latches = {code: (_moved(mild, jumped), _moved(grave, jumped)) for code, (mild, grave) in latches.items()}
    jump = _jump(state.jump, jumped, reading)
    findings = []
    for rule in RULES:
        mild, grave = latches.get(rule.code, (Latch(), Latch()))
        mild = _step(mild, rule, rule.degraded(limits), reading)
        if rule.failing:
            grave = _step(grave, rule, rule.failing(limits), reading)
        latches[rule.code] = mild, grave
        if mild.active or grave.active:
            findings.append(_finding(rule, mild, grave))
    if jump:
        findings.append(Finding("clock_jumped", jump.since, round(jump.seconds, 1), JUMP_LIMIT_S, _JUMP_ADVICE))
    return JudgeState(latches, (reading.at, reading.uptime_s), jump), tuple(findings)


def _step(latch: Latch, rule: Rule, level: Level, reading: Reading) -> Latch:
    value = rule.measure(reading)
    if value is not None and (shown := rule.shows(reading, value, level.on))[0] is not None:
        latch = replace(latch, shown=shown)  # names of sensors stay until the finding ends, figures follow the measure
    against = rule.behind(value, level.off) if latch.active else rule.beyond(value, level.on)
    if not against:
        return replace(latch, turning=None)
    began = reading.uptime_s if latch.turning is None else latch.turning
    since = reading.at if latch.turning is None and not latch.active else latch.since
    if reading.uptime_s - began >= (rule.hold_off_s if latch.active else rule.hold_on_s):
        return replace(latch, active=not latch.active, turning=None, since=since)
    return replace(latch, turning=began, since=since)


def _finding(rule: Rule, mild: Latch, grave: Latch) -> Finding:
    worst = grave if grave.active else mild
    since = min(latch.since for latch in (mild, grave) if latch.active)
    value, limit = worst.shown
    return Finding(rule.code, since, value, limit, rule.advice, "failing" if grave.active else "degraded")


def _jumped(before: tuple[float, float] | None, reading: Reading) -> float:
    """By how much the wall clock was set between two readings; 0 where that is too little to mean anything."""
    if before is None or reading.uptime_s < before[1]:
        return 0.0
    seconds = (reading.at - before[0]) - (reading.uptime_s - before[1])
    return seconds if abs(seconds) >= JUMP_LIMIT_S else 0.0


def _jump(jump: Jump | None, jumped: float, reading: Reading) -> Jump | None:
    if jumped:
        return Jump(jumped, reading.uptime_s, jump.since + jumped if jump else reading.at)
    if jump and reading.uptime_s - jump.uptime_s >= JUMP_HOLD_S:
        return None
    return jump


def _moved(latch: Latch, seconds: float) -> Latch:
    """The same moment by the clock as it is set now."""
    return replace(latch, since=latch.since + seconds)
