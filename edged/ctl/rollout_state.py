"""How far a roll-out is, and what follows: pure functions over what the broker retains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from edged.config.checks import show_duration
from edged.wire.layers import Layer
from edged.wire.rollout_schedule import Schedule
from edged.wire.rollouts import belongs

Outcome = Literal["applied", "trial", "waiting", "failed", "none"]
Step = Literal["next", "stop", "soak", "done", "ended"]
SHOWN = 200  # characters of the settings on a page
NAMED = 20  # devices that a page names


class View(msgspec.Struct, frozen=True):
    """What the broker retains of the devices: statuses, reported documents, and groups by health."""

    statuses: Mapping[str, str]
    reports: Mapping[str, Mapping[str, Any]]
    groups: Mapping[str, tuple[str, ...]]


class Progress(msgspec.Struct, frozen=True):
    """The devices of a roll-out by what became of it, each sorted.

    `cohort`: those that the present stage asks to apply it, and that were online when it began; the others of these are
    `absent`. `silent`: of the cohort, without any report about this stage. `failed` has the reasons.
    """

    members: tuple[str, ...]
    cohort: tuple[str, ...]
    absent: tuple[str, ...]
    applied: tuple[str, ...]
    trial: tuple[str, ...]
    delayed: tuple[str, ...]
    silent: tuple[str, ...]
    failed: Mapping[str, str]


class Verdict(msgspec.Struct, frozen=True):
    """What follows, and why in one sentence. `percent`: of the next stage."""

    step: Step
    why: str
    percent: float = 0.0


def members(view: View, layer: str) -> tuple[str, ...]:
    """The devices that have this layer."""
    if layer == "fleet":
        return tuple(sorted(view.statuses))
    group = layer.removeprefix("group:")
    listed = {device for device, groups in view.groups.items() if group in groups}
    reported = {
        device
        for device, report in view.reports.items()
        if report.get("layer") == layer or layer in (report.get("in_force") or {})
    }
    return tuple(sorted((listed | reported) & set(view.statuses)))


def absent(view: View, layer: str) -> frozenset[str]:
    """The devices of a layer that are offline."""
    return frozenset(device for device in members(view, layer) if view.statuses[device] == "offline")


def outcome(report: Mapping[str, Any], schedule: Schedule, revision: int) -> tuple[Outcome, bool]:
    """What a device reports about a roll-out, and whether about the layer's present `revision`."""
    known = report.get("revision")
    about = report.get("layer") == schedule.layer and type(known) is int and schedule.revision <= known <= revision
    in_force = (report.get("in_force") or {}).get(schedule.layer)
    if about and report.get("phase") in {"rolled_back", "rejected"}:
        return "failed", True
    if about and report.get("phase") == "trial":
        return "trial", True
    if type(in_force) is int and schedule.revision <= in_force <= revision:
        return "applied", in_force == revision
    if about and report.get("phase") == "waiting":
        return "waiting", known == revision
    return "none", False


def progress(schedule: Schedule, layer: Layer, view: View) -> Progress:
    """Where each device is."""
    everyone = members(view, schedule.layer)
    seed = layer.rollout.seed if layer.rollout is not None else ""
    asked = [device for device in everyone if belongs(seed, device, schedule.percent)]
    by: dict[str, list[str]] = {name: [] for name in ("applied", "trial", "delayed", "silent", "cohort", "absent")}
    failed: dict[str, str] = {}
    for device in everyone:
        report = view.reports.get(device, {})
        what, _ = outcome(report, schedule, layer.revision)
        if what in {"applied", "trial"}:
            by[what].append(device)
        if what == "failed":
            failed[device] = str(report.get("reason"))
    for device in asked:
        what, current = outcome(view.reports.get(device, {}), schedule, layer.revision)
        missing = device in schedule.absent and not current
        by["absent" if missing else "cohort"].append(device)
        if not missing and what == "waiting" and current:
            by["delayed"].append(device)
        elif not missing and not current:
            by["silent"].append(device)
    return Progress(everyone, failed=failed, **{name: tuple(devices) for name, devices in by.items()})


