"""The commands that show what devices do (`status`, `top`, `events`): their options, and what runs them."""

from __future__ import annotations

import argparse
from typing import Any

from edged.ctl.options import add_connection, check_name, seconds, settings_of


def add(commands: Any) -> None:
    """Add them all."""
    status = commands.add_parser("status", help="print a table of the fleet's devices")
    status.add_argument(
        "--wait",
        type=seconds,
        default=12.0,
        metavar="SECONDS",
        help="wait at most this long for readings (default: 12; 0: only retained messages)",
    )
    status.add_argument("--json", action="store_true", help="print one JSON document")
    status.set_defaults(run=_status)
    top = commands.add_parser("top", help="show a live table of the fleet's devices")
    top.set_defaults(run=_top)
    events = commands.add_parser("events", help="print what has happened on the devices")
    events.add_argument("--device", help="on this device alone")
    events.add_argument("--follow", action="store_true", help="go on with what happens, until Ctrl-C")
    events.add_argument("--json", action="store_true", help="print one JSON document; with --follow one in each line")
    events.set_defaults(run=_events)
    for command in (status, top, events):
        add_connection(command)


def _status(arguments: argparse.Namespace) -> int:
    from edged.ctl.status import show_fleet

    settings = settings_of(arguments)
    return show_fleet(settings.mqtt, settings.identity.fleet, arguments.wait, arguments.json)


def _top(arguments: argparse.Namespace) -> int:
    from edged.ctl.top import top

    settings = settings_of(arguments)
    return top(settings.mqtt, settings.identity.fleet)


def _events(arguments: argparse.Namespace) -> int:
    from edged.ctl.events import events

    check_name(arguments, "device")
    settings = settings_of(arguments)
    fleet, device = settings.identity.fleet, arguments.device
    return events(settings.mqtt, fleet, device, follow=arguments.follow, as_json=arguments.json)
