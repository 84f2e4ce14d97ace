"""Checks of new formats beside the worker's loop, so that a step never waits for one.

One thread, started with the first, checks one format at a time, in a process of its own (`engine/format_check.py`).
Next comes the format of the most urgent prompt; among equally urgent ones that of the requester whose checks took least
time so far. So formats that take their whole second delay only their own requester's.

`submit`, `set_level` and `withdraw` belong to the worker's main thread. `done` is called from the checking thread.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from edged.core.errors import PromptRefused
from edged.engine.constraint import Wanted

REMEMBERED = 1024  # requesters whose time is counted

Check = Callable[[Wanted], None]
Done = Callable[[str, PromptRefused | None], None]


@dataclass
class _Waiting:
    key: str
    requester: str
    level: int
    order: int
    wanted: Wanted


class FormatChecks:
    """See the module. `check` raises PromptRefused for what cannot be used; `done(key, refusal)` follows each check."""

    def __init__(self, check: Check, done: Done, clock: Callable[[], float] = time.monotonic) -> None:
        self._check = check
        self._done = done
        self._clock = clock
        self._waiting: dict[str, _Waiting] = {}
        self._seconds: OrderedDict[str, float] = OrderedDict()  # that the checks of a requester took
        self._count = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def stop(self) -> None:
        """Check no more after the present one."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def submit(self, key: str, requester: str, level: int, wanted: Wanted) -> None:
        """A prompt's format is to be checked."""
        with self._changed:
            self._count += 1
            self._waiting[key] = _Waiting(key, requester, level, self._count, wanted)
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="format-checks", daemon=True)
                self._thread.start()

    def set_level(self, key: str, level: int) -> None:
        """The prompt is more or less urgent now. One that does not wait is ignored."""
        with self._changed:
            if (waiting := self._waiting.get(key)) is not None:
                waiting.level = level

    def withdraw(self, key: str) -> bool:
        """The prompt ended; gives whether its check had not begun, so that `done` will not be called for it."""
        with self._changed:
            return self._waiting.pop(key, None) is not None

    def _run(self) -> None:
        while (waiting := self._next()) is not None:
            begun = self._clock()
            refusal = None
            try:
                self._check(waiting.wanted)
            except PromptRefused as error:
                refusal = error
            except Exception as error:  # noqa: BLE001  - the thread must go on; the prompt gets an answer
                sentence = f"The format could not be checked ({error!r}); send it again."
                refusal = PromptRefused("failed", "format", sentence)
            self._charge(waiting.requester, self._clock() - begun)
            self._done(waiting.key, refusal)

    def _next(self) -> _Waiting | None:
        with self._changed:
            while not self._waiting and not self._stopping:
                self._changed.wait()
            if self._stopping:
                return None
            best = min(self._waiting.values(), key=lambda w: (w.level, self._seconds.get(w.requester, 0.0), w.order))
            return self._waiting.pop(best.key)

    def _charge(self, requester: str, seconds: float) -> None:
        self._seconds[requester] = self._seconds.pop(requester, 0.0) + seconds
        while len(self._seconds) > REMEMBERED:
            self._seconds.popitem(last=False)
