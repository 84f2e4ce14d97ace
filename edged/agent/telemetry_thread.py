"""The thread that reads the board at each interval and posts the reading. A sensor that hangs delays nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from edged.core.health import Finding
from edged.core.reading import Reading
from edged.device.board import describe, limits_for
from edged.device.findings import Judge
from edged.device.sampler import Sampler


class TelemetryThread:
    """See the module. `findings` are those of the newest reading; the tuple is replaced whole, never changed."""

    def __init__(self, state_dir: Path, interval: float, post: Callable[[Reading], None]) -> None:
        self._state_dir = state_dir
        self._interval = interval
        self._post = post
        self._worker_pid: int | None = None
        self._wake = threading.Event()
        self._stopping = False
        self._busy_since: float | None = None
        self.findings: tuple[Finding, ...] = ()

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._run, name="telemetry", daemon=True).start()

    def stop(self) -> None:
        """Stop reading; a reading that hangs is not waited for."""
        self._stopping = True
        self._wake.set()

    def busy_for(self) -> float:
        """Seconds that the present reading has taken; 0 between two readings."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def set_interval(self, seconds: float) -> None:
        """From now on read at this interval."""
        if seconds != self._interval:
            self._interval = seconds
            self._wake.set()

    def set_worker(self, pid: int | None) -> None:
        """Set the worker process whose memory is read."""
        self._worker_pid = pid

    def _run(self) -> None:
        sampler = Sampler(self._state_dir)
        judge = Judge(limits_for(describe()))
        while not self._stopping:
            self._wake.clear()
            self._busy_since = time.monotonic()
            reading = sampler.read(self._worker_pid)
            self.findings = judge.update(reading)
            self._post(reading)
            self._busy_since = None
            self._wake.wait(self._interval)
