"""Fetches a missing model with a child process, `edged model pull`: the command that a person types."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

import msgspec

from edged.agent.model_state import ModelFailure

_TERMINATE_WITHIN = 5.0  # seconds that the process has after SIGTERM


class PullEnded(msgspec.Struct, frozen=True):
    """The pull number `attempt` ended; `failure` None: the model is in the store."""

    attempt: int
    failure: ModelFailure | None


class ModelPull:
    """One pull at a time. `post` gets `PullEnded` from a thread of its own; `arguments` name the config file."""

    def __init__(self, source: str, arguments: tuple[str, ...], post: Callable[[PullEnded], None]) -> None:
        self._command = [sys.executable, "-m", "edged", "model", "pull", source, "--json", *arguments]
        self._post = post
        self._process: subprocess.Popen[bytes] | None = None
        self._attempt = 0

    @property
    def running(self) -> bool:
        """Whether a pull was started whose end was not processed yet."""
        return self._process is not None

    def start(self) -> None:
        """Start the process. Raises OSError."""
        self._attempt += 1
        process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self._process = process
        threading.Thread(target=self._wait, args=(process, self._attempt), name="model-pull", daemon=True).start()

    def ended(self, event: PullEnded) -> bool:
        """Process the end of a pull; returns whether it is that of the newest one."""
        if event.attempt != self._attempt:
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
        output, _ = process.communicate()
        failure = None if process.returncode == 0 else failure_of(output, process.returncode)
        self._post(PullEnded(attempt, failure))


def failure_of(output: bytes, exit_code: int) -> ModelFailure:
    """The error that a failed `edged model pull --json` printed."""
    with suppress(ValueError, KeyError, TypeError):
        error = json.loads(output)["error"]
        return ModelFailure(str(error["code"]), str(error["message"]))
    return ModelFailure("pull_failed", f"the model could not be fetched (exit code {exit_code}); see the log")
