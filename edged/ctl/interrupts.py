"""Signals that end a wait: Ctrl-C, a closed terminal, SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from edged.link.session import Session

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """The signals that came: `number` is the first of them, 0 before."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.number = 0

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """The handler."""
        if self.number:
            raise KeyboardInterrupt
        self.number = number
        self._session.interrupt()


@contextmanager
def interrupting(session: Session) -> Iterator[Signals]:
    """Inside, the first signal makes `session.messages` raise Interrupted; each later one raises KeyboardInterrupt."""
    signals = Signals(session)
    if threading.current_thread() is not threading.main_thread():
        yield signals  # only the main thread may set handlers
        return
    before = {number: signal.signal(number, signals.handle) for number in _SIGNALS}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
