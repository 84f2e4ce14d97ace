"""Fetches and verifies models with child processes, `edged model pull` and `show`: the commands that a person types."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import IO

import msgspec

from edged.agent.model_state import ModelFailure

COMMAND = (sys.executable, "-m", "edged", "model")
_TERMINATE_WITHIN = 5.0  # seconds that the process has after SIGTERM


class PullEnded(msgspec.Struct, frozen=True):
    """The pull number `attempt` of `name` ended; `failure` None: the model is in the store, and has `size` bytes."""

    attempt: int
    failure: ModelFailure | None
    size: int = 0
    name: str = ""


class PullProgress(msgspec.Struct, frozen=True):
    """The pull number `attempt` of `name` has fetched `share` (0 to 1) of a file; None: its size is not known."""

    attempt: int
    share: float | None
    name: str


class ModelPull:
    """One process at a time. `post` gets `PullEnded` from a thread of its own; `arguments` name the config file.

    `verb` `show` verifies a stored model instead. `variables` are added to the environment. With `on_progress` the
    process reports how far it is. `name` identifies its events.
    """

    def __init__(
        self,
        source: str,
        arguments: tuple[str, ...],
        post: Callable[[PullEnded], None],
        *,
        verb: str = "pull",
        name: str = "",
        digest: str | None = None,
        variables: Mapping[str, str] | None = None,
        on_progress: Callable[[PullProgress], None] | None = None,
    ) -> None:
        wanted = ["--digest", digest] if digest is not None and verb == "pull" else []
        progress = ["--progress"] if on_progress is not None else []
        self._command = [*COMMAND, verb, source, "--json", *wanted, *progress, *arguments]
        self._name = name
        self._post = post
        self._on_progress = on_progress
        self._variables = dict(variables or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._attempt = 0

    @property
    def running(self) -> bool:
        """Whether a pull was started whose end was not processed yet."""
        return self._process is not None

    def start(self) -> None:
        """Start the process. Raises OSError."""
        self._attempt += 1
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=None if self._on_progress is None else subprocess.PIPE,
            env={**os.environ, **self._variables},
        )
        self._process = process
        if self._on_progress is not None and process.stderr is not None:
            arguments = (process.stderr, self._attempt)
            threading.Thread(target=self._read_progress, args=arguments, name="model-progress", daemon=True).start()
        threading.Thread(target=self._wait, args=(process, self._attempt), name="model-pull", daemon=True).start()

    def owns(self, event: PullEnded | PullProgress) -> bool:
        """Whether an event is of the newest process."""
        return (event.name, event.attempt) == (self._name, self._attempt)

    def ended(self, event: PullEnded) -> bool:
        """Process the end of a pull; returns whether it is that of the newest one."""
        if not self.owns(event):
            return False
        self._process = None
        return True

    def stop(self) -> None:
        """End the process: SIGTERM, then SIGKILL for one that ignores it. Never raises."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_TERMINATE_WITHIN)
            return
        process.kill()

    def _wait(self, process: subprocess.Popen[bytes], attempt: int) -> None:
        if self._on_progress is None:
            output, _ = process.communicate()
        else:  # stderr has a reader of its own
            output = process.stdout.read() if process.stdout is not None else b""
            process.wait()
        if process.returncode != 0:
            self._post(PullEnded(attempt, failure_of(output, process.returncode), name=self._name))
        else:
            self._post(PullEnded(attempt, None, _size(output), self._name))

    def _read_progress(self, lines: IO[bytes], attempt: int) -> None:
        """Lines of progress are posted, others go to the log as those of any child."""
        for line in lines:
            share = _share(line)
            if share is None:
                sys.stderr.buffer.write(line)
                sys.stderr.flush()
            elif self._on_progress is not None:
                self._on_progress(PullProgress(attempt, None if share < 0 else share, self._name))


def failure_of(output: bytes, exit_code: int) -> ModelFailure:
    """The error that a failed `edged model pull --json` printed."""
    with suppress(ValueError, KeyError, TypeError):
        error = json.loads(output)["error"]
        return ModelFailure(str(error["code"]), str(error["message"]))
    return ModelFailure("pull_failed", f"the model could not be fetched (exit code {exit_code}); see the log")


def _size(output: bytes) -> int:
    with suppress(ValueError, KeyError, TypeError):
        return int(json.loads(output)["size_bytes"])
    return 0


def _share(line: bytes) -> float | None:
    """The share of a line of progress, -1 where the total is not known; None for any other line."""
    if not line.startswith(b'{"done":'):
        return None
    with suppress(ValueError, KeyError, TypeError, ZeroDivisionError):
        progress = json.loads(line)
        return -1.0 if not progress["total"] else min(1.0, max(0.0, progress["done"] / progress["total"]))
    return None
