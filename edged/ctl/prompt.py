"""`edgectl prompt`: sends one prompt to one device and prints the answer as it arrives."""

from __future__ import annotations

import json
import secrets
import sys
import time
from typing import Any, TextIO

import msgspec

from edged.config.schema import Mqtt
from edged.core.errors import EdgedError
from edged.link.session import Session, TimedOut
from edged.wire import strict_json
from edged.wire.topics import Topics

_RESEND_EVERY = 5.0


class Ask(msgspec.Struct, frozen=True):
    """A prompt and where to send it. `device` None: the only one of the fleet. `timeout` in seconds."""

    fleet: str
    device: str | None
    requester: str
    body: dict[str, Any]
    timeout: float
    as_json: bool


class Printer:
    """Prints an answer as it grows; a chunk with `at` 0 after others starts again on a new line."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._shown = 0
        self._text = ""

    def chunk(self, at: int, text: str) -> None:
        """Print what is new. After a gap nothing is printed until the final, which has the whole text."""
        if at > len(self._text):
            return
        if at == 0 and self._shown and not text.startswith(self._text):
            self._out.write("\n")
            self._shown = 0
        self._text = self._text[:at] + text
        if at <= self._shown:
            self._out.write(self._text[self._shown :])
            self._shown = len(self._text)
            self._out.flush()

    def final(self, text: str) -> None:
        """Print what is missing."""
        self.chunk(0, text)
        self._out.write("\n")
        self._out.flush()


def the_only_device(settings: Mqtt, fleet: str) -> str:
    """The device of a fleet that has one. Raises EdgedError otherwise."""
    found: set[str] = set()
    with Session(settings, (f"edged/v1/{fleet}/device/+/status",)) as session:
        try:
            for message in session.messages(0.7):
                found.add(message.topic.split("/")[4])
        except TimedOut:
            pass
    if len(found) == 1:
        return found.pop()
    if not found:
        raise EdgedError(f"no device of the fleet {fleet} is known at the broker; name one with --device")
    raise EdgedError(f"the fleet has several devices ({', '.join(sorted(found)[:8])}); name one with --device")


def ask(settings: Mqtt, wanted: Ask) -> int:
    """Send the prompt and show the answer; returns the exit code. Raises BrokerError, EdgedError, TimedOut."""
    device = wanted.device or the_only_device(settings, wanted.fleet)
    prompt_id = f"edgectl-{secrets.token_hex(8)}"
    topics = Topics(wanted.fleet, device)
    payload = strict_json.dumps({"id": prompt_id, **wanted.body})
    printer = Printer(sys.stdout)
    status_topic, status = f"{topics.own}/status", ""
    with Session(settings, (topics.reply(wanted.requester, prompt_id), status_topic)) as session:
        until = time.monotonic() + wanted.timeout
        session.publish(f"{topics.own}/prompt/{wanted.requester}", payload)
        answered = False
        while (left := until - time.monotonic()) > 0:
            try:
                for message in session.messages(left if answered else min(left, _RESEND_EVERY)):
                    if message.topic == status_topic:
                        status = message.payload[:16].decode("ascii", "replace")
                        continue
                    document = _reply(message.payload, prompt_id)
                    if document is None:
                        continue
                    answered = True
                    if document.get("final"):
                        return _show_final(document, printer, wanted.as_json)
                    if "text" in document and not wanted.as_json:
                        printer.chunk(document["at"], document["text"])
            except TimedOut:
                if not answered and time.monotonic() < until:
                    session.publish(f"{topics.own}/prompt/{wanted.requester}", payload)
    raise TimedOut("" if answered else _why_silent(device, wanted.fleet, status))


def _why_silent(device: str, fleet: str, status: str) -> str:
    """Why no reply came, as far as the device's last `status` (empty: none) explains it; else empty."""
    if not status:
        return f"no device {device} of the fleet {fleet} is known at this broker; edgectl status shows those that are"
    return f"the device {device} is offline; ask again when it is back" if status == "offline" else ""


def _reply(payload: bytes, prompt_id: str) -> dict[str, Any] | None:
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


def _show_final(document: dict[str, Any], printer: Printer, as_json: bool) -> int:
    failed = "error" in document
    if as_json:
        print(json.dumps(document, ensure_ascii=False))
    elif failed:
        print(f"edgectl: {document['reason']}: {document['error']['message']}", file=sys.stderr)
    else:
        printer.final(document["text"])
        print(_summary(document), file=sys.stderr)
    return 1 if failed else 0


def _summary(document: dict[str, Any]) -> str:
    usage, timing, receipt = document.get("usage", {}), document.get("timing", {}), document.get("receipt", {})
    speed = timing.get("tokens_per_second")
    parts = [
        f"{document['reason']}, {usage.get('completion_tokens', 0)} tokens",
        f"{speed:.1f} tokens/s" if speed else "",
        f"{timing.get('total_ms', 0) / 1000:.1f} s",
        f"{receipt.get('model')} on {receipt.get('device')}, {receipt.get('quantization')}" if receipt else "",
    ]
    return "— " + ", ".join(part for part in parts if part)
