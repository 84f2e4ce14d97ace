"""The verbs of `edgectl rollout`: each reads what the broker retains, does one thing and prints it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from edged.config.schema import Settings
from edged.core.errors import ConfigError
from edged.ctl import rollout_state
from edged.ctl.config import Target
from edged.ctl.keys import SigningKey
from edged.ctl.rollout import LOOK_EVERY, Plan, Rollouts, read_settings
from edged.link.session import TimedOut
from edged.wire.layers import Layer, settings_text
from edged.wire.replies import rfc3339
from edged.wire.rollout_schedule import Schedule


def start(settings: Settings, group: str | None, path: Path, plan: Plan, key: SigningKey | None, as_json: bool) -> int:
    """Begin with the first stage. Raises ConfigError, BrokerError."""
    document = read_settings(path)
    with Rollouts(settings, key) as rollouts:
        schedule = rollouts.start(Target(rollouts.fleet, group), document, plan)
        return _show(rollouts, schedule, as_json, f"follow it with edgectl rollout run {schedule.id}, which goes on")


def show_all(settings: Settings, as_json: bool) -> int:
    """List the roll-outs, newest first."""
    with Rollouts(settings, None) as rollouts:
        ordered = sorted(rollouts.schedules.values(), key=lambda one: -one.started)
        documents = [_document(rollouts, schedule) for schedule in ordered]
        lines = [_line(rollouts, schedule) for schedule in ordered]
    if as_json:
        print(json.dumps({"rollouts": documents}, ensure_ascii=False))
    else:
        print("\n".join(lines) or f"the fleet {settings.identity.fleet} has no roll-out")
    return 0


def watch(settings: Settings, name: str | None, timeout: float | None, as_json: bool) -> int:
    """Follow a roll-out until it ends, and change nothing. Raises EdgedError, TimedOut."""
    until = None if timeout is None else time.monotonic() + timeout
    with Rollouts(settings, None) as rollouts:
        schedule = rollouts.choose(name)
        shown = ""
        while True:
            schedule = rollouts.schedules.get(schedule.id, schedule)
            shown = _print_change(_line(rollouts, schedule), shown, as_json)
            if _state(rollouts, schedule) != "running":
                return _show(rollouts, schedule, as_json)
            if until is not None and time.monotonic() > until:
                raise TimedOut("the roll-out has not ended yet; it goes on by edgectl rollout run")
            rollouts.read(LOOK_EVERY, LOOK_EVERY)


def run(settings: Settings, name: str | None, key: SigningKey | None, once: bool, as_json: bool) -> int:
    """Go on with a roll-out, stage by stage, until it ends; `once`: do what is due now. Raises EdgedError."""
    with Rollouts(settings, key) as rollouts:
        schedule = rollouts.choose(name)
        shown = ""
        while True:
            schedule, verdict = rollouts.step(schedule.id)
            shown = _print_change(f"{schedule.id}: {verdict.step}: {verdict.why}", shown, as_json)
            if once or _state(rollouts, schedule) != "running":
                return _show(rollouts, schedule, as_json)
            rollouts.read(LOOK_EVERY, LOOK_EVERY)


def halt(settings: Settings, name: str | None, why: str | None, key: SigningKey | None, as_json: bool) -> int:
    """No other device begins. Raises EdgedError."""
    with Rollouts(settings, key) as rollouts:
        schedule, _ = rollouts.present(name)
        schedule = rollouts.halt(schedule, "halted", why or "halted by an operator")
        _show(rollouts, schedule, as_json)
    return 0


def resume(settings: Settings, name: str | None, allowed: float | None, key: SigningKey | None, as_json: bool) -> int:
    """Go on with the stage at which it was halted. Raises EdgedError."""
    with Rollouts(settings, key) as rollouts:
        schedule, layer = rollouts.present(name)
        if rollout_state.state(schedule, layer) not in {"halted", "stopped"}:
            raise ConfigError(f"the roll-out {schedule.id} is not halted; see edgectl rollout watch {schedule.id}")
        schedule = rollouts.resume(schedule, allowed)
        return _show(rollouts, schedule, as_json)


def _print_change(line: str, before: str, as_json: bool) -> str:
    """Print a line where more than the time that is left has changed."""
    key = line.split(";", maxsplit=1)[0]
    if key != before:
        print(line, file=sys.stderr if as_json else sys.stdout, flush=True)
    return key


def _show(rollouts: Rollouts, schedule: Schedule, as_json: bool, more: str = "") -> int:
    """Print the page; gives the exit code."""
    if as_json:
        print(json.dumps(_document(rollouts, schedule), ensure_ascii=False))
    else:
        layer = rollouts.layer_of(schedule)
        print(_line(rollouts, schedule) if layer is None else _page(rollouts, schedule, layer))
        if more:
            print(f"  next:     {more}")
    return 1 if _state(rollouts, schedule) in {"stopped", "halted", "replaced"} else 0


def _page(rollouts: Rollouts, schedule: Schedule, layer: Layer) -> str:
    settings = settings_text(rollouts.layers[schedule.layer]) or "too long to show"
    return rollout_state.page(schedule, layer, rollouts.view, time.time(), settings)


def _state(rollouts: Rollouts, schedule: Schedule) -> str:
    layer = rollouts.layer_of(schedule)
    if layer is None:
        return "done" if schedule.state == "done" else "replaced"
    return rollout_state.state(schedule, layer)


def _line(rollouts: Rollouts, schedule: Schedule) -> str:
    layer = rollouts.layer_of(schedule)
    if layer is None:
        return f"{schedule.id}: {_state(rollouts, schedule)}: another layer is at the broker now"
    return rollout_state.line(schedule, layer, rollouts.view, time.time())


def _document(rollouts: Rollouts, schedule: Schedule) -> dict[str, Any]:
    layer = rollouts.layer_of(schedule)
    document: dict[str, Any] = {
        "id": schedule.id,
        "layer": schedule.layer,
        "state": _state(rollouts, schedule),
        "why": schedule.why,
        "percent": schedule.percent,
        "stages": list(schedule.stages),
        "soak_s": schedule.soak,
        "max_failures": schedule.max_failures,
        "started": rfc3339(schedule.started),
        "since": rfc3339(schedule.since),
    }
    if layer is None:
        return document
    found = rollout_state.progress(schedule, layer, rollouts.view)
    verdict = rollout_state.judge(schedule, layer, rollouts.view, time.time())
    devices = {
        "known": len(found.members),
        "asked": len(found.cohort),
        "applied": len(found.applied),
        "trial": len(found.trial),
        "delayed": len(found.delayed),
        "offline": len(found.absent),
        "silent": list(found.silent),
        "failed": dict(found.failed),
    }
    return {**document, "why": verdict.why, "revision": layer.revision, "devices": devices}
