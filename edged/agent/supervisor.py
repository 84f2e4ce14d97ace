"""Keeps one worker with one model alive: starts it, replaces it when it ends or hangs, fetches what is missing.

Owned by the agent's main thread, driven by `tick` and by events from the mailbox; each call returns what happened.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edged.agent.last_good import LastGood
from edged.agent.model_pull import ModelPull, PullEnded
from edged.agent.model_state import (
    EnteredSafe,
    Fallback,
    FellBack,
    LoadProgress,
    ModelFailure,
    ModelReady,
    ModelState,
    Outcome,
    PromptProgress,
    WorkerLost,
)
from edged.config import schema as settings
from edged.core.model_source import REMOTE, source_kind
from edged.core.prompt import ModelInfo
from edged.wire import documents
from edged.worker import frames
from edged.worker.client import Exited, WorkerClient, WorkerEvent

PING_EVERY = 5.0
HANG_DEADLINE = 20.0  # seconds without a frame once the model is loaded
LOAD_DEADLINE = 900.0
RESTART_WAITS = (0.0, 1.0, 5.0, 15.0, 60.0)  # seconds, by exits in a row
LOAD_CRASHES_UNTIL_SAFE = 3
RETRY_SAFE = (30.0, 60.0, 300.0, 900.0)
_STEADY = 60.0  # seconds that a worker ran, after which earlier exits no longer count
_STOP_WITHIN = 5.0


def load_order(model: settings.Model, models: Path) -> frames.Load:
    """The frame that makes a worker load a model; `models` is the store's folder."""
    return frames.Load(
        source=model.source,
        digest=model.digest,
        bits=model.bits,
        template=model.template,
        backend=model.backend,
        context=model.context,
        threads=model.threads,
        store=str(models),
    )


