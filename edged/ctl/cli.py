"""The `edgectl` command: parses words, calls this room, gives exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edged import __version__
from edged.core import fields as f
from edged.core.errors import BadValue, BrokerError, ConfigError, EdgedError
from edged.core.settings import OWNER, SAMPLING, Settings, build, merge
from edged.ctl.session import TimedOut, default_requester
from edged.wire import config_file
from edged.wire.topics import REQUESTER

DONE, FAILED, USAGE, NO_BROKER, TIMED_OUT = 0, 1, 2, 3, 4


def parser() -> argparse.ArgumentParser:
    """All words that `edgectl` knows."""
    top = argparse.ArgumentParser(prog="edgectl", description="Talk to devices that run edged, through their broker.")
    top.add_argument("--version", action="version", version=f"edgectl {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    prompt = commands.add_parser("prompt", help="ask a device, show the answer as it streams")
    _connection(prompt)
    prompt.add_argument("text", metavar="TEXT", help="the prompt; - reads it from standard input")
    prompt.add_argument("--device", help="which device (default: the fleet's only one)")
    prompt.add_argument("--requester", default=None, help="who asks (default: your user name)")
    prompt.add_argument("--system", help="a system turn before the prompt")
    prompt.add_argument("--max-tokens", type=int)
    prompt.add_argument("--temperature", type=float)
    prompt.add_argument("--seed", type=int)
    prompt.add_argument("--priority", type=int, help="0 (first) to 9")
    prompt.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS")
    prompt.add_argument("--json", action="store_true", help="print the final as one JSON document")
    prompt.set_defaults(run=_prompt)
    return top


def _connection(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", type=Path, help="take broker and fleet from this file")
    command.add_argument("--url", help="the broker (default: the config's, or mqtt://127.0.0.1:1883)")
    command.add_argument("--fleet", help="the fleet (default: the config's, or home)")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of the command."""
    arguments = parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except (ConfigError, BadValue) as error:
        return _complain(str(error), USAGE)
    except BrokerError as error:
        return _complain(str(error), NO_BROKER)
    except TimedOut:
        return _complain(
            "no answer came in time; look at the device's status, or wait longer with --timeout", TIMED_OUT
        )
    except EdgedError as error:
        return _complain(str(error), FAILED)
    except KeyboardInterrupt:
        return _complain("interrupted", FAILED)
    return code


def _complain(sentence: str, code: int) -> int:
    print(f"edgectl: {sentence}", file=sys.stderr)
    return code


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings in the config file (if there is one), with the command's own words laid over. Raises ConfigError."""
    values: dict[str, Any] = config_file.load(arguments.config, os.environ)
    if arguments.url:
        values = merge(values, {"mqtt": {"url": arguments.url}})
    if arguments.fleet:
        values = merge(values, {"identity": {"fleet": arguments.fleet}})
    f.record("mqtt", {"url": build(values).mqtt.url}, OWNER["mqtt"])
    f.record("identity", {"fleet": build(values).identity.fleet}, OWNER["identity"])
    return build(values)


def _prompt(arguments: argparse.Namespace) -> int:
    from edged.ctl.prompt import Ask, ask

    settings = settings_of(arguments)
    requester = arguments.requester or default_requester()
    f.text(pattern=REQUESTER, like="1 to 64 of A-Z, a-z, 0-9, _ and -")("--requester", requester)
    if arguments.device is not None:
        f.text(pattern=f.NAME, like="1 to 63 of a-z, 0-9 and -")("--device", arguments.device)
    body: dict[str, Any] = {"prompt": sys.stdin.read() if arguments.text == "-" else arguments.text}
    for key in ("system", "max_tokens", "temperature", "seed", "priority"):
        value = getattr(arguments, key)
        if value is not None:
            body[key] = SAMPLING[key](f"--{key.replace('_', '-')}", value) if key in SAMPLING else value
    wanted = Ask(settings.identity.fleet, arguments.device, requester, body, arguments.timeout, arguments.json)
    return ask(settings.mqtt, wanted)


if __name__ == "__main__":
    sys.exit(main())
