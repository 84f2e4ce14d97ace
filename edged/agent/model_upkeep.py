"""Records which model serves, and removes old models from the store after a change.

Owned by the agent's main thread.
"""

from __future__ import annotations

import subprocess
import threading

import msgspec

from edged.agent import logs, model_pull
from edged.agent.supervisor import Supervisor
from edged.agent.trial_runner import TrialRunner
from edged.config.schema import Model
from edged.fleet.desired import DesiredConfig
from edged.fleet.slots import SlotStore


class ModelUpkeep:
    """See the module. `pull_arguments` name the config file. `tick` is for each turn of the loop."""

    def __init__(
        self,
        slots: SlotStore,
        supervisor: Supervisor,
        trials: TrialRunner,
        config: DesiredConfig,
        pull_arguments: tuple[str, ...],
    ) -> None:
        self._slots = slots
        self._supervisor = supervisor
        self._trials = trials
        self._config = config
        self._pull_arguments = pull_arguments
        self._log = logs.logger()
        self._seen: tuple[Model, str, int] | None = None
        self._keep: int | None = None

    def tick(self) -> None:
        """Record the model that serves if it is new; the oldest models are removed if that replaced another."""
        supervisor, settings = self._supervisor, self._config.in_force.settings
        info = supervisor.info
        if not supervisor.ready or info is None or self._trials.active or supervisor.fallback is not None:
            return
        seen = (settings.model, info.digest, settings.models.keep)
        if seen != self._seen:
            self._seen, kept = seen, self._keep
            self._keep = settings.models.keep
            replaced = self._record(msgspec.structs.replace(settings.model, digest=info.digest, keep_alive=None))
            if replaced or kept not in (None, self._keep):
                self._prune()

    def _record(self, model: Model) -> bool:
        """Whether another model was in force before. Where the slots cannot be written they stay what they were."""
        before = self._slots.slots
        after = before.with_served(model)
        if after == before:
            return False
        try:
            self._slots.record(after)
        except OSError as error:
            self._log.error("the slots of models cannot be stored; nothing is removed", error=error.strerror)
            return False
        return before.in_force is not None

    def _prune(self) -> None:
        """Start `edged model prune`; what it does is logged."""
        command = [*model_pull.COMMAND, "prune", *self._pull_arguments]
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        except OSError as error:
            self._log.warning("old models cannot be removed", error=error.strerror)
            return
        threading.Thread(target=self._log_end, args=(process,), name="model-prune", daemon=True).start()

    def _log_end(self, process: subprocess.Popen[str]) -> None:
        said, _ = process.communicate()
        log = self._log.info if process.returncode == 0 else self._log.warning
        log("models.keep", exit_code=process.returncode, said=said.strip()[-2000:])
