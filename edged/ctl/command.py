"""`edgectl command`: sends one command to one device and shows its answer."""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Any

import msgspec

from edged.command_line import DONE, FAILED, note
from edged.config.schema import Mqtt
from edged.core.errors import EdgedError
from edged.ctl.answer import error_of, plain
from edged.ctl.devices import choose, status_topic
from edged.ctl.exchange import Exchange, new_id, reply_topic
from edged.link.session import Session
from edged.wire.commands import CommandName


class Order(msgspec.Struct, frozen=True):
    """A command and where to send it. `device` None: the only one that is online. `timeout` in seconds.

    `output`: the file of the archive; None: one named after the device in the current folder.
    """

    fleet: str
    device: str | None
    requester: str
    name: CommandName
    timeout: float
    output: Path | None
    as_json: bool


def send(settings: Mqtt, order: Order) -> int:
    """Send the command and show the answer; returns the exit code. Raises BrokerError, EdgedError, TimedOut."""
    command_id = new_id()
    topics = (reply_topic(order.fleet, order.requester, command_id), status_topic(order.fleet))
    with Session(settings, topics) as session:
        device, status = choose(session, order.fleet, order.device)
        body = {"command": order.name}
        exchange = Exchange(
            session, order.fleet, order.requester, {device: status}, body, command_id, note, kind="command"
        )
        exchange.send()
        final = next(document for _, document in exchange.replies(order.timeout) if document.get("final"))
    if order.as_json:
        print(json.dumps(final, ensure_ascii=False))
    elif "error" in final:
        note(f"edgectl: {error_of(final)}")
    else:
        print(f"{device}: {plain(final['text'])}")
    if order.output is not None or not order.as_json:
        _save(final, order.output or Path(f"{device}-diagnostics.tar.gz"))
    return FAILED if "error" in final else DONE


def _save(final: dict[str, Any], path: Path) -> None:
    """Write the archive of a final that has one to a new file. Raises EdgedError."""
    if not isinstance(archive := final.get("archive"), str):
        return
    try:
        packed = base64.b64decode(archive, validate=True)
        with path.open("xb") as out:
            out.write(packed)
    except binascii.Error:
        raise EdgedError("the archive that the device sent is damaged; send the command again") from None
    except FileExistsError:
        raise EdgedError(f"{path} exists; name another file with --output") from None
    note(f"edgectl: written to {path}")
