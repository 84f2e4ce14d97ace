"""`edgectl prompt --all` and `--group`: one prompt to many devices at once, and a table of their answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from edged.command_line import DONE, FAILED, note
from edged.config.schema import Mqtt
from edged.ctl.answer import error_of, plain, succeeded
from edged.ctl.devices import choose_all, group_topics, status_topic
from edged.ctl.exchange import Exchange, Reply, new_id, reply_topic
from edged.ctl.interrupts import interrupting
from edged.link.session import Interrupted, Session, TimedOut

FILE_WIDTH = 200  # columns of a table that goes to a file or a pipe


class AskMany(msgspec.Struct, frozen=True):
    """A prompt for every connected device of the fleet, or of this group. `timeout` in seconds."""

    fleet: str
    group: str | None
    requester: str
    body: dict[str, Any]
    timeout: float
    as_json: bool


def ask_many(settings: Mqtt, wanted: AskMany) -> int:
    """Send the prompt to all and show their answers; returns the exit code. An interrupt cancels it everywhere.

    Raises BrokerError, EdgedError, TimedOut.
    """
    prompt_id = new_id()
    topics = (
        reply_topic(wanted.fleet, wanted.requester, prompt_id),
        status_topic(wanted.fleet),
        *(group_topics(wanted.fleet) if wanted.group is not None else ()),
    )
    interrupted = late = False
    with Session(settings, topics) as session, interrupting(session):
        devices = choose_all(session, wanted.fleet, wanted.group)
        answers = Answers(devices)
        exchange = Exchange(
            session, wanted.fleet, wanted.requester, dict.fromkeys(devices, "online"), wanted.body, prompt_id
        )
        with _shown(answers, wanted.as_json) as replace:
            try:
                exchange.send()
                for reply in exchange.replies(wanted.timeout):
                    answers.take(reply)
                    replace()
            except (Interrupted, TimedOut) as error:
                interrupted, late = isinstance(error, Interrupted), isinstance(error, TimedOut)
                for reply in exchange.cancelled():
                    answers.take(reply)
    if wanted.as_json:
        print(json.dumps({"devices": answers.finals}, ensure_ascii=False))
    else:
        _console().print(answers.table())
    if late:
        silent = [device for device, final in answers.finals.items() if final is None or final["reason"] == "cancelled"]
        raise TimedOut(f"{', '.join(silent)} did not answer in time; wait longer with --timeout")
    if interrupted:
        note("edgectl: interrupted; the prompt was cancelled")
    return DONE if all(final is not None and succeeded(final) for final in answers.finals.values()) else FAILED


class Answers:
    """What each device has answered so far. `finals` by device, None until it comes."""

    def __init__(self, devices: list[str]) -> None:
        self.finals: dict[str, dict[str, Any] | None] = dict.fromkeys(devices)
        self._texts = dict.fromkeys(devices, "")

    def take(self, reply: Reply) -> None:
        """A reply of a device."""
        device, document = reply
        if document.get("final"):
            self.finals[device] = document
        elif "text" in document and document["at"] <= len(self._texts[device]):
            self._texts[device] = self._texts[device][: document["at"]] + document["text"]

    def table(self) -> Table:
        """Device, answer, tokens/s, seconds."""
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("device", no_wrap=True)
        table.add_column("answer", ratio=1)
        table.add_column("tokens/s", justify="right", no_wrap=True)
        table.add_column("seconds", justify="right", no_wrap=True)
        for device, final in self.finals.items():
            timing = (final or {}).get("timing") or {}
            speed, total = timing.get("tokens_per_second"), timing.get("total_ms")
            table.add_row(
                device,
                self._answer(device, final),
                f"{speed:.1f}" if isinstance(speed, (int, float)) else "–",
                f"{total / 1000:.1f}" if isinstance(total, (int, float)) else "–",
            )
        return table

    def _answer(self, device: str, final: dict[str, Any] | None) -> str:
        if final is None:
            return f"{escape(plain(self._texts[device]))}[dim]…[/]"
        if "error" in final:
            return f"[red]{escape(error_of(final))}[/]"
        note = "" if final["reason"] == "stop" else f" [yellow]({escape(final['reason'])})[/]"
        return escape(plain(final["text"].strip())) + note


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else FILE_WIDTH, highlight=False)


@contextmanager
def _shown(answers: Answers, as_json: bool) -> Iterator[Any]:
    """On a terminal, the table while it fills; gives what shows its new state."""
    console = _console()
    if as_json or not console.is_terminal:
        yield lambda: None
        return
    with Live(answers.table(), console=console, transient=True, refresh_per_second=8) as live:
        yield lambda: live.update(answers.table())
