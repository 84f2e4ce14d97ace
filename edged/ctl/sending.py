"""The command `edgectl model`: its options, and which function runs it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edged.config import checks
from edged.ctl.options import add_connection, check_name, seconds, settings_of


def add(commands: Any) -> None:
    """Add it."""
    model = commands.add_parser("model", help="send models to devices over the broker")
    verbs = model.add_subparsers(dest="verb", required=True, metavar="VERB")
    push = verbs.add_parser("push", help="send a GGUF file to the stores of devices; it resumes where it stopped")
    push.add_argument("file", type=Path, metavar="FILE", help="a model in the GGUF format")
    target = push.add_mutually_exclusive_group()
    target.add_argument("--device", action="append", metavar="DEVICE", help="to this device; may be repeated")
    target.add_argument("--group", help="to the devices of this group (default: to the whole fleet)")
    push.add_argument("--rate", default="2MB", metavar="SIZE", help="bytes a second at most (default: 2MB)")
    push.add_argument("--key", type=Path, metavar="FILE", help="sign the offer with this private key")
    push.add_argument(
        "--timeout",
        type=seconds,
        default=120.0,
        metavar="SECONDS",
        help="give a device up that is silent for so long (default: 120)",
    )
    push.add_argument("--json", action="store_true", help="print one JSON document")
    push.set_defaults(run=_push)
    add_connection(push, signs=True, whole_fleet=True)


def _push(arguments: argparse.Namespace) -> int:
    from edged.ctl.keys import load
    from edged.ctl.model_file import devices_of
    from edged.ctl.model_push import ModelPushOptions, PushTarget, push

    check_name(arguments, "group")
    named = checks.text(pattern=checks.NAME, like="1 to 63 of a-z, 0-9 and -")
    devices = devices_of([named("--device", name) for name in arguments.device or ()])
    rate = checks.size(1_000, 1_000_000_000)("--rate", arguments.rate)
    key = None if arguments.key is None else load(arguments.key)
    settings = settings_of(arguments)
    options = ModelPushOptions(rate, arguments.timeout, key, arguments.json)
    return push(settings.mqtt, PushTarget(settings.identity.fleet, devices, arguments.group), arguments.file, options)
