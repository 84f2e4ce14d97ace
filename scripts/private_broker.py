"""The broker that `scripts/run` starts where none is given: mosquitto, else the embedded one, on 127.0.0.1.

mosquitto, started by root, changes its user, and the kernel then forgets that it is to end with its parent. So one that
was left by a run that was killed is found by its record, and used.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

PORT = 18830
RECORD = "broker.json"
_EMBEDDED = Path(__file__).resolve().parent / "embedded_broker.py"


class Process(Protocol):
    """What is used of a child, or of a process that another run started."""

    def poll(self) -> int | None:
        """The exit code, None while it runs."""

    def terminate(self) -> None:
        """Send SIGTERM."""

    def kill(self) -> None:
        """Send SIGKILL."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; raises subprocess.TimeoutExpired."""


class LeftProcess:
    """A process that is no child of ours. Its exit code is not known: 0."""

    def __init__(self, pid: int, started: str) -> None:
        self.pid = pid
        self._started = started

    def poll(self) -> int | None:
        return None if started_at(self.pid) == self._started else 0

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with contextlib.suppress(OSError):
                os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        until = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired([str(self.pid)], timeout or 0.0)
            time.sleep(0.05)
        return 0


def started_at(pid: int) -> str | None:
    """When a process started, in ticks since boot: with its pid this names it; None where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def left_from_before(folder: Path) -> tuple[int, LeftProcess] | None:
    """The port and the process of a broker that an earlier run left here, where it still answers."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        port, process = int(record["port"]), LeftProcess(int(record["pid"]), str(record["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if process.poll() is not None:
        return None
    if answers(port):
        return port, process
    process.terminate()
    return None


def record(folder: Path, pid: int, port: int) -> None:
    """Keep what `left_from_before` needs."""
    document = {"pid": pid, "port": port, "started": started_at(pid)}
    (folder / RECORD).write_text(json.dumps(document), encoding="utf-8")


def free_port(say: Callable[[str], None]) -> int | None:
    """The usual port, else any other, which is then reported; None where none is free."""
    for port in (PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT counts as free
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                say(f"port {port} is in use by another program; using another one")
                continue
            return int(probe.getsockname()[1])
    return None


def answers(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def command(folder: Path, port: int) -> tuple[str, list[str]]:
    """What kind of broker there is here, and how to start it."""
    search = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    if program := shutil.which("mosquitto", path=search):
        config = folder / "mosquitto.conf"
        config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n", encoding="utf-8")
        return "a private mosquitto", [program, "-c", str(config)]
    return "the embedded broker, which stores nothing on disk,", [sys.executable, str(_EMBEDDED), str(port)]


def until_it_answers(process: Process, port: int, seconds: float = 15.0) -> bool:
    """Whether the broker listens before it ends and before the time is over."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        if answers(port):
            return True
        time.sleep(0.05)
    return False
