"""`edgectl prompt --pool`: one prompt to any member of a pool, sent again until a member answers it."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

import msgspec

from edged.command_line import DONE, FAILED
from edged.config.schema import Mqtt
from edged.core.errors import EdgedError
from edged.ctl.answer import Printer, printer_for, show_final, succeeded
from edged.ctl.devices import status_topic
from edged.ctl.exchange import RESEND_EVERY, new_id, reply_of, reply_topic
from edged.ctl.interrupts import interrupting
from edged.link.session import Interrupted, Session, TimedOut
from edged.wire import strict_json
from edged.wire.topics import Topics

_AGAIN = frozenset({"busy", "unavailable"})
"""Reasons of a member's final after which another member may answer."""
_SOON = 1.0  # seconds until a prompt is sent again that a member refused


class AskPool(msgspec.Struct, frozen=True):
    """A prompt and the pool that it is for. `timeout` in seconds."""

    fleet: str
    pool: str
    requester: str
    body: dict[str, Any]
    timeout: float
    as_json: bool


def ask_pool(settings: Mqtt, wanted: AskPool) -> int:
    """Send the prompt and show the answer; returns the exit code. An interrupt cancels it at the member that has it.

    Raises BrokerError, EdgedError, TimedOut.
    """
    prompt_id = new_id()
    topics = (reply_topic(wanted.fleet, wanted.requester, prompt_id), status_topic(wanted.fleet))
    printer = printer_for(wanted.body)
    with Session(settings, topics) as session, interrupting(session):
        exchange = PoolExchange(session, wanted, prompt_id)
        try:
            final = exchange.answer(None if wanted.as_json else printer)
        except Interrupted:
            exchange.cancel()
            printer.note("edgectl: interrupted; the member that has the prompt was asked to cancel it")
            return FAILED
        except BaseException:  # nobody waits for the answer any more
            printer.end_line()
            with suppress(EdgedError):
                exchange.cancel()
            raise
    if wanted.as_json:
        print(json.dumps(final, ensure_ascii=False))
    else:
        show_final(final, printer)
    return DONE if succeeded(final) else FAILED


class PoolExchange:
    """See the module. A member that accepted the prompt and went offline is replaced by another."""

    def __init__(self, session: Session, wanted: AskPool, prompt_id: str) -> None:
        self._session = session
        self._wanted = wanted
        self._id = prompt_id
        self._payload = strict_json.dumps({"id": prompt_id, **wanted.body})
        self._member: str | None = None  # whose reply came last
        self._seen: set[str] = set()

    def answer(self, printer: Printer | None) -> dict[str, Any]:
        """The final of the first member that answers. Raises BrokerError, TimedOut, Interrupted."""
        until = time.monotonic() + self._wanted.timeout
        send_at = time.monotonic()
        while (now := time.monotonic()) < until:
            if self._member is None and now >= send_at:
                self._send()
                send_at = now + RESEND_EVERY
            try:
                message = next(self._session.messages(min(until, send_at if self._member is None else until) - now))
            except TimedOut:
                continue
            parts = message.topic.split("/")
            if parts[3] == "device":
                if parts[4] == self._member and message.payload == b"offline":
                    self._member, send_at = None, time.monotonic()
                continue
            document = reply_of(message.payload, self._id)
            if document is None:
                continue
            if not document.get("final"):
                self._show(parts[5], document, printer)
            elif document["reason"] in _AGAIN:
                self._member, send_at = None, time.monotonic() + _SOON
            else:
                return document
        raise TimedOut(self._why_silent())

    def cancel(self) -> None:
        """Cancel the prompt at every member that replied. Raises BrokerError."""
        for device in sorted(self._seen):
            topic = f"{Topics(self._wanted.fleet, device).own}/cancel/{self._wanted.requester}"
            self._session.publish(topic, strict_json.dumps({"id": self._id}))

    def _send(self) -> None:
        prefix = Topics(self._wanted.fleet, "any").pool_prompts(self._wanted.pool)
        self._session.publish(prefix + self._wanted.requester, self._payload)

    def _show(self, device: str, document: dict[str, Any], printer: Printer | None) -> None:
        """Print a chunk of the member that has the prompt; those of another that got a copy are left out."""
        self._seen.add(device)
        if self._member is None:
            self._member = device
        if device == self._member and printer is not None and "text" in document:
            printer.chunk(document["at"], document["text"])

    def _why_silent(self) -> str:
        if self._seen:
            return ""
        pool = self._wanted.pool
        return f"no member of the pool {pool} answered in time; check identity.pools of the devices, and their status"