class Supervisor:
    """See the module. `post` puts an event into the mailbox, from any thread.

    `last_good` gives the models to load where that in force cannot be.
    """

    def __init__(
        self,
        order: frames.Load,
        pull_arguments: tuple[str, ...],
        post: Callable[[WorkerEvent | PullEnded], None],
        clock: Callable[[], float],
        command: tuple[str, ...] | None = None,
        last_good: LastGood | None = None,
    ) -> None:
        self._order = order
        self._last_good = last_good or LastGood(tuple)
        self._pull_arguments = pull_arguments
        self._post = post
        self._clock = clock
        self._command = command
        self._pull = ModelPull(order.source, pull_arguments, post, digest=order.digest)
        self._suspended = False
        self._client: WorkerClient | None = None
        self._generation = 0
        self._ready = False
        self._started_at = 0.0
        self._last_frame_at = 0.0
        self._last_ping_at = 0.0
        self._restart_at: float | None = None
        self._exits = 0
        self._retries = 0
        self._fetched = False  # a pull has just succeeded: a model that is still missing after it is a failure
        self._stopping = False
        self._hung = False
        self._unloading: WorkerClient | None = None  # killed by `unload`; its memory is free when its exit was posted
        self._wake_wanted = False
        self._load_seconds: float | None = None  # of the last load
        self.unloaded = False
        """Whether the model was unloaded because nothing needed it; a worker is started by `wake`."""
        self.waking = False
        """Whether the model is being loaded after `wake`."""
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
        """Whether a worker runs that accepts prompts."""
        return self._ready

    @property
    def load_left(self) -> float:
        """Seconds until a worker accepts prompts, as the last load took; 0 where one does, or no load was measured."""
        if self._ready or self._load_seconds is None:
            return 0.0
        elapsed = self._clock() - self._started_at if self._client is not None else 0.0
        return max(0.0, self._load_seconds - elapsed)

    @property
    def fallback(self) -> Fallback | None:
        """Why another model than that in force serves; None where the model in force does, or none."""
        fallback = self._last_good.fallback
        return None if fallback is None or self._order == fallback.wanted or self.state == "safe" else fallback

    @property
    def unusable(self) -> ModelFailure | None:
        """Why there is no usable model; None while there is one, or while the first is loaded."""
        return self.failure if self.state == "safe" else None

    def document(self) -> documents.ModelState:
        """The model's part of the health document."""
        failure, fallback = self.unusable, self.fallback
        return documents.ModelState(
            state=self.state,
            source=self._order.source,
            instead_of=fallback.wanted.source if fallback else None,
            info=self.info,
            loaded=self._ready,
            doing=self.doing or None,
            error_code=failure.code if failure else None,
            error_message=failure.message if failure else None,
            restarts=self.restarts,
        )

    def start(self) -> list[Outcome]:
        """Start the first worker."""
        return self._launch()

    def stop(self) -> None:
        """End worker and pull; what they post after this is ignored."""
        self._stopping = True
        client, self._client = self._client, None
        if client is not None:
            client.kill()
            client.join(_STOP_WITHIN)
        if self._unloading is not None:
            self._unloading.join(_STOP_WITHIN)
        self._pull.stop()

    def send(self, frame: frames.ToWorker) -> None:
        """Hand a frame to the worker, if one is ready."""
        if self._client is not None and self._ready:
            self._client.send(frame)

    # ---- idle -------------------------------------------------------------------------------------------------------

    def unload(self) -> None:
        """End the worker, which has no prompts. The state stays `online`, and `info` is that of the model."""
        client = self._client
        self._drop_client()
        self._unloading, self.unloaded, self._restart_at = client, True, None

    def wake(self) -> list[Outcome]:
        """Start a worker again after `unload`, once the memory of the old one is free."""
        self.unloaded, self.waking, self.doing = False, True, "loading the model after an idle time"
        if self._unloading is not None:
            self._wake_wanted = True
            return [LoadProgress(self.doing)]
        return [LoadProgress(self.doing), *self._launch()]

    def _unloaded_exited(self) -> list[Outcome]:
        """The worker that `unload` killed has ended."""
        self._unloading = None
        wanted, self._wake_wanted = self._wake_wanted, False
        return self._launch() if wanted else []

    # ---- another model ----------------------------------------------------------------------------------------------

    @property
    def order(self) -> frames.Load:
        """What the worker loads, also after its end."""
        return self._order

    def new_client(self) -> WorkerClient:
        """A worker beside this one, not started; its generation is its own."""
        self._generation += 1
        return WorkerClient(self._generation, self._post, self._command)

    def suspend(self) -> None:
        """End the worker, and start none until `resume`, `take_over` or `use`. The state stays what it was."""
        self._suspended = True
        self._restart_at = None
        self.unloaded = self.waking = self._wake_wanted = False
        self._drop_client()
        self._pull.stop()

    def resume(self) -> list[Outcome]:
        """Start the worker again after `suspend`."""
        return self.use(self._order) if self._suspended else []

    def take_over(
        self, client: WorkerClient, order: frames.Load, info: ModelInfo, load_seconds: float
    ) -> list[Outcome]:
        """A worker that was loaded beside this one, in `load_seconds`, serves from now on; this one ends."""
        self.suspend()
        self._set_order(order)
        self._client = client
        self._last_frame_at = self._last_ping_at = self._clock()
        self._started_at = self._clock() - load_seconds
        return self._loaded(info)

    def adopted(self) -> None:
        """The model that serves is the one in force."""
        self._last_good.reset()

    def use(self, order: frames.Load) -> list[Outcome]:
        """End the worker, and start one that loads this."""
        self.suspend()
        self._set_order(order)
        return self._launch()

    def _set_order(self, order: frames.Load) -> None:
        self._suspended, self._exits, self._retries, self._hung, self._fetched = False, 0, 0, False, False
        self._use_order(order)

    def _use_order(self, order: frames.Load) -> None:
        if order != self._order:
            self._order = order
            name = f"model-{self._generation}"
            self._pull = ModelPull(order.source, self._pull_arguments, self._post, name=name, digest=order.digest)

    # ---- events -----------------------------------------------------------------------------------------------------

    def next_tick(self) -> float:
        """The monotonic time at which `tick` has something to do."""
        if self._restart_at is not None:
            return self._restart_at
        if not self._ready or self._suspended:
            return self._clock() + 1.0
        return min(self._last_ping_at + PING_EVERY, self._last_frame_at + HANG_DEADLINE)

    def tick(self, *, stalled: bool = False) -> list[Outcome]:
        """Ping, notice a hang, restart when it is time.

        `stalled`: the agent itself made no progress (on a slow disk, say). The worker's frames lie unread, so their
        absence says nothing about the worker.
        """
        now = self._clock()
        if stalled:
            self._last_frame_at = now
        if self._restart_at is not None and now >= self._restart_at:
            self._restart_at = None
            return self._launch()
        if self._client is not None:
            self._check_progress(self._client, now)
        return []

    def _check_progress(self, client: WorkerClient, now: float) -> None:
        deadline = HANG_DEADLINE if self._ready else LOAD_DEADLINE
        if now - self._last_frame_at > deadline:
            self._hung = True
            client.kill()
        elif self._ready and now - self._last_ping_at >= PING_EVERY:
            self._last_ping_at = now
            client.send(frames.Ping())

    def process_worker(self, event: WorkerEvent) -> list[Outcome]:
        """A frame of a worker, or its end. Those of an earlier worker are ignored."""
        if self._unloading is not None and event.generation == self._unloading.generation:
            return self._unloaded_exited() if isinstance(event.event, Exited) else []
        if self._client is None or event.generation != self._client.generation:
            return []
        self._last_frame_at = self._clock()
        return self._outcomes(event.event)

    def _outcomes(self, event: frames.FromWorker | Exited) -> list[Outcome]:
        match event:
            case Exited() as exited:
                return self._exited(exited)
            case frames.Loading(doing=doing):
                self.doing = doing
                return [LoadProgress(doing)]
            case frames.Loaded(info=info):
                return self._loaded(info)
            case frames.NotLoaded(code=code, message=message):
                return self._not_loaded(ModelFailure(code, message))
            case frames.Progress():
                return []
            case frame:
                if isinstance(frame, frames.Finished):
                    self._exits = 0  # a worker that finishes prompts is in no crash loop
                return [PromptProgress(frame)]

    def process_pull(self, event: PullEnded) -> list[Outcome]:
        """The pull ended."""
        if self._stopping or not self._pull.ended(event) or self._suspended:
            return []
        if event.failure is not None:
            return self._give_up(event.failure)
        self._fetched = True
        return self._launch()

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _launch(self) -> list[Outcome]:
        self._generation += 1
        self._client = WorkerClient(self._generation, self._post, self._command)
        self._ready = False
        self._hung = False
        self._started_at = self._last_frame_at = self._last_ping_at = self._clock()
        try:
            self._client.start()
        except OSError as error:
            self._client = None
            return self._enter_safe(
                ModelFailure("no_worker", f"the worker process cannot be started: {error.strerror}")
            )
        self._client.send(self._order)
        return []

    def _loaded(self, info: ModelInfo) -> list[Outcome]:
        self._ready = True
        self._fetched = self.waking = False
        self._retries = 0
        self._load_seconds = self._clock() - self._started_at
        self.info, self.failure, self.state, self.doing = info, None, "online", ""
        return [ModelReady(info)]

    def _not_loaded(self, failure: ModelFailure) -> list[Outcome]:
        self._drop_client()
        fetched, self._fetched = self._fetched, False
        if failure.code == "missing" and self._fetchable and not fetched and not self._pull.running:
            return self._start_pull()
        return self._give_up(failure)

    def _give_up(self, failure: ModelFailure) -> list[Outcome]:
        """The model cannot be loaded: load the next one that was good, or be safe and try all of them again later."""
        following = self._last_good.following(self._order, failure)
        if following is None:
            return self._enter_safe(failure)
        self._use_order(following)
        self._exits, self._restart_at, self.doing = 0, None, "loading the last good model"
        return [FellBack(failure, following.source), *self._launch()]

    @property
    def _fetchable(self) -> bool:
        """Whether a pull may bring the model; not one that is used instead. A bare name may be one of the catalog."""
        return self._last_good.fallback is None and source_kind(self._order.source) in REMOTE | {"name"}

    def _drop_client(self) -> None:
        client, self._client = self._client, None
        self._ready = False
        if client is not None:
            client.kill()

    def _start_pull(self) -> list[Outcome]:
        self.doing = "fetching"
        try:
            self._pull.start()
        except OSError as error:
            return self._give_up(ModelFailure("pull_failed", f"the model cannot be fetched: {error.strerror}"))
        return [LoadProgress("fetching")]

    def _enter_safe(self, failure: ModelFailure) -> list[Outcome]:
        if (fallback := self._last_good.reset()) is not None:
            self._use_order(fallback.wanted)
            failure = fallback.failure
        wait = RETRY_SAFE[min(self._retries, len(RETRY_SAFE) - 1)]
        self._retries += 1
        self._restart_at = self._clock() + wait
        self.waking = False
        self.info, self.failure, self.state, self.doing = None, failure, "safe", ""
        return [EnteredSafe(failure)]

    def _exited(self, exited: Exited) -> list[Outcome]:
        how = "made no progress and was killed" if self._hung else exited.how
        was_ready, ran_for = self._ready, self._clock() - self._started_at
        self._client, self._ready = None, False
        if self._stopping:
            return []
        self.restarts += 1
        self._exits = 1 if ran_for > _STEADY else self._exits + 1
        self._restart_at = self._clock() + RESTART_WAITS[min(self._exits - 1, len(RESTART_WAITS) - 1)]
        if was_ready or self._exits < LOAD_CRASHES_UNTIL_SAFE:
            return [WorkerLost(how)]
        message = f"the worker process {how} while it loaded the model; check memory, or use a smaller model"
        return [WorkerLost(how), *self._give_up(ModelFailure("worker_died", message))]
