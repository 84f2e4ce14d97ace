"""The `edgectl` command: parses the arguments, runs one module of this package, returns the exit code."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edged import __version__
from edged.command_line import (
    DONE,
    FAILED,
    NO_BROKER,
    TIMED_OUT,
    USAGE,
    Parser,
    WrongUsage,
    drop_output,
    fail,
    reason,
    text_or_input,
    utf8,
)
from edged.config import checks
from edged.config import file as config_file
from edged.config.environment import from_environment
from edged.config.keys import SAMPLING, known_keys
from edged.config.schema import Settings, build, merge
from edged.core.errors import BadValue, BrokerError, ConfigError, EdgedError
from edged.link.session import TimedOut, default_requester
from edged.wire.topics import REQUESTER

if TYPE_CHECKING:
    from edged.ctl.config import PushOptions, Target

AddCommand = Callable[[Any], None]
"""Adds a command to the subparsers of `edgectl`."""
WATCH_FOR = 3600.0  # seconds that a trial is followed
MAX_WAIT = 1_000_000  # seconds; a queue's timeout overflows at 292 years
RESERVED = {
    ("top",): "show devices as they change",
    ("rollout",): "roll a layer out in steps",
    ("model",): "manage the models of devices",
    ("simulate",): "show what a layer would change",
    ("forget",): "remove a device from the fleet",
}
"""Reserved commands, and what a later version will do."""


def parser(more: Sequence[AddCommand] = ()) -> argparse.ArgumentParser:
    """Every command and option of `edgectl`. `more` adds commands of packages above this one."""
    top = Parser(prog="edgectl", description="Talk to devices that run edged, through their broker.")
    top.add_argument("--version", action="version", version=f"edgectl {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    prompt = commands.add_parser("prompt", help="send a prompt to a device and print the answer as it arrives")
    add_connection(prompt)
    prompt.add_argument("text", metavar="TEXT", help="the prompt; - reads it from standard input")
    prompt.add_argument("--device", help="the device (default: the only one of the fleet)")
    prompt.add_argument("--requester", default=None, help="the requester in the topics (default: your user name)")
    prompt.add_argument("--system", help="a system message before the prompt")
    prompt.add_argument("--max-tokens", type=int, metavar="N", help="default: the device's")
    prompt.add_argument("--temperature", type=float, metavar="T", help="0 is greedy (default: the device's)")
    prompt.add_argument("--seed", type=int, metavar="N", help="seed of the sampling (default: random)")
    prompt.add_argument("--priority", type=int, metavar="N", help="0 (first) to 9 (default: 5)")
    prompt.add_argument(
        "--timeout", type=_seconds, default=120.0, metavar="SECONDS", help="wait at most this long (default: 120)"
    )
    prompt.add_argument("--json", action="store_true", help="print the final reply as one JSON document")
    prompt.set_defaults(run=_prompt)
    _add_status(commands)
    _add_config(commands)
    _add_keys(commands)
    completion = commands.add_parser("completion", help="print a completion script for your shell")
    completion.add_argument("shell", choices=("bash", "zsh"))
    completion.set_defaults(run=lambda arguments: _completion(arguments, more))
    for add in more:
        add(commands)
    return top


def _add_status(commands: Any) -> None:
    status = commands.add_parser("status", help="print a table of the fleet's devices")
    add_connection(status)
    status.add_argument(
        "--wait",
        type=_seconds,
        default=12.0,
        metavar="SECONDS",
        help="wait at most this long for readings (default: 12; 0: only retained messages)",
    )
    status.add_argument("--json", action="store_true", help="print one JSON document")
    status.set_defaults(run=_status)


def _add_config(commands: Any) -> None:
    config = commands.add_parser("config", help="push config layers, and show which are in force")
    verbs = config.add_subparsers(dest="verb", required=True, metavar="VERB")
    push = verbs.add_parser("push", help="push a layer of settings to the fleet, a group or a device")
    push.add_argument("file", type=Path, nargs="?", metavar="FILE", help="settings, or a whole layer, as YAML or JSON")
    push.add_argument("--remove", action="store_true", help="remove the layer instead")
    push.set_defaults(run=_push)
    undo = verbs.add_parser("undo", help="push the settings that a layer had before, from the devices' history")
    undo.set_defaults(run=_undo)
    for verb in (push, undo):
        verb.add_argument(
            "--wait",
            type=_seconds,
            default=None,
            metavar="SECONDS",
            help="wait so long for the devices' reports (default: 10; with --watch 3600)",
        )
        verb.add_argument("--key", type=Path, metavar="FILE", help="sign the layer with this private key")
        verb.add_argument("--watch", action="store_true", help="follow the trial of a model to its end")
    diff = verbs.add_parser("diff", help="show what a push would change, and where")
    diff.add_argument("file", type=Path, metavar="FILE", help="settings, or a whole layer, as YAML or JSON")
    diff.set_defaults(run=_diff)
    for verb in (push, undo, diff):
        target = verb.add_mutually_exclusive_group()
        target.add_argument("--group", help="the layer of this group")
        target.add_argument("--device", help="the layer of this device")
    history = verbs.add_parser("history", help="print the devices' last decisions about layers")
    history.add_argument("--device", help="of this device alone")
    history.set_defaults(run=_history)
    get = verbs.add_parser("get", help="print the layers at the broker and the devices' reports")
    get.set_defaults(run=_get)
    for verb in (push, undo, diff, history, get):
        add_connection(verb)
        verb.add_argument("--json", action="store_true", help="print one JSON document")


def _add_keys(commands: Any) -> None:
    keys = commands.add_parser("keys", help="key pairs that sign config layers")
    verbs = keys.add_subparsers(dest="verb", required=True, metavar="VERB")
    new = verbs.add_parser("new", help="make a key pair")
    new.add_argument("name", metavar="NAME", help="of the key, for example ops-2026")
    listing = verbs.add_parser("list", help="list the keys that are here")
    shown = verbs.add_parser("fingerprint", help="print the fingerprint of a key")
    shown.add_argument("key", metavar="KEY", help="a name, the file of a private key, or a public key")
    for verb in (new, listing, shown):
        verb.add_argument("--folder", type=Path, metavar="FOLDER", help="default: ~/.config/edged/keys")
        verb.add_argument("--json", action="store_true", help="print one JSON document")
        verb.set_defaults(run=_keys)


def add_connection(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", type=Path, metavar="FILE", help="read broker and fleet from this file")
    command.add_argument("--url", help="the broker (default: that of the config, or mqtt://127.0.0.1:1883)")
    command.add_argument("--fleet", help="the fleet (default: that of the config, or home)")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= MAX_WAIT:  # also refuses NaN
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds from 0 to {MAX_WAIT}")
    return value


def _refuse_reserved(arguments: Sequence[str]) -> None:
    for name, what in RESERVED.items():
        if tuple(arguments[: len(name)]) == name:
            raise WrongUsage(f"{' '.join(name)}: this version does not {what} yet")


def main(argv: Sequence[str] | None = None, more: Sequence[AddCommand] = ()) -> int:
    """Entry point; returns the exit code. An error is one sentence on stderr."""
    given = sys.argv[1:] if argv is None else argv
    try:
        _refuse_reserved(given)
        arguments = parser(more).parse_args(given)
        code: int = arguments.run(arguments)
    except EdgedError as error:
        return fail("edgectl", str(error), _code_of(error))
    except TimedOut as error:
        why = (
            str(error) or "no answer came in time; check the device with edgectl status, or wait longer with --timeout"
        )
        return fail("edgectl", why, TIMED_OUT)
    except KeyboardInterrupt:
        return fail("edgectl", "interrupted", FAILED)
    except BrokenPipeError:
        drop_output()
        return FAILED
    except OSError as error:
        return fail("edgectl", f"the command failed ({reason(error)}); fix that and try again", FAILED)
    return code


def _code_of(error: EdgedError) -> int:
    if isinstance(error, (ConfigError, BadValue, WrongUsage)):
        return USAGE
    return NO_BROKER if isinstance(error, BrokerError) else FAILED


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings of the config file (if there is one), overridden by the command's options. Raises ConfigError."""
    given: dict[str, Any] = {}
    if arguments.url is not None:
        given = merge(given, {"mqtt": {"url": known_keys()["mqtt.url"]("--url", arguments.url)}})
    if arguments.fleet is not None:
        given = merge(given, {"identity": {"fleet": known_keys()["identity.fleet"]("--fleet", arguments.fleet)}})
    try:
        values = config_file.load(arguments.config, os.environ)
    except config_file.Unreadable as error:
        values = from_environment(os.environ)
        known = merge(values, given)
        if "url" not in known.get("mqtt", {}) or "fleet" not in known.get("identity", {}):
            raise ConfigError(f"{error}, or give the broker with --url and the fleet with --fleet") from None
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
    from edged.ctl.config import push

    if (arguments.file is None) != arguments.remove:
        raise ConfigError("give a FILE to push, or --remove to remove the layer")
    settings, target = _target(arguments)
    return push(settings.mqtt, target, arguments.file, _options(arguments))


