"""Keeps one worker with one model alive: starts it, replaces it when it dies or hangs, fetches what is missing.

Owned by the agent's main thread, driven by `tick(now)` and by events from the mailbox. What it learns it tells a
`Listener`. The model's state is one word: `starting` (being fetched or loaded for the first time), `online` (a model
was loaded; stays so while a worker is replaced), `safe` (there is no usable model; it tries again, ever more rarely).
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from edged.config import schema as settings
from edged.core.prompt import ModelInfo
from edged.wire import documents
from edged.worker import frames
from edged.worker.client import Exited, WorkerClient

PING_EVERY = 5.0
HANG_DEADLINE = 20.0  # seconds without a sign of life once the model stands
LOAD_DEADLINE = 900.0
RESTART_WAITS = (0.0, 1.0, 5.0, 15.0, 60.0)  # by deaths in a row
LOAD_CRASHES_UNTIL_SAFE = 3
RETRY_SAFE = (30.0, 60.0, 300.0, 900.0)
_STEADY = 60.0  # a worker that lived so long makes earlier deaths forgotten

ModelState = Literal["starting", "online", "safe"]


class ModelFailure(msgspec.Struct, frozen=True):
    """Why there is no model: an error code and a sentence that says what to do."""

    code: str
    message: str


class Listener(Protocol):
    """Who is told. All calls come from the main thread."""

    def model_changed(self) -> None:
        """`state`, `info` or `failure` is another."""

    def model_loaded(self) -> None:
        """A worker stands ready, for the first time or again."""

    def worker_frame(self, frame: frames.AboutPrompt) -> None:
        """A frame about a prompt."""

    def worker_lost(self, how: str) -> None:
        """The worker is gone with everything that it had been given."""


class PullEnded(msgspec.Struct, frozen=True):
    """The fetching process ended."""

    attempt: int
    failure: ModelFailure | None


def load_order(model: settings.Model, models: Path) -> frames.Load:
    """What a worker is told to load; `models` is the store's folder."""
    return frames.Load(
        source=model.source,
        digest=model.digest,
        bits=model.bits,
        backend=model.backend,
        context=model.context,
        threads=model.threads,
        store=str(models),
    )


