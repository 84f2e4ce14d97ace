"""The commands that operate a device (`command`, `forget`): their options, and what runs them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edged.command_line import WrongUsage
from edged.config import checks
from edged.ctl.options import add_connection, add_requester, check_name, requester_of, seconds, settings_of
from edged.wire.commands import NAMES


def add(commands: Any) -> None:
    """Add them all."""
    command = commands.add_parser("command", help="send a command to a device, whose owner allows it")
    command.add_argument("name", metavar="NAME", choices=NAMES, help=", ".join(NAMES))
    command.add_argument("--device", help="the device (default: the only one that is online)")
    add_requester(command)
    command.add_argument("--output", type=Path, metavar="FILE", help="of diagnostics: where the archive goes")
    command.add_argument(
        "--timeout", type=seconds, default=60.0, metavar="SECONDS", help="wait at most this long (default: 60)"
    )
    command.add_argument("--json", action="store_true", help="print the final reply as one JSON document")
    add_connection(command)
    command.set_defaults(run=_command)
    forget = commands.add_parser("forget", help="remove what the broker retains about a device")
    forget.add_argument("device", metavar="DEVICE", help="a device that is offline for good")
    forget.add_argument("--yes", action="store_true", help="remove it; without, the topics are only printed")
    forget.add_argument("--json", action="store_true", help="print one JSON document")
    add_connection(forget)
    forget.set_defaults(run=_forget)


def _command(arguments: argparse.Namespace) -> int:
    from edged.ctl.command import Order, send

    if arguments.output is not None and arguments.name != "diagnostics":
        raise WrongUsage("--output: only diagnostics has a file")
    check_name(arguments, "device")
    settings = settings_of(arguments)
    requester = requester_of(arguments, settings)
    order = Order(
        settings.identity.fleet,
        arguments.device,
        requester,
        arguments.name,
        arguments.timeout,
        arguments.output,
        arguments.json,
    )
    return send(settings.mqtt, order)


def _forget(arguments: argparse.Namespace) -> int:
    from edged.ctl.forget import forget

    checks.text(pattern=checks.NAME, like="1 to 63 of a-z, 0-9 and -")("DEVICE", arguments.device)
    settings = settings_of(arguments)
    fleet, device = settings.identity.fleet, arguments.device
    return forget(settings.mqtt, fleet, device, confirmed=arguments.yes, as_json=arguments.json)
