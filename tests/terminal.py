"""A program on a terminal, for tests of what a person sees and of the signals that a terminal sends."""

from __future__ import annotations

import codecs
import os
import pty
import select
import signal
import time
from collections.abc import Mapping

from tests.support import ROOT, SECONDS


class Terminal:
    """A command on a pseudo-terminal of 80 columns that is its controlling terminal."""

    def __init__(self, *command: str, variables: Mapping[str, str] | None = None) -> None:
        self.screen = ""
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            environment = {name: text for name, text in os.environ.items() if not name.startswith("EDGED_")}
            environment |= {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80", **(variables or {})}
            os.execve(command[0], list(command), environment)

    def write(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def read_until(self, text: str, seconds: float = 20) -> str:
        """What came up to this text; the rest waits for the next call."""
        until = time.monotonic() + seconds * SECONDS
        while text not in self.screen:
            ready, _, _ = select.select([self._terminal], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"not within {seconds} s: {text!r}; the screen has {self.screen!r}"
            try:
                self.screen += self._decode(os.read(self._terminal, 65536))
            except OSError:
                raise AssertionError(f"ended without {text!r}; the screen has {self.screen!r}") from None
        before, _, self.screen = self.screen.partition(text)
        return before + text

    def close(self) -> None:
        """As when its window is closed: the program gets SIGHUP."""
        os.close(self._terminal)

    def wait(self, seconds: float = 30) -> int:
        """The exit code; the program is killed where it does not end in the time."""
        until = time.monotonic() + seconds * SECONDS
        while time.monotonic() < until:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError(f"did not end within {seconds} s; the screen has {self.screen!r}")
