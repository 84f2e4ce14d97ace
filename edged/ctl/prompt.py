"""`edgectl prompt`: sends one prompt to one device and prints the answer as it arrives."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import msgspec

from edged.command_line import DONE, FAILED
from edged.config.schema import Mqtt
from edged.core.errors import EdgedError
from edged.ctl.answer import Printer, printer_for, show_final, succeeded
from edged.ctl.devices import choose, status_topic
from edged.ctl.exchange import Exchange, new_id, reply_topic
from edged.ctl.interrupts import interrupting
from edged.link.session import Interrupted, Session


class Ask(msgspec.Struct, frozen=True):
    """A prompt and where to send it. `device` None: the only one that is online. `timeout` in seconds."""

    fleet: str
    device: str | None
    requester: str
    body: dict[str, Any]
    timeout: float
    as_json: bool


def ask(settings: Mqtt, wanted: Ask) -> int:
    """Send the prompt and show the answer; returns the exit code. An interrupt cancels it on the device.

    Raises BrokerError, EdgedError, TimedOut.
    """
    prompt_id = new_id()
    topics = (reply_topic(wanted.fleet, wanted.requester, prompt_id), status_topic(wanted.fleet))
    with Session(settings, topics) as session, interrupting(session):
        device, status = choose(session, wanted.fleet, wanted.device)
        printer = printer_for(wanted.body)
        exchange = Exchange(
            session, wanted.fleet, wanted.requester, {device: status}, wanted.body, prompt_id, printer.note
        )
        try:
            final = answer(exchange, None if wanted.as_json else printer, wanted.timeout)
        except Interrupted:
            return _cancel(exchange, printer, wanted.as_json)
        except BaseException:  # nobody waits for the answer any more
            printer.end_line()
            with suppress(EdgedError):
                exchange.cancel()
            raise
    _show(final, printer, wanted.as_json)
    return DONE if succeeded(final) else FAILED


def answer(exchange: Exchange, printer: Printer | None, timeout: float) -> dict[str, Any]:
    """Send the prompt to the exchange's one device and print its chunks; returns the final.

    Raises BrokerError, TimedOut, Interrupted.
    """
    exchange.send()
    for _, document in exchange.replies(timeout):
        if document.get("final"):
            return document
        if printer is not None and "text" in document:
            printer.chunk(document["at"], document["text"])
    raise AssertionError("replies ends with a final or raises")


def cancelled(exchange: Exchange) -> dict[str, Any] | None:
    """Cancel the prompt; the final of the exchange's one device, or None if it sends none in time.

    Raises BrokerError, Interrupted.
    """
    for _, document in exchange.cancelled():
        if document.get("final"):
            return document
    return None


def _cancel(exchange: Exchange, printer: Printer, as_json: bool) -> int:
    final = cancelled(exchange)
    if final is None:
        printer.note("edgectl: interrupted; the device has not confirmed the cancel yet")
    else:
        _show(final, printer, as_json)
    return FAILED


def _show(final: dict[str, Any], printer: Printer, as_json: bool) -> None:
    if as_json:
        print(json.dumps(final, ensure_ascii=False))
    else:
        show_final(final, printer)
