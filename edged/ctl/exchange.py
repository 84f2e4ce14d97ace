"""One prompt to one or several devices: sent, sent again until it is accepted, answered, cancelled."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from edged.ctl.devices import unseen
from edged.link.events import Arrived
from edged.link.session import Session, TimedOut
from edged.wire import strict_json
from edged.wire.topics import Topics

RESEND_EVERY = 5.0
CANCEL_WITHIN = 3.0
"""Seconds in which a device that computes sends the final of a cancelled prompt."""

Reply = tuple[str, dict[str, Any]]
"""A device, and a notice, chunk or final from it."""


def reply_topic(fleet: str, requester: str, prompt_id: str = "+") -> str:
    """The replies of every device to one prompt, or to every prompt, of a requester."""
    return f"edged/v1/{fleet}/reply/{requester}/+/{prompt_id}"


def new_id() -> str:
    """The id of a prompt."""
    return f"edgectl-{secrets.token_hex(8)}"


class Exchange:
    """See the module. The session is subscribed to the replies and to the status of the devices.

    `devices` and `status`: device → its last status word, "" where none came. `open` have sent no final yet.
    `note` is called with what a person who waits should know. `kind`: `prompt`, or `command` where the body is one.
    """

    def __init__(
        self,
        session: Session,
        fleet: str,
        requester: str,
        devices: Mapping[str, str],
        body: dict[str, Any],
        prompt_id: str,
        note: Callable[[str], None] = lambda _: None,
        kind: str = "prompt",
    ) -> None:
        self._session = session
        self._fleet = fleet
        self._topics = {device: Topics(fleet, device) for device in devices}
        self._requester = requester
        self._id = prompt_id
        self._payload = strict_json.dumps({"id": prompt_id, **body})
        self._kind = kind
        self._silent = set(devices)
        self._note = note
        self.open = set(devices)
        self.status = dict(devices)

    def send(self) -> None:
        """Send the prompt to every device that has not replied yet. Raises BrokerError."""
        for device in sorted(self._silent):
            self._session.publish(f"{self._topics[device].own}/{self._kind}/{self._requester}", self._payload)

    def replies(self, seconds: float) -> Iterator[Reply]:
        """The replies as they come, until every device has sent its final.

        Raises TimedOut after `seconds`, BrokerError, Interrupted. May be called again after any of them.
        """
        until = time.monotonic() + seconds
        resend = time.monotonic() + RESEND_EVERY
        while self.open:
            now = time.monotonic()
            if now >= until:
                raise TimedOut(self._why_silent())
            if self._silent and now >= resend:
                self.send()
                resend = now + RESEND_EVERY
            try:
                message = next(self._session.messages(min(until, resend) - now if self._silent else until - now))
            except TimedOut:
                continue
            if (reply := self._process(message)) is not None:
                yield reply

    def cancel(self) -> None:
        """Cancel the prompt at every device that has sent no final. Raises BrokerError."""
        for device in sorted(self.open):
            payload = strict_json.dumps({"id": self._id})
            self._session.publish(f"{self._topics[device].own}/cancel/{self._requester}", payload)

    def cancelled(self) -> Iterator[Reply]:
        """Cancel, and give the replies that come in the time that this takes. Raises BrokerError, Interrupted."""
        self.cancel()
        self._silent.clear()  # nothing is sent again
        try:
            yield from self.replies(CANCEL_WITHIN)
        except TimedOut:
            return

    def _process(self, message: Arrived) -> Reply | None:
        for device, topics in self._topics.items():
            if message.topic == topics.status:
                self._store_status(device, message.payload[:16].decode("ascii", "replace"))
                return None
            if message.topic == topics.reply(self._requester, self._id):
                document = reply_of(message.payload, self._id)
                if document is None:
                    return None
                self._silent.discard(device)
                if document.get("final"):
                    if device not in self.open:
                        return None  # the same final again
                    self.open.discard(device)
                return device, document
        return None

    def _store_status(self, device: str, status: str) -> None:
        if status == "offline" != self.status.get(device) and device in self.open:
            then = "the prompt waits for it at the broker" if device in self._silent else "it answers when it is back"
            self._note(f"{device} is offline; {then} (Ctrl-C ends the wait)")
        self.status[device] = status

    def _why_silent(self) -> str:
        """Why devices did not answer in time, as far as their status explains it; else empty."""
        if self._silent and not any(self.status.values()):
            return f"no answer came in time; {unseen(self._fleet)}; check --fleet and --device"
        away = sorted(device for device in self.open if self.status.get(device) == "offline")
        if not away:
            return ""
        are = "is" if len(away) == 1 else "are"
        return f"{', '.join(away)} {are} offline now; ask again when edgectl status shows online"


def reply_of(payload: bytes, prompt_id: str) -> dict[str, Any] | None:
    """A reply to our prompt; None for anything else that was published there."""
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or document.get("id") != prompt_id:
        return None
    has_text = isinstance(document.get("text"), str)
    if document.get("final"):
        return document if has_text and isinstance(document.get("reason"), str) else None
    return document if not has_text or isinstance(document.get("at"), int) else None
