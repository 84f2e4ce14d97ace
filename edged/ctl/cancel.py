"""`edgectl cancel`: ends prompts of a requester that wait or run, and shows which have ended."""

from __future__ import annotations

import json
import time
from typing import Any

from edged.command_line import DONE, FAILED
from edged.config.schema import Mqtt
from edged.core.errors import EdgedError
from edged.ctl.answer import summary
from edged.ctl.devices import choose_all, known_devices, status_topic
from edged.ctl.exchange import reply_topic
from edged.link.session import Session, TimedOut
from edged.wire import strict_json

QUIET = 0.7  # seconds without another final after which no more is expected


def cancel(
    settings: Mqtt, fleet: str, device: str | None, requester: str, prompt_id: str | None, wait: float, as_json: bool
) -> int:
    """Cancel this prompt (None: all of the requester), on this device or on all; returns the exit code.

    Raises BrokerError, EdgedError.
    """
    with Session(settings, (reply_topic(fleet, requester, prompt_id or "+"), status_topic(fleet))) as session:
        devices = [_known(session, fleet, device)] if device is not None else choose_all(session, fleet, None)
        payload = strict_json.dumps({"all": True} if prompt_id is None else {"id": prompt_id})
        for name in devices:
            session.publish(f"edged/v1/{fleet}/device/{name}/cancel/{requester}", payload)
        ended = _finals(session, wait, only_one=prompt_id is not None)
    if as_json:
        print(json.dumps({"devices": devices, "cancelled": ended}, ensure_ascii=False))
    else:
        _show(devices, requester, ended)
    return DONE if ended or prompt_id is None else FAILED


def _known(session: Session, fleet: str, device: str) -> str:
    """A device may be offline: the cancel then waits at the broker behind the prompts that wait there."""
    if device not in known_devices(session, lambda found: device in found):
        raise EdgedError(f"no device {device} of the fleet {fleet} is known at this broker; see edgectl status")
    return device


def _finals(session: Session, wait: float, *, only_one: bool) -> list[dict[str, Any]]:
    """The finals of prompts that were cancelled, which come in the time."""
    ended: dict[tuple[str, str], dict[str, Any]] = {}
    until = time.monotonic() + wait
    while (left := until - time.monotonic()) > 0 and not (only_one and ended):
        try:
            message = next(session.messages(min(left, QUIET) if ended else left))
        except TimedOut:
            break
        parts = message.topic.split("/")
        if parts[3] != "reply":
            continue
        try:
            document = json.loads(message.payload)
        except (ValueError, RecursionError):
            continue
        if isinstance(document, dict) and document.get("final") and document.get("reason") == "cancelled":
            ended[parts[5], parts[6]] = {"device": parts[5], "id": parts[6], **document}
    return list(ended.values())


def _show(devices: list[str], requester: str, ended: list[dict[str, Any]]) -> None:
    for final in ended:
        print(f"{final['device']}: {final['id']} {summary(final)}")
    if not ended:
        print(f"no prompt of {requester} ended on {', '.join(devices)}; it may have no open prompt there")