class Supervisor:
    """See the module. `post` puts an event into the mailbox, from any thread."""

    def __init__(
        self,
        order: frames.Load,
        pull_arguments: tuple[str, ...],
        listener: Listener,
        post: Callable[[object], None],
        clock: Callable[[], float],
        command: tuple[str, ...] | None = None,
    ) -> None:
        self._order = order
        self._pull_arguments = pull_arguments
        self._listener = listener
        self._post = post
        self._clock = clock
        self._command = command
        self._client: WorkerClient | None = None
        self._generation = 0
        self._ready = False
        self._started = 0.0
        self._last_frame_at = 0.0
        self._last_ping_at = 0.0
        self._restart_at: float | None = None
        self._crashes = 0
        self._retries = 0
        self._pull: subprocess.Popen[bytes] | None = None
        self._pulls = 0
        self._fetched = False  # a fetch has just succeeded: a model still missing after it is failure
        self._stopping = False
        self._hung = False
        self.state: ModelState = "starting"
        self.doing = ""
        self.info: ModelInfo | None = None
        self.failure: ModelFailure | None = None
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """The worker's process id."""
        return self._client.pid if self._client is not None else None

    @property
    def ready(self) -> bool:
        """Whether a worker stands that takes prompts."""
        return self._ready

    def document(self) -> documents.ModelState:
        """What health says of the model."""
        failure = self.failure if self.state == "safe" else None
        return documents.ModelState(
            state=self.state,
            source=self._order.source,
            info=self.info,
            doing=self.doing or None,
            error_code=failure.code if failure else None,
            error_message=failure.message if failure else None,
            restarts=self.restarts,
        )

    def start(self) -> None:
        """Start the first worker."""
        self._launch()

    def stop(self) -> None:
        """End worker and fetching; nothing is told any more."""
        self._stopping = True
        client, self._client = self._client, None
        if client is not None:
            client.kill()
            client.join(5)
        if self._pull is not None and self._pull.poll() is None:
            self._pull.terminate()
            self._pull.wait(5)

    def send(self, frame: frames.ToWorker) -> None:
        """Hand a frame to the worker, if one stands ready."""
        if self._client is not None and self._ready:
            self._client.send(frame)

    def next_tick(self) -> float:
        """The monotonic time at which `tick` has something to do."""
        if self._restart_at is not None:
            return self._restart_at
        return (
            min(self._last_ping_at + PING_EVERY, self._last_frame_at + HANG_DEADLINE)
            if self._ready
            else self._clock() + 1.0
        )

    def tick(self, *, stalled: bool = False) -> None:
        """Ping, notice a hang, restart when it is time.

        `stalled`: the agent itself stood still (on a slow disk, say). What the worker said meanwhile lies unread, so it
        is not judged by that.
        """
        now = self._clock()
        if stalled:
            self._last_frame_at = now
        if self._restart_at is not None and now >= self._restart_at:
            self._restart_at = None
            self._launch()
        elif self._client is not None:
            deadline = HANG_DEADLINE if self._ready else LOAD_DEADLINE
            if now - self._last_frame_at > deadline:
                self._hung = True
                self._client.kill()
            elif self._ready and now - self._last_ping_at >= PING_EVERY:
                self._last_ping_at = now
                self._client.send(frames.Ping())

    def handle(self, generation: int, event: frames.FromWorker | Exited) -> None:
        """Something a worker said, or its end."""
        if self._client is None or generation != self._client.generation:
            return
        self._last_frame_at = self._clock()
        if isinstance(event, Exited):
            self._died(event)
        elif isinstance(event, frames.Loading):
            self.doing = event.doing
            self._listener.model_changed()
        elif isinstance(event, frames.Loaded):
            self._loaded(event.info)
        elif isinstance(event, frames.NotLoaded):
            self._not_loaded(ModelFailure(event.code, event.message))
        elif not isinstance(event, frames.Progress):
            if isinstance(event, frames.Finished):
                self._crashes = 0  # it does its work: what comes now is no crash loop
            self._listener.worker_frame(event)

    def pulled(self, event: PullEnded) -> None:
        """The fetching process ended."""
        if self._stopping or event.attempt != self._pulls:
            return
        self._pull = None
        if event.failure is None:
            self._fetched = True
            self._launch()
        else:
            self._enter_safe(event.failure)

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _launch(self) -> None:
        self._generation += 1
        self._client = WorkerClient(self._generation, lambda g, e: self._post((g, e)), self._command)
        self._ready = False
        self._hung = False
        self._started = self._last_frame_at = self._last_ping_at = self._clock()
        try:
            self._client.start()
        except OSError as error:
            self._client = None
            self._enter_safe(ModelFailure("no_worker", f"the model's process cannot be started: {error.strerror}"))
            return
        self._client.send(self._order)

    def _loaded(self, info: ModelInfo) -> None:
        self._ready = True
        self._fetched = False
        self._retries = 0
        self.info, self.failure, self.state, self.doing = info, None, "online", ""
        self._listener.model_changed()
        self._listener.model_loaded()

    def _not_loaded(self, failure: ModelFailure) -> None:
        self._drop_client()
        fetched, self._fetched = self._fetched, False
        if failure.code == "missing" and self._pull is None and self._fetchable() and not fetched:
            self._start_pull()
        else:
            self._enter_safe(failure)

    def _fetchable(self) -> bool:
        source = self._order.source
        if source.startswith("hf:"):
            return True
        return not source.startswith(("/", ".", "sha256:")) and not source.endswith(".gguf")

    def _drop_client(self) -> None:
        client, self._client = self._client, None
        self._ready = False
        if client is not None:
            client.kill()

    def _start_pull(self) -> None:
        self._pulls += 1
        self.doing = "fetching"
        command = [sys.executable, "-m", "edged", "model", "pull", self._order.source, "--json", *self._pull_arguments]
        try:
            self._pull = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        except OSError as error:
            self._enter_safe(ModelFailure("pull_failed", f"the model cannot be fetched: {error.strerror}"))
            return
        threading.Thread(target=self._await_pull, args=(self._pull, self._pulls), name="pull", daemon=True).start()
        self._listener.model_changed()

    def _await_pull(self, process: subprocess.Popen[bytes], attempt: int) -> None:
        output, _ = process.communicate()
        self._post(PullEnded(attempt, None if process.returncode == 0 else _failure_of(output, process.returncode)))

    def _enter_safe(self, failure: ModelFailure) -> None:
        wait = RETRY_SAFE[min(self._retries, len(RETRY_SAFE) - 1)]
        self._retries += 1
        self._restart_at = self._clock() + wait
        self.info, self.failure, self.state, self.doing = None, failure, "safe", ""
        self._listener.model_changed()

    def _died(self, end: Exited) -> None:
        how = "made no progress and was ended" if self._hung else end.how
        was_ready, lived = self._ready, self._clock() - self._started
        self._client, self._ready = None, False
        if self._stopping:
            return
        self.restarts += 1
        self._crashes = 1 if lived > _STEADY else self._crashes + 1
        self._restart_at = self._clock() + RESTART_WAITS[min(self._crashes - 1, len(RESTART_WAITS) - 1)]
        self._listener.worker_lost(how)
        if not was_ready and self._crashes >= LOAD_CRASHES_UNTIL_SAFE:
            message = f"the model's process {how} while it loaded the model; check memory, or use a smaller model"
            self._enter_safe(ModelFailure("worker_died", message))
        self._listener.model_changed()


def _failure_of(output: bytes, code: int) -> ModelFailure:
    """What a failed `edged model pull --json` says about it."""
    try:
        error = json.loads(output)["error"]
        return ModelFailure(str(error["code"]), str(error["message"]))
    except (ValueError, KeyError, TypeError):
        return ModelFailure("pull_failed", f"the model could not be fetched (exit code {code}); see the log")
