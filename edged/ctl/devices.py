"""Which devices of a fleet are there, and which of them a command is about."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping

import msgspec

from edged.command_line import note
from edged.config import checks
from edged.core.errors import EdgedError
from edged.link.events import Arrived
from edged.link.session import Session, TimedOut

RETAINED_WITHIN = 0.7  # seconds of silence after which the broker has sent everything that it retains
_NAMED = 8  # names in a sentence at most
_BEST = ("online", "starting", "draining", "safe")
"""Status words of devices that are connected, the most useful first."""


class Known(msgspec.Struct):
    """A device as its retained topics show it. `model` as in its health document; empty: not known."""

    status: str = ""
    groups: frozenset[str] = frozenset()
    model: Mapping[str, object] = {}

    @property
    def connected(self) -> bool:
        """Whether it receives prompts now."""
        return self.status not in {"", "offline"}


def status_topic(fleet: str) -> str:
    """The status of every device."""
    return f"edged/v1/{fleet}/device/+/status"


def group_topics(fleet: str) -> tuple[str, str]:
    """The topics that show a device's groups and its model."""
    return f"edged/v1/{fleet}/device/+/health", f"edged/v1/{fleet}/device/+/config/reported"


def known_devices(session: Session, enough: Callable[[dict[str, Known]], bool] = lambda _: False) -> dict[str, Known]:
    """What the broker retains about the devices, as far as the session is subscribed; ends early with `enough`."""
    devices: dict[str, Known] = {}
    try:
        for message in session.messages(RETAINED_WITHIN):
            store(devices, message)
            if enough(devices):
                break
    except TimedOut:
        pass
    return {name: known for name, known in devices.items() if known.status}


def store(devices: dict[str, Known], message: Arrived) -> str | None:
    """Take what a message says about a device; returns the device, None for any other message."""
    parts = message.topic.split("/")
    if len(parts) < 6 or parts[3] != "device" or not checks.NAME.match(parts[4]):
        return None
    name, what = parts[4], "/".join(parts[5:])
    if what == "status":
        if message.payload:
            devices.setdefault(name, Known()).status = message.payload[:16].decode("ascii", "replace")
        else:
            devices.pop(name, None)  # it was removed
    elif what in {"health", "config/reported"} and message.payload:
        _store_document(devices.setdefault(name, Known()), message.payload)
    else:
        return None
    return name


def _store_document(known: Known, payload: bytes) -> None:
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError):
        return
    if not isinstance(document, dict):
        return
    if isinstance(groups := document.get("groups"), list):
        known.groups |= _names(groups)
    if isinstance(layers := document.get("in_force"), dict):  # of versions whose health has no groups
        known.groups |= _names(name[6:] for name in layers if name.startswith("group:"))
    if isinstance(model := document.get("model"), dict):
        known.model = model


def _names(given: Iterable[object]) -> frozenset[str]:
    return frozenset(name for name in given if isinstance(name, str) and checks.NAME.match(name))


def choose(session: Session, fleet: str, wanted: str | None) -> tuple[str, str]:
    """The device to use, and its status: `wanted`, else the only one that is online.

    Where no device at all can be seen, `wanted` is used, with a note and the status "": a requester may have no right
    to read it. Raises EdgedError with the names that exist.
    """
    if wanted is not None:
        devices = known_devices(session, lambda found: wanted in found and found[wanted].connected)
        if not devices:
            note(f"edgectl: {unseen(fleet)}; waiting for an answer of {wanted}")
            return wanted, ""
        _check_usable(devices, fleet, wanted)
        return wanted, devices[wanted].status
    devices = known_devices(session)
    for status in _BEST:
        found = sorted(name for name, known in devices.items() if known.status == status)
        if len(found) == 1:
            return found[0], status
        if found:
            raise EdgedError(f"the fleet has several devices ({_listed(found)}); name one with --device")
    raise EdgedError(_none_connected(devices, fleet))


def choose_all(session: Session, fleet: str, group: str | None) -> list[str]:
    """Every device that is connected, of this group or of the fleet. Raises EdgedError where there is none."""
    devices = known_devices(session)
    if group is not None:
        if not any(group in known.groups for known in devices.values()):
            groups = sorted({name for known in devices.values() for name in known.groups})
            have = f"the groups are: {_listed(groups)}" if groups else "no device has a group"
            raise EdgedError(f"no device of the fleet {fleet} is in the group {group}; {have}")
        devices = {name: known for name, known in devices.items() if group in known.groups}
    found = sorted(name for name, known in devices.items() if known.connected)
    if not found:
        raise EdgedError(_none_connected(devices, fleet))
    return found


def _check_usable(devices: Mapping[str, Known], fleet: str, wanted: str) -> None:
    known = devices.get(wanted)
    if known is not None and known.connected:
        return
    others = sorted(name for name, other in devices.items() if other.connected and name != wanted)
    if known is not None:
        there = f"connected are: {_listed(others)}" if others else "no other device is connected"
        raise EdgedError(f"the device {wanted} is offline; {there}")
    away = sorted(name for name, other in devices.items() if not other.connected)
    there = "; ".join(
        f"{word}: {_listed(names)}" for word, names in (("connected are", others), ("offline are", away)) if names
    )
    raise EdgedError(f"no device {wanted} of the fleet {fleet} is known at this broker; {there}")


def unseen(fleet: str) -> str:
    """That no status came, and why that may be."""
    return f"no device of the fleet {fleet} is known at this broker, or its user may not read their status"


def _none_connected(devices: Mapping[str, Known], fleet: str) -> str:
    if not devices:
        return f"no device of the fleet {fleet} is known at the broker; check --url and --fleet, and start edged"
    return f"no device of the fleet {fleet} is online; offline are: {_listed(sorted(devices))}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
