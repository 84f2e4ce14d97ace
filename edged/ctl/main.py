"""The `edgectl` command: parses words, calls this room, gives exit codes."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edged import __version__
from edged.command_line import Parser, WrongUsage, reason, text_or_input, utf8
from edged.config import checks
from edged.config import file as config_file
from edged.config.environment import from_environment
from edged.config.keys import OWNER, SAMPLING
from edged.config.schema import Settings, build, merge
from edged.core.errors import BadValue, BrokerError, ConfigError, EdgedError
from edged.link.session import TimedOut, default_requester
from edged.wire.topics import REQUESTER

MAX_WAIT = 1_000_000  # seconds; queues take no more than some 292 years of them
DONE, FAILED, USAGE, NO_BROKER, TIMED_OUT = 0, 1, 2, 3, 4
RESERVED = {
    ("top",): "show devices as they change",
    ("config", "diff"): "compare layers",
    ("config", "history"): "keep the layers of before",
    ("rollout",): "roll a layer out in steps",
    ("model",): "steer the models of devices",
    ("keys",): "sign layers",
    ("simulate",): "say beforehand what a layer would change",
    ("forget",): "take a device out of the fleet",
}
"""Commands that the contract names for later, and what they will do."""


def parser() -> argparse.ArgumentParser:
    """All words that `edgectl` knows."""
    top = Parser(prog="edgectl", description="Talk to devices that run edged, through their broker.")
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
    prompt.add_argument("--timeout", type=_seconds, default=120.0, metavar="SECONDS")
    prompt.add_argument("--json", action="store_true", help="print the final as one JSON document")
    prompt.set_defaults(run=_prompt)
    _status_words(commands)
    _config_words(commands)
    completion = commands.add_parser("completion", help="print a completion script for your shell")
    completion.add_argument("shell", choices=("bash", "zsh"))
    completion.set_defaults(run=_completion)
    return top


def _status_words(commands: Any) -> None:
    status = commands.add_parser("status", help="a table of every device of the fleet")
    _connection(status)
    status.add_argument(
        "--wait", type=_seconds, default=12.0, metavar="SECONDS", help="for readings (0: only what is kept)"
    )
    status.add_argument("--json", action="store_true", help="print one JSON document")
    status.set_defaults(run=_status)


def _config_words(commands: Any) -> None:
    config = commands.add_parser("config", help="push config layers, see what became of them")
    verbs = config.add_subparsers(dest="verb", required=True, metavar="VERB")
    push = verbs.add_parser("push", help="push a layer of settings to the fleet, a group or a device")
    push.add_argument("file", type=Path, nargs="?", metavar="FILE", help="settings, or a whole layer, as YAML or JSON")
    push.add_argument("--remove", action="store_true", help="take the layer away instead")
    target = push.add_mutually_exclusive_group()
    target.add_argument("--group", help="the layer of this group")
    target.add_argument("--device", help="the layer of this device")
    push.add_argument("--wait", type=_seconds, default=10.0, metavar="SECONDS", help="for the devices' reports")
    push.set_defaults(run=_push)
    get = verbs.add_parser("get", help="the layers at the broker and what devices report")
    get.set_defaults(run=_get)
    for verb in (push, get):
        _connection(verb)
        verb.add_argument("--json", action="store_true", help="print one JSON document")


def _connection(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", type=Path, help="take broker and fleet from this file")
    command.add_argument("--url", help="the broker (default: the config's, or mqtt://127.0.0.1:1883)")
    command.add_argument("--fleet", help="the fleet (default: the config's, or home)")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= MAX_WAIT:  # nor is a NaN
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds from 0 to {MAX_WAIT}")
    return value


def _refuse_reserved(words: Sequence[str]) -> None:
    for name, what in RESERVED.items():
        if tuple(words[: len(name)]) == name:
            raise WrongUsage(f"{' '.join(name)}: this version does not {what} yet")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of the command."""
    words = sys.argv[1:] if argv is None else argv
    try:
        _refuse_reserved(words)
        arguments = parser().parse_args(words)
        code: int = arguments.run(arguments)
    except EdgedError as error:
        return _complain(str(error), _code_of(error))
    except TimedOut as silence:
        why = str(silence) or "no answer came in time; look at the device's status, or wait longer"
        return _complain(why, TIMED_OUT)
    except KeyboardInterrupt:
        return _complain("interrupted", FAILED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        return _complain(f"the command failed ({reason(error)}); mend that and try again", FAILED)
    return code


def _code_of(error: EdgedError) -> int:
    if isinstance(error, (ConfigError, BadValue, WrongUsage)):
        return USAGE
    return NO_BROKER if isinstance(error, BrokerError) else FAILED


def _complain(why: str, code: int) -> int:
    print(f"edgectl: {why}", file=sys.stderr)
    return code


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings in the config file (if there is one), with the command's own words laid over. Raises ConfigError."""
    given: dict[str, Any] = {}
    if arguments.url is not None:
        given = merge(given, {"mqtt": {"url": OWNER["mqtt"]["url"]("--url", arguments.url)}})
    if arguments.fleet is not None:
        given = merge(given, {"identity": {"fleet": OWNER["identity"]["fleet"]("--fleet", arguments.fleet)}})
    try:
        values = config_file.load(arguments.config, os.environ)
    except config_file.Unreadable as error:
        values = from_environment(os.environ)
        said = merge(values, given)
        if "url" not in said.get("mqtt", {}) or "fleet" not in said.get("identity", {}):
            raise ConfigError(f"{error}, or broker and fleet with --url and --fleet") from None
    return build(merge(values, given))


def _prompt(arguments: argparse.Namespace) -> int:
    from edged.ctl.prompt import Ask, ask

    settings = settings_of(arguments)
    requester = arguments.requester or default_requester()
    checks.text(pattern=REQUESTER, like="1 to 64 of A-Z, a-z, 0-9, _ and -")("--requester", requester)
    if arguments.device is not None:
        checks.text(pattern=checks.NAME, like="1 to 63 of a-z, 0-9 and -")("--device", arguments.device)
    body: dict[str, Any] = {"prompt": text_or_input("TEXT", arguments.text)}
    utf8("--system", arguments.system or "")
    for key in ("system", "max_tokens", "temperature", "seed", "priority"):
        value = getattr(arguments, key)
        if value is not None:
            body[key] = SAMPLING[key](f"--{key.replace('_', '-')}", value) if key in SAMPLING else value
    wanted = Ask(settings.identity.fleet, arguments.device, requester, body, arguments.timeout, arguments.json)
    return ask(settings.mqtt, wanted)


def _status(arguments: argparse.Namespace) -> int:
    from edged.ctl.status import show_fleet

    settings = settings_of(arguments)
    return show_fleet(settings.mqtt, settings.identity.fleet, arguments.wait, arguments.json)


def _push(arguments: argparse.Namespace) -> int:
    from edged.ctl.config import Target, push

    if (arguments.file is None) != arguments.remove:
        raise ConfigError("give a FILE to push, or --remove to take the layer away")
    for word in ("group", "device"):
        if getattr(arguments, word) is not None:
            checks.text(pattern=checks.NAME, like="1 to 63 of a-z, 0-9 and -")(f"--{word}", getattr(arguments, word))
    settings = settings_of(arguments)
    target = Target(settings.identity.fleet, arguments.group, arguments.device)
    return push(settings.mqtt, target, arguments.file, arguments.wait, arguments.json)


def _get(arguments: argparse.Namespace) -> int:
    from edged.ctl.config import get

    settings = settings_of(arguments)
    return get(settings.mqtt, settings.identity.fleet, arguments.json)


def _completion(arguments: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(parser(), shell=arguments.shell))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
