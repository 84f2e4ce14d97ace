"""Progress of long work: on a terminal a bar or one line that is rewritten, elsewhere log lines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edged.models.store.download import Progress

_LINE_EVERY = 5.0  # seconds between two log lines of one piece of work
_JSON_EVERY = 0.5  # seconds between two JSON lines
_STEP_EVERY = 10.0  # seconds between two log lines of `StepLine`


@contextmanager
def progress_bar(*, as_json: bool = False) -> Iterator[Progress]:
    """A progress bar where stderr is a terminal, elsewhere a log line every few seconds; `as_json`: for a program."""
    if as_json:
        yield _json_lines()
        return
    if not sys.stderr.isatty():
        yield _log_lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(done: int, total: int | None, what: str) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield show


def _json_lines() -> Progress:
    printed_at = 0.0

    def show(done: int, total: int | None, what: str) -> None:
        nonlocal printed_at
        now = time.monotonic()
        if now - printed_at >= _JSON_EVERY or done == total:
            printed_at = now
            print(json.dumps({"done": done, "total": total, "what": what}), file=sys.stderr, flush=True)

    return show


def _log_lines() -> Progress:
    printed_at: dict[str, float] = {}

    def show(done: int, total: int | None, what: str) -> None:
        now = time.monotonic()
        if what in printed_at and now - printed_at[what] < _LINE_EVERY and done != total:
            return
        printed_at[what] = now
        share = f" {done / total:.0%} of {total / 1e6:.0f} MB" if total else ""
        print(f"{what}{share}", file=sys.stderr, flush=True)

    return show


def step_on_terminal(what: str) -> None:
    """Show the current step in a line that the next one overwrites; nothing where stderr is no terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[2m{what} …\x1b[0m\x1b[K\r", end="", file=sys.stderr, flush=True)


class StepLine:
    """Prints the current step of long work: one rewritten line on a terminal, at most a line every 10 s elsewhere."""

    def __init__(self) -> None:
        self._printed_at = -_STEP_EVERY

    def __call__(self, what: str) -> None:
        """`what` is the step that runs now."""
        if sys.stderr.isatty():
            step_on_terminal(what)
        elif (now := time.monotonic()) - self._printed_at >= _STEP_EVERY:
            self._printed_at = now
            print(f"{what} …", file=sys.stderr, flush=True)
