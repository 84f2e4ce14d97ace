"""The command `edgectl acl`: prints the broker's access list for a fleet."""

from __future__ import annotations

import argparse
from typing import Any

from edged.command_line import DONE, WrongUsage
from edged.config import checks
from edged.config.keys import known_keys
from edged.config.schema import Mqtt
from edged.core.errors import EdgedError
from edged.ctl.acl_formats import FORMATS
from edged.ctl.devices import group_topics, known_devices, status_topic
from edged.ctl.options import add_connection, settings_of
from edged.ctl.rights import ANY_USER, HomeAssistant, Roster, blocks
from edged.link.session import Session
from edged.wire.topics import REQUESTER

_name = checks.text(pattern=checks.NAME, like="1 to 63 of a-z, 0-9 and -")
_user = checks.text(pattern=REQUESTER, like="1 to 64 of A-Z, a-z, 0-9, _ and -")
_Listed = dict[str, tuple[str, ...]]


def add(commands: Any) -> None:
    """Add it."""
    acl = commands.add_parser("acl", help="print the broker's access list for a fleet: who may publish and read what")
    names = acl.add_argument_group("who")
    for option, shown, what in (
        ("--device", "DEVICE[=GROUP,…]", "a device and its groups; its user name is its name"),
        ("--requester", "NAME[=DEVICE,…]", "who asks these devices (default: all)"),
        ("--operator", "NAME", "who pushes layers and models, and asks all devices"),
        ("--console", "NAME", "who reads what devices publish and asks all devices, as edgectl serve does"),
        ("--pool", "POOL=DEVICE,…", "a pool and its devices"),
    ):
        names.add_argument(option, action="append", default=[], metavar=shown, help=f"{what}; may be repeated")
    names.add_argument(
        "--from-broker", action="store_true", help="also the devices and groups that the broker's retained topics show"
    )
    names.add_argument("--home-assistant", metavar="NAME", help="the user of Home Assistant")
    names.add_argument(
        "--home-assistant-prefix", metavar="PREFIX", help="its discovery prefix (default: homeassistant)"
    )
    names.add_argument(
        "--patterns",
        action="store_true",
        help="each user may be the device, and the requester, of its name: a new one needs only an account",
    )
    acl.add_argument(
        "--format", choices=tuple(FORMATS), default="mosquitto", help="for which broker (default: mosquitto)"
    )
    acl.set_defaults(run=_acl)
    add_connection(acl)


def _acl(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    fleet = settings.identity.fleet
    _check_options(arguments)
    devices = _listed("--device", arguments.device, _name)
    if arguments.from_broker:
        devices = {**_known(settings.mqtt, fleet), **devices}
    roster = Roster(
        fleet,
        dict(sorted(devices.items())),
        _listed("--requester", arguments.requester, _user),
        tuple(_user("--operator", name) for name in arguments.operator),
        tuple(_user("--console", name) for name in arguments.console),
        _listed("--pool", arguments.pool, _name),
        _home_assistant(arguments),
        arguments.patterns,
        every_status=arguments.format == "emqx",
    )
    print(FORMATS[arguments.format](blocks(roster), _head(roster)), end="")
    return DONE


def _check_options(arguments: argparse.Namespace) -> None:
    """Refuse what would have no effect. Raises WrongUsage."""
    named = arguments.device or arguments.from_broker
    if arguments.home_assistant_prefix is not None and arguments.home_assistant is None:
        raise WrongUsage("--home-assistant-prefix needs --home-assistant with the user of Home Assistant")
    if not arguments.patterns:
        if not named:
            raise WrongUsage("name the devices with --device or --from-broker, or allow any name with --patterns")
        return
    if arguments.requester or arguments.pool:
        raise WrongUsage("--patterns is for all requesters alike; leave out --requester and --pool, or --patterns")
    if arguments.home_assistant is not None and not named:
        raise WrongUsage("--home-assistant needs the names of the devices, with --device or --from-broker")
    if arguments.home_assistant is None and named:
        raise WrongUsage("with --patterns devices are named only for --home-assistant; leave them out")


def _listed(option: str, given: list[str], check: checks.Check) -> _Listed:
    """`NAME` or `NAME=A,B`, each name once. Raises BadValue, WrongUsage."""
    found: _Listed = {}
    for text in given:
        name, equals, rest = text.partition("=")
        if check(option, name) in found:
            raise WrongUsage(f"{option}: {name} is named twice; give it once, with everything after its =")
        if option == "--pool" and not equals:
            raise WrongUsage(f"{option}: {name} has no devices; give them as {name}=DEVICE,DEVICE")
        found[name] = tuple(_name(option, part) for part in rest.split(",")) if equals else ()
    return found


def _known(settings: Mqtt, fleet: str) -> _Listed:
    """The devices that the broker's retained topics show, with their groups. Raises BrokerError, EdgedError."""
    with Session(settings, (status_topic(fleet), *group_topics(fleet))) as session:
        devices = known_devices(session)
    if not devices:
        raise EdgedError(f"no device of the fleet {fleet} is known at the broker; name the devices with --device")
    return {name: tuple(sorted(known.groups)) for name, known in devices.items()}


def _home_assistant(arguments: argparse.Namespace) -> HomeAssistant | None:
    if arguments.home_assistant is None:
        return None
    prefix = arguments.home_assistant_prefix or "homeassistant"
    check = known_keys()["integrations.home_assistant.prefix"]
    return HomeAssistant(_user("--home-assistant", arguments.home_assistant), check("--home-assistant-prefix", prefix))


def _head(roster: Roster) -> list[str]:
    made = f"Access list of the fleet {roster.fleet}, made by edgectl acl. What no line allows is denied."
    if not roster.patterns:
        return [made]
    return [made, f"{ANY_USER} is the user name. No requester may have the name of a device."]
