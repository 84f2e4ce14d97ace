"""Who may publish and read which topics of a fleet at the broker. Nothing else is allowed to anybody.

The topics are those of docs/reference/mqtt.md. A name in two roles has the rights of both; a device has no other role,
so that no person can publish as a device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Literal, NamedTuple

import msgspec

from edged.core.errors import BadValue
from edged.wire import home_assistant, rollout_schedule
from edged.wire.topics import Topics

ANY_USER: Final = "%u"
"""In a topic of a block without a user: the name of whoever is connected."""
ANY: Final = "+"
_OBSERVED: Final = ("status", "health", "telemetry", "event", "config", "config/reported", "config/history")
_CLEARED: Final = ("status", "health", "config/reported", "config/history")
"""Retained topics of a device, which an operator clears when the device is removed."""


class Right(NamedTuple):
    """To read (subscribe to) or to write (publish to) what a topic filter matches."""

    access: Literal["read", "write"]
    topic: str


class Block(NamedTuple):
    """The rights of one user, without duplicates. `user` None: of each user, whose name replaces `ANY_USER`."""

    title: str
    user: str | None
    rights: tuple[Right, ...]


class HomeAssistant(msgspec.Struct, frozen=True):
    """The user of Home Assistant at the broker, and its discovery prefix."""

    user: str
    prefix: str


class Roster(msgspec.Struct, frozen=True):
    """Everybody at the broker. `devices`: the groups of each; `requesters`: the devices that each may ask, empty: all.

    `pools`: the devices of each. `patterns`: devices and requesters are recognized by their user names alone.
    `every_status`: a requester sees the state of all devices. A broker that checks subscriptions, not only what it
    delivers, refuses `edgectl`'s to the status of every device without it.
    """

    fleet: str
    devices: Mapping[str, tuple[str, ...]] = {}
    requesters: Mapping[str, tuple[str, ...]] = {}
    operators: tuple[str, ...] = ()
    consoles: tuple[str, ...] = ()
    pools: Mapping[str, tuple[str, ...]] = {}
    home_assistant: HomeAssistant | None = None
    patterns: bool = False
    every_status: bool = False


def blocks(roster: Roster) -> list[Block]:
    """The rights of everybody, a block for each user. Raises BadValue where names collide or are not known."""
    _check_names(roster)
    made: list[Block] = []
    if roster.patterns:
        made.append(_block("a device: the user name is its name", None, _device(roster, ANY_USER, (ANY,))))
        made.append(_block("a requester: the user name is its name", None, _requester(roster, ANY_USER, ())))
    for name, groups in roster.devices.items():
        rights = [] if roster.patterns else [*_device(roster, name, groups)]
        rights += _discovered(roster, name)
        made.append(_block(f"device {name}", name, rights))
    made += _people(roster)
    return made


def _people(roster: Roster) -> Iterator[Block]:
    """Everybody who is no device."""
    names = dict.fromkeys((*roster.requesters, *roster.operators, *roster.consoles))
    integration = roster.home_assistant
    if integration is not None:
        names[integration.user] = None
    for name in names:
        roles: list[str] = []
        rights: list[Right] = []
        if name in roster.requesters:
            roles.append("requester")
            rights += _requester(roster, name, roster.requesters[name])
        if name in roster.operators:
            roles.append("operator")
            rights += [*_observer(roster, name), *_operator(roster)]
        if name in roster.consoles:
            roles.append("console")
            rights += _observer(roster, name)
        if integration is not None and name == integration.user:
            roles.append("Home Assistant")
            rights += _integration(roster, integration.prefix)
        yield _block(f"{' and '.join(roles)} {name}", name, rights)


def _block(title: str, user: str | None, rights: Iterable[Right]) -> Block:
    return Block(title, user, tuple(dict.fromkeys(rights)))


def _device(roster: Roster, name: str, groups: tuple[str, ...]) -> Iterator[Right]:
    topics = Topics(roster.fleet, name, groups)
    for topic in (*topics.layers, topics.prompts, topics.cancels, topics.commands, topics.status):
        yield Right("read", topic)
    for pool, members in roster.pools.items():
        if name in members:
            yield Right("read", f"{topics.root}/pool/{pool}/prompt/{ANY}")
    for what in ("offer", "sending", f"chunk/{ANY}"):
        yield Right("read", topics.model(ANY, what))
    own = (topics.status, topics.health, topics.telemetry, topics.event, topics.reported, topics.history)
    for topic in (*own, topics.model(ANY, f"missing/{name}"), topics.model(ANY, f"state/{name}")):
        yield Right("write", topic)
    yield Right("write", f"{topics.replies(ANY)}{name}/#")  # below: a Response Topic may have more levels


def _discovered(roster: Roster, name: str) -> Iterator[Right]:
    """What a device needs to be shown in Home Assistant."""
    if roster.home_assistant is not None:
        prefix = roster.home_assistant.prefix
        yield Right("read", home_assistant.birth_topic(prefix))
        yield Right("write", f"{prefix}/{ANY}/{home_assistant.node(Topics(roster.fleet, name))}/{ANY}/config")


def _requester(roster: Roster, name: str, devices: tuple[str, ...]) -> Iterator[Right]:
    for device in devices or (ANY,):
        topics = Topics(roster.fleet, device)
        yield Right("write", f"{topics.own}/prompt/{name}")
        yield Right("write", f"{topics.own}/cancel/{name}")
        seen = Topics(roster.fleet, ANY) if roster.every_status else topics
        yield Right("read", seen.status)
        yield Right("read", seen.health)  # of which group it is, and which model it has
    topics = Topics(roster.fleet, ANY)
    for pool, members in roster.pools.items():
        if not devices or set(members) <= set(devices):
            yield Right("write", f"{topics.root}/pool/{pool}/prompt/{name}")
    yield Right("read", f"{topics.replies(name)}#")


def _observer(roster: Roster, name: str) -> Iterator[Right]:
    """Asks and commands every device, and reads what all of them publish but answers to others."""
    topics = Topics(roster.fleet, ANY, (ANY,))
    yield from _requester(roster, name, ())
    yield Right("write", f"{topics.own}/command/{name}")
    for what in _OBSERVED:
        yield Right("read", f"{topics.own}/{what}")
    for topic in topics.layers:
        yield Right("read", topic)


def _operator(roster: Roster) -> Iterator[Right]:
    """Pushes layers, rolls them out, sends models, and removes devices."""
    topics = Topics(roster.fleet, ANY, (ANY,))
    for topic in (*topics.layers, *(f"{topics.own}/{what}" for what in _CLEARED)):
        yield Right("write", topic)
    yield Right("read", rollout_schedule.topic(roster.fleet, ANY))
    yield Right("write", rollout_schedule.topic(roster.fleet, ANY))
    for what in ("offer", "sending", f"chunk/{ANY}"):
        yield Right("write", topics.model(ANY, what))
    for what in ("missing", "state"):
        yield Right("read", topics.model(ANY, f"{what}/{ANY}"))


def _integration(roster: Roster, prefix: str) -> Iterator[Right]:
    topics = Topics(roster.fleet, ANY)
    yield from _requester(roster, home_assistant.REQUESTER, ())
    yield Right("read", topics.telemetry)
    yield Right("read", f"{prefix}/#")
    yield Right("write", f"{prefix}/#")


def _check_names(roster: Roster) -> None:
    people = {*roster.requesters, *roster.operators, *roster.consoles}
    integration = roster.home_assistant
    if integration is not None:
        if home_assistant.REQUESTER in {*people, *roster.devices} - {integration.user}:
            raise BadValue("", f"{home_assistant.REQUESTER} is the requester of Home Assistant; choose another name")
        people.add(integration.user)
    for name in people & roster.devices.keys():
        raise BadValue("", f"{name} is a device and has another role, too; give each its own user")
    named = (*((f"requester {name}", devices) for name, devices in roster.requesters.items()),)
    for who, devices in (*named, *((f"pool {name}", members) for name, members in roster.pools.items())):
        for device in devices:
            if device not in roster.devices:
                raise BadValue("", f"the {who} names the device {device}, which is not in the list of devices")
