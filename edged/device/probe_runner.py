"""Runs probes so that one which hangs does not stop the others.

A reading's probes run one after another on a short-lived daemon thread. If no probe ends within a deadline, the thread
is abandoned with the probe that hangs, and a new one runs the rest. A probe that hangs is not started again until it
returns, so there is never more than one thread for a probe, and where none hangs there is no thread between readings.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "silent", "gone", "broken"]
# The part is switched off, or has no value just now: no fault of the sensor.
_SILENT = frozenset((errno.EAGAIN, errno.EBUSY, errno.ENODATA, errno.EOPNOTSUPP))
# The source went away, or we lost the right to read it.
_GONE = frozenset((errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ESRCH, errno.EACCES, errno.EPERM))


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a probe. `value` is None unless the verdict is `ok`; `why` is for the log."""

    verdict: Verdict
    value: object = None
    why: str = ""


Job = tuple[str, Callable[[], object]]


class ProbeRunner:
    """Owned by the one thread that calls `run`."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._hanging: dict[str, _ProbeThread] = {}

    def run(self, jobs: Sequence[Job]) -> dict[str, Outcome]:
        """The outcomes by name; a job without one hangs. Blocks at most two deadlines a job that begins to hang."""
        self._hanging = {name: thread for name, thread in self._hanging.items() if not thread.ended.is_set()}
        waiting = [job for job in jobs if job[0] not in self._hanging]
        outcomes: dict[str, Outcome] = {}
        while waiting:
            thread = _ProbeThread(waiting)
            try:
                threading.Thread(target=thread.work, name="edged-probes", daemon=True).start()
            except RuntimeError:  # no more threads at the moment: the rest counts as hanging
                break
            done = thread.wait(self._deadline_s)
            outcomes.update(done)
            if len(done) == len(waiting):
                break
            self._hanging[waiting[len(done)][0]] = thread
            del waiting[: len(done) + 1]
        return outcomes


class _ProbeThread:
    """One thread's list of jobs. `work` runs on that thread, `wait` on the owner's."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.ended = threading.Event()
        self._jobs = tuple(jobs)
        self._lock = threading.Lock()
        self._done: list[tuple[str, Outcome]] = []
        self._abandoned = False

    def work(self) -> None:
        for name, read in self._jobs:
            outcome = attempt(read)
            with self._lock:
                if self._abandoned:
                    break
                self._done.append((name, outcome))
        self.ended.set()

    def wait(self, deadline_s: float) -> list[tuple[str, Outcome]]:
        """What was done when all jobs are, or when a whole deadline passed without any being done."""
        before = 0
        while not self.ended.wait(deadline_s):
            with self._lock:
                if len(self._done) == before and before < len(self._jobs):
                    self._abandoned = True
                    break
                before = len(self._done)
        return self._done


def attempt(read: Callable[[], object]) -> Outcome:
    """Run one probe; what it raises becomes a verdict."""
    try:
        return Outcome("ok", read())
    except OSError as error:
        if error.errno in _SILENT:
            return Outcome("silent", why=str(error))
        return Outcome("gone" if error.errno in _GONE else "broken", why=str(error))
    except Exception as error:  # noqa: BLE001 - whatever one probe raises, the others go on
        return Outcome("broken", why=f"{type(error).__name__}: {error}")
