"""The agent's end of a worker: starts the process, sends frames, posts what comes back. Imports no model code.

`start`, `send`, `kill` belong to the agent's main thread (the worker's parent-death signal follows the thread that
started it). A reader thread posts a `WorkerEvent` for each frame and, at the end, one with `Exited`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable

import msgspec

from edged.worker import frames

_SEND_TIMEOUT = 5  # seconds; a worker that reads nothing for so long hangs
_EXIT_DEADLINE = 5  # seconds from the end of the socket to that of the process, else it is killed


class Exited(msgspec.Struct, frozen=True):
    """The process ended. `code` is its exit code, negative for a signal."""

    code: int

    @property
    def how(self) -> str:
        """The way it ended, as a predicate: `was killed by SIGKILL`, `ended with exit code 3`."""
        if self.code < 0:
            with contextlib.suppress(ValueError):
                return f"was killed by {signal.Signals(-self.code).name}"
        return f"ended with exit code {self.code}"


class WorkerEvent(msgspec.Struct, frozen=True):
    """What worker number `generation` sent, or its end."""

    generation: int
    event: frames.FromWorker | Exited


Post = Callable[[WorkerEvent], None]


class WorkerClient:
    """One worker process."""

    def __init__(self, generation: int, post: Post, command: tuple[str, ...] | None = None) -> None:
        self.generation = generation
        self._post = post
        self._command = command or (sys.executable, "-m", "edged.worker.main")
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        """The process id, once it was started."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process. Raises OSError."""
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_TIMEOUT, 0))
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("EDGED_", "NOTIFY_", "WATCHDOG_"))}
        environment["OPENBLAS_NUM_THREADS"] = "1"  # numpy's own threads, not used, would start before the sandbox
        with theirs:
            self._process = subprocess.Popen(
                [*self._command, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        self._socket = ours
        self._reader = threading.Thread(target=self._read, name=f"worker-{self.generation}", daemon=True)
        self._reader.start()

    def send(self, frame: frames.ToWorker) -> None:
        """Send a frame. A worker that does not read it is killed; its exit is then posted as any other."""
        if self._socket is None:
            return
        try:
            self._socket.sendall(frames.encode(frame))
        except OSError:
            self.kill()

    def kill(self) -> None:
        """End the process now. Its exit is posted."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    def join(self, timeout: float) -> None:
        """Wait until the exit was posted."""
        if self._reader is not None:
            self._reader.join(timeout)

    def _read(self) -> None:
        channel, process = self._socket, self._process
        if channel is None or process is None:
            return
        decoder: frames.Decoder[frames.FromWorker] = frames.Decoder(frames.FromWorker)
        try:
            while data := channel.recv(65536):
                for frame in decoder.feed(data):
                    self._post(WorkerEvent(self.generation, frame))
        except (OSError, ValueError, msgspec.MsgspecError):
            process.kill()  # frames that cannot be decoded: it is broken
        try:
            code = process.wait(_EXIT_DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        channel.close()
        self._post(WorkerEvent(self.generation, Exited(code)))
