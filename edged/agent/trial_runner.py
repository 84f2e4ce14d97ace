"""Carries out what a trial (`fleet/trial.py`) asks for: children that fetch and verify, a second worker, the switch.

Owned by the agent's main thread, driven by `tick` and by events from the mailbox; each call returns what happened to
the worker that serves. It decides nothing: the machine does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path

from edged.agent import expectation_check, logs
from edged.agent.config_updates import ConfigUpdates
from edged.agent.events import Event as MailboxEvent
from edged.agent.expectation_check import ExpectationChecked
from edged.agent.model_pull import ModelPull, PullEnded, PullProgress
from edged.agent.model_state import Outcome
from edged.agent.prompt_queue import PromptQueue
from edged.agent.supervisor import Supervisor, load_order
from edged.core.golden import Golden
from edged.core.prompt import ModelInfo, Request, Sampling
from edged.device.files import GarbageError
from edged.device.memory import memory
from edged.fleet import trial_events as t
from edged.fleet.desired import DesiredConfig, Postponed, TrialOrder
from edged.fleet.trial import Trial
from edged.worker import frames
from edged.worker.client import Exited, WorkerClient, WorkerEvent

FINISH_WITHIN = 10.0  # seconds that running prompts have before their worker ends; then they start again on the next
ROLLOUTS_EVERY = 2.0  # seconds between two looks at the roll-outs that wait
REPORT_EVERY = 2.0  # seconds between two reports of the same step


def available_bytes() -> int:
    """Memory of the board that a new program could have; 0 where it cannot be read."""
    try:
        return memory(Path("/")).available_bytes
    except (OSError, GarbageError):
        return 0


class TrialRunner:
    """See the module. `pull_arguments` name the config file, `models` is the store's folder."""

    def __init__(
        self,
        config: DesiredConfig,
        updates: ConfigUpdates,
        supervisor: Supervisor,
        queue: PromptQueue,
        pull_arguments: tuple[str, ...],
        models: Path,
        post: Callable[[MailboxEvent], None],
        clock: Callable[[], float],
        wall: Callable[[], float],
        available: Callable[[], int] = available_bytes,
    ) -> None:
        self._config = config
        self._updates = updates
        self._supervisor = supervisor
        self._queue = queue
        self._pull_arguments = pull_arguments
        self._models = models
        self._post = post
        self._clock = clock
        self._wall = wall
        self._available = available
        self._log = logs.logger()
        self._link_up = False
        self._waiting: dict[str, TrialOrder] = {}  # by layer, until the present model is loaded, or cannot be
        self._order: TrialOrder | None = None
        self._trial: Trial | None = None
        self._pull: ModelPull | None = None
        self._client: WorkerClient | None = None  # with the new model, until it serves
        self._new: frames.Load | None = None
        self._old: frames.Load | None = None
        self._info: ModelInfo | None = None
        self._load_began = 0.0
        self._load_seconds = 0.0
        self._serves = False
        self._clear_by: float | None = None  # running prompts may finish until then
        self._then_serve = False
        self._check = 0
        self._trials = 0
        self._events: deque[t.Event] = deque()
        self._outcomes: list[Outcome] = []
        self._reported: tuple[str, int] = ("", 0)
        self._reported_at = 0.0
        self._rollouts_at = 0.0

    @property
    def active(self) -> bool:
        """Whether a trial runs."""
        return self._trial is not None

    @property
    def waiting(self) -> bool:
        """Whether a trial waits for the present model to be loaded."""
        return bool(self._waiting)

    # ---- pushes -----------------------------------------------------------------------------------------------------

    def process_push(self, name: str, payload: bytes) -> list[Outcome]:
        """A layer was pushed, or removed with an empty payload."""
        self._waiting.pop(name, None)
        match self._updates.process_push(name, payload, busy=self._queue.open > 0):
            case TrialOrder() as order:
                self._begin(order)
            case Postponed(why=str() as why):
                self._events.append(t.Withdrawn(why))
        return self._settle()

    def model_settled(self) -> list[Outcome]:
        """The worker that serves has loaded its model, or cannot: the pushes that waited for that are processed."""
        waiting, self._waiting = self._waiting, {}
        return [outcome for order in waiting.values() for outcome in self.process_push(order.layer, order.payload)]

    def _begin(self, order: TrialOrder) -> None:
        if self._supervisor.state == "starting" or self._supervisor.unloaded or self._supervisor.waking:
            self._waiting[order.layer] = order
            self._config.wait(order, "the device loads its present model first", self._wall())
            self._updates.publish_report()
            return
        try:
            self._config.begin(order, self._wall())
        except OSError as error:
            why = f"the trial cannot be written down ({error.strerror}); free disk space and push again"
            self._updates.carry_out(self._config.reject(order.layer, why, self._wall(), order.revision))
            return
        info = self._supervisor.info
        size = info.weights_bytes if info is not None else 0
        self._trials += 1
        self._order = order
        self._old = self._supervisor.order
        self._new = load_order(order.target.model, self._models)
        self._trial = Trial(order.steps, order.target, size, self._available, self._clock, link_up=self._link_up)
        self._log.info("config trial", layer=order.layer, revision=order.revision, model=order.target.model.source)
        self._carry_out(self._trial.start())

    # ---- events -----------------------------------------------------------------------------------------------------

    def process_pull(self, event: PullEnded | PullProgress) -> list[Outcome] | None:
        """News of a child; None where it is not of one of the trial's."""
        pull = self._pull
        if pull is None or not pull.owns(event):
            return None
        if isinstance(event, PullProgress):
            self._events.append(t.Progress(event.share))
            return self._settle()
        pull.ended(event)
        self._pull = None
        if event.failure is not None:
            self._events.append(t.Failed(event.failure.code, event.failure.message))
        elif self._trial is not None and self._trial.state == "verify":
            self._events.append(t.Verified(event.size))
        else:
            self._events.append(t.Fetched())
        return self._settle()

    def process_worker(self, event: WorkerEvent) -> list[Outcome] | None:
        """A frame of the worker with the new model, or its end; None where it is another worker's."""
        client = self._client
        if client is None or event.generation != client.generation:
            return None
        match event.event:
            case Exited() as exited:
                self._client = None
                self._events.append(t.Exited(exited.how))
            case frames.Loaded(info=info):
                self._info, self._load_seconds = info, self._clock() - self._load_began
                self._events.append(t.Loaded())
            case frames.NotLoaded(code=code, message=message):
                self._events.append(t.Failed(code, message))
            case frames.Finished(key=key, final=final):
                self._events.append(t.Answered(_index(key), final))
            case frames.Refused(key=key, message=message):
                self._events.append(t.Refused(_index(key), message))
        return self._settle()

    def process_checked(self, event: ExpectationChecked) -> list[Outcome]:
        """An answer was matched with what is expected."""
        if event.number == self._check and self._trial is not None:
            self._events.append(t.Checked(len(self._trial.results), event.why))
        return self._settle()

    def worker_lost(self, how: str) -> list[Outcome]:
        """The worker that serves ended."""
        if self._serves:
            self._events.append(t.Exited(how))
        return self._settle()

    def link_changed(self, *, up: bool) -> list[Outcome]:
        """The broker was connected, or lost."""
        self._link_up = up
        self._events.append(t.LinkChanged(up))
        return self._settle()

    def next_tick(self) -> float | None:
        """The monotonic time at which `tick` has something to do; None where no trial runs."""
        if self._trial is None:
            return None
        due = (self._trial.next_tick(), self._clear_by)
        return min((moment for moment in due if moment is not None), default=None)

    def tick(self) -> list[Outcome]:
        """What is due now."""
        if self._trial is None:
            return self._apply_due()
        if self._clear_by is not None and (self._queue.submitted == 0 or self._clock() >= self._clear_by):
            self._cleared()
        self._carry_out(self._trial.tick())
        return self._settle()

    def _apply_due(self) -> list[Outcome]:
        """Apply the roll-outs whose time has come; they are looked at every few seconds."""
        now = self._clock()
        if self._waiting or now < self._rollouts_at:
            return []
        self._rollouts_at = now + ROLLOUTS_EVERY
        outcomes: list[Outcome] = []
        for name, payload in self._config.due(self._wall(), busy=self._queue.open > 0):
            if self._trial is None:
                outcomes += self.process_push(name, payload)
        return outcomes

    def stop(self) -> None:
        """End what the trial started. It counts as failed at the next start."""
        if self._pull is not None:
            self._pull.stop()
        self._drop_client()
        self._trial = self._order = None

    def _settle(self) -> list[Outcome]:
        """Process the events that wait, with all that follows from them; gives what happened to the worker."""
        while self._events:
            event = self._events.popleft()
            if self._trial is not None:
                self._carry_out(self._trial.process(event))
        self._report()
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    # ---- actions ----------------------------------------------------------------------------------------------------

    def _carry_out(self, actions: list[t.Action]) -> None:
        for action in actions:
            match action:
                case t.Fetch():
                    self._run_child("pull")
                case t.Verify():
                    self._run_child("show")
                case t.Clear():
                    self._clear(then_serve=False)
                case t.Serve():
                    self._clear(then_serve=True)
                case t.Commit():
                    self._commit()
                case t.Undo(reason=reason):
                    self._undo(reason)
                case _:
                    self._use_client(action)

    def _use_client(self, action: t.Load | t.Unload | t.Ask | t.Check) -> None:
        """What concerns the worker with the new model, and its answers."""
        match action:
            case t.Load():
                self._load()
            case t.Unload():
                self._drop_client()
            case t.Ask(index=index, golden=golden):
                self._ask(index, golden)
            case t.Check(expect=expect, answer=answer):
                self._check += 1
                expectation_check.check(self._check, expect, answer, self._post)

    def _run_child(self, verb: str) -> None:
        order = self._order
        if order is None:
            return
        model = order.target.model
        name = model.source if verb == "pull" else self._digest(order)
        # The child packs what it fetches as the new settings say, not as the owner's file does.
        variables = {"EDGED_MODEL_BITS": model.bits, "EDGED_MODEL_BACKEND": model.backend}
        self._pull = ModelPull(
            name,
            self._pull_arguments,
            self._post,
            verb=verb,
            name=f"trial-{self._trials}-{verb}",
            digest=model.digest,
            variables=variables,
            on_progress=self._post if verb == "pull" else None,
        )
        try:
            self._pull.start()
        except OSError as error:
            self._pull = None
            self._events.append(t.Failed("pull_failed", f"the command cannot be started ({error.strerror})"))

    def _digest(self, order: TrialOrder) -> str:
        """What names the model in the store."""
        model = order.target.model
        return model.digest or self._config.digest_of(model.source) or model.source

    def _load(self) -> None:
        if self._new is None or self._trial is None:
            return
        self._log.info("config trial", step="load", memory=self._trial.note)
        self._client, self._load_began = self._supervisor.new_client(), self._clock()
        try:
            self._client.start()
        except OSError as error:
            self._client = None
            self._events.append(t.Failed("no_worker", f"the worker process cannot be started: {error.strerror}"))
            return
        self._client.send(self._new)

    def _ask(self, index: int, golden: Golden) -> None:
        if self._client is not None:
            sampling = Sampling(max_tokens=golden.max_tokens, temperature=0.0)
            self._client.send(frames.Add(f"golden-{index}", Request(golden.turns, sampling=sampling)))

    def _clear(self, *, then_serve: bool) -> None:
        """Take the prompts off the worker that serves; those that run have some seconds."""
        self._then_serve = then_serve
        self._queue.hold()
        self._clear_by = self._clock() + FINISH_WITHIN
        if self._queue.submitted == 0:
            self._cleared()

    def _cleared(self) -> None:
        self._clear_by = None
        self._queue.worker_replaced()
        if not self._then_serve:
            self._supervisor.suspend()
            self._events.append(t.Cleared())
            return
        client, self._client = self._client, None
        if client is None or self._new is None or self._info is None:
            return  # it ended meanwhile: its end is among the events
        self._serves = True
        self._outcomes += self._supervisor.take_over(client, self._new, self._info, self._load_seconds)
        self._queue.release()
        self._events.append(t.Serving())

    def _commit(self) -> None:
        if self._trial is None:
            return
        try:
            update = self._config.commit(self._trial.results, self._wall())
        except OSError as error:
            self._events.append(t.Failed("no_disk", error.strerror or str(error)))
            return
        self._trial.process(t.Committed())
        self._supervisor.adopted()
        self._forget()
        self._updates.carry_out(update)
        self._push_postponed()

    def _undo(self, reason: str) -> None:
        results = self._trial.results if self._trial is not None else ()
        withdrawn = self._order is not None and self._config.postponed(self._order.layer)
        if self._pull is not None:
            self._pull.stop()
        self._drop_client()
        if self._serves and self._old is not None:
            self._queue.worker_replaced()
            self._outcomes += self._supervisor.use(self._old)
        else:
            self._outcomes += self._supervisor.resume()
        self._forget()
        self._queue.release()
        self._updates.carry_out(self._config.roll_back(reason, results, self._wall(), again=withdrawn))
        self._push_postponed()

    def _forget(self) -> None:
        self._trial = self._order = self._pull = self._new = self._old = self._info = None
        self._serves, self._clear_by, self._reported = False, None, ("", 0)
        self._events.clear()

    def _push_postponed(self) -> None:
        for name, payload in self._config.take_postponed().items():
            if isinstance(order := self._updates.process_push(name, payload, busy=self._queue.open > 0), TrialOrder):
                self._begin(order)

    def _drop_client(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.kill()

    # ---- the report -------------------------------------------------------------------------------------------------

    def _report(self) -> None:
        trial = self._trial
        if trial is None or trial.ended:
            return
        step, now = (trial.state, len(trial.results)), self._clock()
        moved = abs(trial.done - self._config.report.done) >= 0.01 and now - self._reported_at >= REPORT_EVERY
        if step == self._reported and not moved:
            return
        if step[0] != self._reported[0]:
            self._log.info("config trial", step=trial.state)
        self._reported, self._reported_at = step, now
        self._config.progress(trial.state, trial.done, trial.results, self._wall())
        self._updates.publish_report()


def _index(key: str) -> int:
    number = key.removeprefix("golden-")
    return int(number) if number.isdecimal() and len(number) < 5 else -1
