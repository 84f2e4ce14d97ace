"""Unloads the model when no prompt was open for `model.keep_alive`, and loads it again when one is accepted.

Owned by the agent's main thread. The worker process ends, so its memory is free; the status stays `online`.
"""

from __future__ import annotations

from collections.abc import Callable

from edged.agent import logs
from edged.agent.model_state import Outcome
from edged.agent.prompt_queue import PromptQueue
from edged.agent.supervisor import Supervisor
from edged.agent.trial_runner import TrialRunner
from edged.fleet.desired import DesiredConfig


class IdleModel:
    """See the module. `unloaded` is called after the model was unloaded."""

    def __init__(
        self,
        supervisor: Supervisor,
        queue: PromptQueue,
        trials: TrialRunner,
        config: DesiredConfig,
        clock: Callable[[], float],
        unloaded: Callable[[], None],
    ) -> None:
        self._supervisor = supervisor
        self._queue = queue
        self._trials = trials
        self._config = config
        self._clock = clock
        self._unloaded = unloaded
        self._log = logs.logger()
        self._idle_since: float | None = None
        self._unloaded_by_command = False

    def next_tick(self) -> float | None:
        """The monotonic time at which the model is unloaded."""
        if self._idle_since is None or self._keep_alive is None:
            return None
        return self._idle_since + self._keep_alive

    def tick(self) -> list[Outcome]:
        """Load the model where it is needed; unload it where it was not for long enough."""
        if self._supervisor.unloaded:
            forever = self._keep_alive is None and not self._unloaded_by_command
            needed = self._queue.open > 0 or self._trials.waiting or forever
            return self._supervisor.wake() if needed else []
        self._unloaded_by_command = False
        now, keep_alive = self._clock(), self._keep_alive
        if not self._supervisor.ready or self._queue.open or self._trials.active or keep_alive is None:
            self._idle_since = None
            return []
        if self._idle_since is None:
            self._idle_since = now
        if now - self._idle_since >= keep_alive:
            self._unload(now - self._idle_since)
        return []

    def unload_now(self) -> None:
        """Unload the model, which is loaded and has no prompt, until a prompt, a trial or a command needs it."""
        self._unloaded_by_command = True
        self._unload(0.0 if self._idle_since is None else self._clock() - self._idle_since)

    @property
    def _keep_alive(self) -> float | None:
        return self._config.in_force.settings.model.keep_alive

    def _unload(self, idle: float) -> None:
        self._idle_since = None
        self._queue.worker_replaced()
        self._supervisor.unload()
        self._log.info("model unloaded", idle_s=round(idle, 1))
        self._unloaded()
