"""`edgectl forget`: removes what the broker retains about a device that does not come back."""

from __future__ import annotations

import json

from edged.command_line import DONE, FAILED, note
from edged.config.schema import Mqtt
from edged.core.errors import EdgedError
from edged.ctl.devices import RETAINED_WITHIN
from edged.link.session import Session, TimedOut
from edged.wire.topics import Topics


def forget(settings: Mqtt, fleet: str, device: str, *, confirmed: bool, as_json: bool) -> int:
    """Remove every retained message below the device's topic, or print them; returns the exit code.

    Raises BrokerError; EdgedError where there is none, or the device is connected and would publish them again.
    """
    topics = Topics(fleet, device)
    with Session(settings, (f"{topics.own}/#",)) as session:
        retained = _retained(session)
        if not retained:
            raise EdgedError(f"the broker retains nothing about a device {device} of the fleet {fleet}")
        if retained.get(topics.status) not in {None, b"offline"}:
            raise EdgedError(f"the device {device} is connected; stop edged there first, or it publishes them again")
        if confirmed:
            for topic in sorted(retained):
                session.publish(topic, b"", retain=True)
    if as_json:
        print(json.dumps({"device": device, "topics": sorted(retained), "removed": confirmed}))
    else:
        for topic in sorted(retained):
            print(topic)
    if not confirmed:
        note("edgectl: nothing was removed; give --yes to remove these retained messages")
        return FAILED
    if not as_json:
        note(f"edgectl: removed {len(retained)} retained messages")
    return DONE


def _retained(session: Session) -> dict[str, bytes]:
    """Topic → payload of what the broker retains there."""
    found: dict[str, bytes] = {}
    try:
        for message in session.messages(RETAINED_WITHIN):
            if message.payload:
                found[message.topic] = message.payload
            else:
                found.pop(message.topic, None)
    except TimedOut:
        pass
    return found
