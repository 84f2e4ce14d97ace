"""The command `edgectl rollout`: its options, and which function runs them."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edged.config import checks
from edged.core.errors import BadValue
from edged.ctl.options import add_connection, check_name, seconds, settings_of

if TYPE_CHECKING:
    from edged.ctl.keys import SigningKey
    from edged.ctl.rollout import Plan

MOST_SOAK = 30 * 86_400.0


def add(commands: Any) -> None:
    """Add it."""
    rollout = commands.add_parser("rollout", help="apply settings in stages, and stop by itself at failures")
    verbs = rollout.add_subparsers(dest="verb", required=True, metavar="VERB")
    start = verbs.add_parser("start", help="begin with the first stage")
    start.add_argument("file", type=Path, metavar="FILE", help="settings as YAML or JSON")
    start.add_argument("--group", help="the layer of this group (default: the fleet's)")
    start.add_argument("--stages", default="1,5,25,100", metavar="LIST", help="percentages (default: 1,5,25,100)")
    start.add_argument("--soak", default="10m", metavar="TIME", help="how long each stage lasts (default: 10m)")
    start.add_argument("--window", metavar="HH:MM-HH:MM", help="devices begin within it, in their local time")
    start.add_argument("--not-before", metavar="TIME", help="no device begins before, such as 2026-12-01T02:00:00Z")
    start.add_argument("--id", help="its name (default: from the date)")
    start.set_defaults(run=_start)
    watch = verbs.add_parser("watch", help="follow a roll-out to its end, and change nothing")
    watch.add_argument("--timeout", type=seconds, metavar="SECONDS", help="stop watching after this time")
    watch.set_defaults(run=_watch)
    halt = verbs.add_parser("halt", help="let no other device begin")
    halt.add_argument("--reason", metavar="TEXT", help="for the other operators")
    halt.set_defaults(run=_halt)
    resume = verbs.add_parser("resume", help="go on with a halted roll-out")
    resume.set_defaults(run=_resume)
    run = verbs.add_parser("run", help="go on stage by stage until the end, or until something fails")
    run.add_argument("--once", action="store_true", help="do what is due now, and end")
    run.set_defaults(run=_run)
    listing = verbs.add_parser("list", help="list the roll-outs")
    listing.set_defaults(run=_list)
    for verb in (start, resume):
        default = " (default: 2%%)" if verb is start else ""
        verb.add_argument("--max-failures", metavar="SHARE", help=f"of a stage's devices that may fail{default}")
    for verb in (watch, halt, resume, run):
        verb.add_argument("id", nargs="?", metavar="ID", help="the roll-out (default: the one that has not ended)")
    for verb in (start, halt, resume, run):
        verb.add_argument("--key", type=Path, metavar="FILE", help="sign the layer with this private key")
    for verb in (start, watch, halt, resume, run, listing):
        add_connection(verb, signs=verb not in (watch, listing), whole_fleet=verb is start)
        verb.add_argument("--json", action="store_true", help="print one JSON document")


def _start(arguments: argparse.Namespace) -> int:
    from edged.ctl.rollout_verbs import start

    check_name(arguments, "group")
    plan, settings = _plan(arguments), settings_of(arguments)
    return start(settings, arguments.group, arguments.file, plan, _key(arguments), arguments.json)


def _plan(arguments: argparse.Namespace) -> Plan:
    from edged.ctl.rollout import Plan
    from edged.wire import rollout_schedule, rollouts
    from edged.wire.prompts import timestamp

    if arguments.window is not None:
        rollouts.window("--window", arguments.window)
    given = arguments.not_before
    name = arguments.id or time.strftime("%Y-%m-%d-%H%M%S", time.gmtime())
    return Plan(
        rollouts.ID("--id", name),
        rollout_schedule.stages("--stages", [_share("--stages", part) for part in arguments.stages.split(",")]),
        checks.duration(0, MOST_SOAK)("--soak", arguments.soak),
        _share("--max-failures", arguments.max_failures or "2%"),
        arguments.window,
        None if given is None else timestamp("--not-before", given),
    )


def _share(option: str, text: str) -> float:
    """`5` or `5%` → 5.0. Raises BadValue."""
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        raise BadValue(option, f"must be a percentage such as 2%, not {checks.shown(text)}") from None
    checked: float = checks.number(0, 100)(option, value)
    return checked


def _watch(arguments: argparse.Namespace) -> int:
    from edged.ctl.rollout_verbs import watch

    return watch(settings_of(arguments), arguments.id, arguments.timeout, arguments.json)


def _halt(arguments: argparse.Namespace) -> int:
    from edged.ctl.rollout_verbs import halt

    return halt(settings_of(arguments), arguments.id, arguments.reason, _key(arguments), arguments.json)


def _resume(arguments: argparse.Namespace) -> int:
    from edged.ctl.rollout_verbs import resume

    allowed = None if arguments.max_failures is None else _share("--max-failures", arguments.max_failures)
    return resume(settings_of(arguments), arguments.id, allowed, _key(arguments), arguments.json)


def _run(arguments: argparse.Namespace) -> int:
    from edged.ctl.rollout_verbs import run

    return run(settings_of(arguments), arguments.id, _key(arguments), arguments.once, arguments.json)


def _list(arguments: argparse.Namespace) -> int:
    from edged.ctl.rollout_verbs import show_all

    return show_all(settings_of(arguments), arguments.json)


def _key(arguments: argparse.Namespace) -> SigningKey | None:
    from edged.ctl.keys import load

    return None if arguments.key is None else load(arguments.key)
