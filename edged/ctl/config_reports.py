"""The reports of devices about a push: waiting for them, and following a trial to its end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, TextIO

import msgspec

from edged.link.events import Arrived
from edged.link.session import Session, TimedOut

UNSETTLED = frozenset({"trial", "waiting"})
"""Phases after which another report follows."""


class Asked(msgspec.Struct, frozen=True):
    """The push that is waited for. `known`: devices that have reported before; `silent`: those that will not again.

    `watch`: a trial is followed to its end.
    """

    layer: str
    revision: int | None
    known: frozenset[str]
    silent: frozenset[str]
    watch: bool

    def answered(self, answers: dict[str, dict[str, Any]]) -> bool:
        """Whether nothing more is waited for."""
        open_ones = [d for d, answer in answers.items() if self.watch and answer.get("phase") in UNSETTLED]
        return bool(self.known) and self.known <= self.silent | set(answers) and not open_ones


class Steps:
    """Prints the steps of trials, a line for each; on a terminal the line of a step is rewritten as it goes on."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._printed: dict[str, str] = {}

    def show(self, device: str, report: dict[str, Any]) -> None:
        """One report of a device."""
        if report.get("phase") not in UNSETTLED:
            return
        step, done = str(report.get("step") or report.get("reason")), report.get("done")
        share = done if isinstance(done, (int, float)) and report.get("phase") == "trial" else 0.0
        if self._out.isatty():
            bar = "━" * round(20 * share)
            same = self._printed.get(device) == step
            before = "\r\x1b[K" if same else "\n" if self._printed else ""
            print(f"{before}{device}: {step:<10} {bar:<20} {share:4.0%}", end="", file=self._out, flush=True)
        elif self._printed.get(device) != step:
            print(f"{device}: {step}", file=self._out, flush=True)
        self._printed[device] = step

    def close(self) -> None:
        """End the line."""
        if self._printed and self._out.isatty():
            print(file=self._out)


def await_reports(session: Session, asked: Asked, wait: float, show: Steps | None) -> dict[str, dict[str, Any]]:
    """The last report of each device about this push, until every known device has answered, or for `wait` seconds."""
    answers: dict[str, dict[str, Any]] = {}
    until = time.monotonic() + wait
    try:
        while (left := until - time.monotonic()) > 0 and not asked.answered(answers):
            message = next(session.messages(left))
            report = report_of(message)
            if report is not None and (report.get("layer"), report.get("revision")) == (asked.layer, asked.revision):
                device = message.topic.split("/")[4]
                answers[device] = report
                if show is not None:
                    show.show(device, report)
    except TimedOut:
        pass
    finally:
        if show is not None:
            show.close()
    return answers


def report_of(message: Arrived) -> dict[str, Any] | None:
    """The reported document of a message, where it is one."""
    if not message.topic.endswith("/config/reported") or not message.payload:
        return None
    try:
        document = json.loads(message.payload)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def golden_lines(report: dict[str, Any]) -> Iterator[str]:
    """The answers to the golden prompts, a line each."""
    results = report.get("golden")
    for result in results if isinstance(results, list) else []:
        if isinstance(result, dict):
            word = "held" if result.get("held") else "not held"
            yield f"golden: {word}: {result.get('prompt')!r} -> {result.get('answer')!r}, {result.get('took_ms')} ms"