def _undo(arguments: argparse.Namespace) -> int:
    from edged.ctl.config import undo

    settings, target = _target(arguments)
    return undo(settings.mqtt, target, _options(arguments))


def _diff(arguments: argparse.Namespace) -> int:
    from edged.ctl.config import diff

    settings, target = _target(arguments)
    return diff(settings.mqtt, target, arguments.file, arguments.json)


def _history(arguments: argparse.Namespace) -> int:
    from edged.ctl.config_history import show_history

    _check_name(arguments, "device")
    settings = settings_of(arguments)
    return show_history(settings.mqtt, settings.identity.fleet, arguments.device, arguments.json)


def _target(arguments: argparse.Namespace) -> tuple[Settings, Target]:
    from edged.ctl.config import Target

    for option in ("group", "device"):
        _check_name(arguments, option)
    settings = settings_of(arguments)
    return settings, Target(settings.identity.fleet, arguments.group, arguments.device)


def _check_name(arguments: argparse.Namespace, option: str) -> None:
    if (name := getattr(arguments, option)) is not None:
        checks.text(pattern=checks.NAME, like="1 to 63 of a-z, 0-9 and -")(f"--{option}", name)


def _options(arguments: argparse.Namespace) -> PushOptions:
    from edged.ctl.config import PushOptions
    from edged.ctl.keys import load

    key = None if arguments.key is None else load(arguments.key)
    default = WATCH_FOR if arguments.watch else 10.0
    wait = default if arguments.wait is None else arguments.wait
    return PushOptions(key, wait, arguments.watch, arguments.json)


def _get(arguments: argparse.Namespace) -> int:
    from edged.ctl.config import get

    settings = settings_of(arguments)
    return get(settings.mqtt, settings.identity.fleet, arguments.json)


def _keys(arguments: argparse.Namespace) -> int:
    from edged.ctl import keys

    folder = arguments.folder or keys.default_folder()
    if arguments.verb == "new":
        return keys.new(arguments.name, folder, arguments.json)
    if arguments.verb == "list":
        return keys.show_all(folder, arguments.json)
    return keys.show_fingerprint(arguments.key, folder, arguments.json)


def _completion(arguments: argparse.Namespace, more: Sequence[AddCommand]) -> int:
    import shtab

    print(shtab.complete(parser(more), shell=arguments.shell))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
