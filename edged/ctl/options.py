"""Options that several commands share: how the broker is reached, the requester, names, seconds."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import Any

from edged.config import checks
from edged.config import file as config_file
from edged.config.environment import from_environment
from edged.config.keys import known_keys
from edged.config.schema import Settings, build, merge
from edged.core.errors import ConfigError
from edged.link.session import default_requester
from edged.wire.topics import REQUESTER

MAX_WAIT = 1_000_000  # seconds; a queue's timeout overflows at 292 years
_CONNECTION = {
    "url": "mqtt.url",
    "username": "mqtt.username",
    "password_file": "mqtt.password_file",
    "ca": "mqtt.ca",
    "cert": "mqtt.cert",
    "tls_key": "mqtt.key",
    "fleet": "identity.fleet",
}
"""Option → the setting that it overrides."""


def add_connection(command: argparse.ArgumentParser, *, signs: bool = False, whole_fleet: bool = False) -> None:
    """Broker and fleet. `signs`: `--key` is the command's own, so the key of the client certificate is `--tls-key`.

    `whole_fleet`: `--fleet` without a name is accepted, too, and means all devices.
    """
    group = command.add_argument_group("broker")
    group.add_argument("--config", type=Path, metavar="FILE", help="read broker and fleet from this file")
    group.add_argument("--url", help="the broker (default: that of the config, or mqtt://127.0.0.1:1883)")
    words: dict[str, Any] = {"nargs": "?", "metavar": "FLEET"} if whole_fleet else {}
    group.add_argument("--fleet", help="the fleet (default: that of the config, or home)", **words)
    group.add_argument("--username", metavar="NAME", help="the user at the broker")
    group.add_argument("--password-file", metavar="FILE", help="its password is the first line of this file")
    group.add_argument("--ca", metavar="FILE", help="certificates that sign the broker's (default: the system's)")
    group.add_argument("--cert", metavar="FILE", help="a client certificate")
    names = ("--tls-key",) if signs else ("--key", "--tls-key")
    group.add_argument(*names, dest="tls_key", metavar="FILE", help="the private key of the client certificate")


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings of the config file (if there is one), overridden by the command's options. Raises ConfigError."""
    given: dict[str, Any] = {}
    for option, setting in _CONNECTION.items():
        value = getattr(arguments, option)
        if value is not None:
            section, _, key = setting.partition(".")
            checked = known_keys()[setting](f"--{option.replace('_', '-')}", value)
            given = merge(given, {section: {key: checked}})
    try:
        values = config_file.load(arguments.config, os.environ)
    except config_file.Unreadable as error:
        values = from_environment(os.environ)
        known = merge(values, given)
        if "url" not in known.get("mqtt", {}) or "fleet" not in known.get("identity", {}):
            raise ConfigError(f"{error}, or give the broker with --url and the fleet with --fleet") from None
    return build(merge(values, given))


def add_requester(command: argparse.ArgumentParser) -> None:
    """Who asks."""
    command.add_argument(
        "--requester", metavar="NAME", help="the requester in the topics (default: your name at the broker or here)"
    )


def requester_of(arguments: argparse.Namespace, settings: Settings) -> str:
    """The requester: as given, else the user at the broker where it fits a topic, else the user's name here."""
    if arguments.requester is None:
        own = settings.mqtt.username or ""
        return own if arguments.username is not None and REQUESTER.match(own) else default_requester()
    checked: str = checks.text(pattern=REQUESTER, like="1 to 64 of A-Z, a-z, 0-9, _ and -")(
        "--requester", arguments.requester
    )
    return checked


def check_name(arguments: argparse.Namespace, option: str) -> None:
    """The name of a device or a group, where it was given. Raises BadValue."""
    if (name := getattr(arguments, option)) is not None:
        checks.text(pattern=checks.NAME, like="1 to 63 of a-z, 0-9 and -")(f"--{option}", name)


def seconds(text: str) -> float:
    """The type of an option that takes seconds. Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= MAX_WAIT:  # also refuses NaN
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds from 0 to {MAX_WAIT}")
    return value
