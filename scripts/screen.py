"""One owner of the terminal: the daemon's log lines never come into the middle of an answer or of a spinner."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

from rich.console import Console
from rich.text import Text

from edged.ctl.answer import WordWrap


class Screen:
    """Prints answers as they grow, and log lines between them. Any thread may call `log`."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self._lock = threading.Lock()
        self._open = False
        self._held: list[str] = []
        self._wrap = WordWrap(self.console.width)

    def part(self, text: str) -> None:
        """A part of a line; log lines wait until `end`."""
        with self._lock:
            self._open = True
            self._write(text)

    def end(self, text: str = "") -> None:
        """The end of the line; then the log lines that waited."""
        with self._lock:
            self._write(text)
            self.console.print(self._wrap.flush(), markup=False, soft_wrap=True)
            self._wrap = WordWrap(self.console.width)
            self._open = False
            held, self._held = self._held, []
            for line in held:
                self._print(line)

    def log(self, line: str) -> None:
        """A log line, with its colours as escape sequences."""
        with self._lock:
            if self._open:
                self._held.append(line)
            else:
                self._print(line)

    def _write(self, text: str) -> None:
        wrapped = self._wrap.add(text) if self.console.is_terminal else text
        self.console.print(wrapped, end="", markup=False, soft_wrap=True)

    def _print(self, line: str) -> None:
        try:
            if self.console.is_terminal:
                self.console.print(Text.from_ansi(line), soft_wrap=True)
            else:
                print(line, file=sys.stderr, flush=True)
        except OSError:
            pass  # the terminal is gone; who writes here must not notice


class LogPipe:
    """The daemon's stderr as a terminal of its own, so that it logs as on ours; a thread shows its lines.

    Where our stderr is no terminal there is nothing to keep apart: the daemon then gets it as it is.
    """

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._thread: threading.Thread | None = None
        self._ours: int | None = None
        self._theirs: int | None = None

    def options(self) -> dict[str, Any]:
        """The arguments of the daemon's start."""
        if not sys.stderr.isatty():
            return {}
        self._ours, self._theirs = os.openpty()
        return {"stderr": self._theirs}

    def start(self) -> None:
        """Once the daemon has its end."""
        if self._theirs is None:
            return
        os.close(self._theirs)
        self._thread = threading.Thread(target=self._read, name="log", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """After the daemon has ended: show the rest."""
        if self._thread is not None:
            self._thread.join(2.0)

    def _read(self) -> None:
        assert self._ours is not None
        rest = b""
        while True:
            try:
                data = os.read(self._ours, 65536)
            except OSError:  # the daemon has closed its end
                data = b""
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._screen.log(line.decode("utf-8", "replace").rstrip("\r"))
            if not data:
                return