def judge(schedule: Schedule, layer: Layer, view: View, now: float) -> Verdict:
    """What follows at Unix time `now`."""
    if state(schedule, layer) != "running":
        return Verdict("ended", schedule.why or "halted by an operator")
    found = progress(schedule, layer, view)
    left = schedule.since + schedule.soak - now if found.cohort else 0.0
    if (why := _too_many(schedule, found, over=left <= 0)) is not None:
        return Verdict("stop", why)
    open_ones = len(found.trial) + len(found.delayed)
    if left > 0 or open_ones:
        until = f"{show_duration(float(-(-left // 1)))} of the soak time" if left > 0 else f"{open_ones} of them"
        return Verdict("soak", f"{_counts(found)}; waiting for {until}")
    following = next((stage for stage in schedule.stages if stage > schedule.percent), None)
    if following is None:
        return Verdict("done", f"{len(found.applied)} of {len(found.members)} devices have it; {_rest(found)}")
    return Verdict("next", f"{_counts(found)}; the next stage is {following:g} %", following)


def _too_many(schedule: Schedule, found: Progress, *, over: bool) -> str | None:
    """Why the roll-out stops; None where it does not. Silence counts when the soak time is `over`."""
    asked = len(found.cohort)
    allowed = asked * schedule.max_failures / 100
    of = f"of {asked} devices at {schedule.percent:g} %"
    limit = f"(at most {schedule.max_failures:g} % may)"
    if len(found.failed) > allowed:
        device, reason = next(iter(found.failed.items()))
        return f"{len(found.failed)} {of} failed {limit}: {device}: {reason}"
    if over and len(found.failed) + len(found.silent) > allowed:
        names = ", ".join(found.silent[:3]) + (", …" if len(found.silent) > 3 else "")
        return f"{len(found.silent)} {of} did not report within the soak time {limit}: {names}"
    return None


def _counts(found: Progress) -> str:
    words = {
        "have it": len(found.applied),
        "on trial": len(found.trial),
        "delayed": len(found.delayed),
        "failed": len(found.failed),
        "silent": len(found.silent),
    }
    if not found.cohort:
        return "no device is asked"
    return f"{len(found.cohort)} asked: " + ", ".join(f"{count} {word}" for word, count in words.items() if count)


def _rest(found: Progress) -> str:
    away = len(found.absent)
    return f"{away} offline get it when they connect" if away else "none is missing"


def line(schedule: Schedule, layer: Layer, view: View, now: float) -> str:
    """The roll-out in one line."""
    verdict = judge(schedule, layer, view, now)
    return f"{schedule.id}: {state(schedule, layer)} at {schedule.percent:g} % of {schedule.layer}: {verdict.why}"


def state(schedule: Schedule, layer: Layer) -> str:
    """Its state; a halted layer is halted whatever the schedule says."""
    if schedule.state == "running" and layer.rollout is not None and layer.rollout.halted:
        return "halted"
    return schedule.state


def page(schedule: Schedule, layer: Layer, view: View, now: float, settings: str) -> str:
    """What the roll-out did, on one page of text. `settings`: of the layer, as JSON text."""
    found = progress(schedule, layer, view)
    reached = " ".join(f"[{stage:g} %]" if stage == schedule.percent else f"{stage:g} %" for stage in schedule.stages)
    lines = [
        line(schedule, layer, view, now),
        f"  stages:   {reached}, {show_duration(schedule.soak)} each; at most {schedule.max_failures:g} % may fail",
        f"  settings: {settings[:SHOWN]}",
        f"  devices:  {len(found.members)}; {_counts(found)}",
    ]
    lines += [f"  failed:   {device}: {reason}" for device, reason in list(found.failed.items())[:NAMED]]
    for word, devices in (("silent:", found.silent), ("offline:", found.absent)):
        if devices:
            more = f" and {len(devices) - NAMED} more" if len(devices) > NAMED else ""
            lines.append(f"  {word:<9} {', '.join(devices[:NAMED])}{more}")
    if state(schedule, layer) in {"halted", "stopped"}:
        undo = "" if schedule.layer == "fleet" else f" --group {schedule.layer[6:]}"
        lines.append(
            f"  next:     edgectl rollout resume {schedule.id}, or start another with other settings; "
            f"edgectl config undo{undo} takes the settings back where they are in force"
        )
    return "\n".join(lines)
