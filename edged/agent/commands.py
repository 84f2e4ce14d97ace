"""Carries out the commands of operators. Owned by the agent's main thread.

Each leaves the device in the same state when it is carried out twice: a command whose final could not be stored before
a power cut is carried out again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from edged.agent.drain import Drain
from edged.agent.idle_model import IdleModel
from edged.agent.model_state import Outcome
from edged.agent.prompt_queue import PromptQueue
from edged.agent.supervisor import Supervisor
from edged.agent.trial_runner import TrialRunner
from edged.config.schema import Settings
from edged.core.errors import BadValue, ConfigError, EdgedError
from edged.core.prompt import Reason
from edged.fleet.desired import DesiredConfig, RestartNeededError
from edged.wire.commands import CommandName


class Done(msgspec.Struct, frozen=True):
    """A command was carried out: a sentence for the operator, and of `diagnostics` the archive in base64."""

    text: str
    archive: str | None = None


class CommandRefused(EdgedError):
    """A command was not carried out; nothing has changed."""

    def __init__(self, reason: Reason, code: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.code = code


@dataclass(frozen=True)
class Commands:
    """See the module. `read_file` reads the owner's file again and raises ConfigError.

    `on_settings` gets new settings, `apply` what happened to the worker; `changed` is called after a change of status.
    """

    queue: PromptQueue
    supervisor: Supervisor
    trials: TrialRunner
    idle: IdleModel
    drain: Drain
    config: DesiredConfig
    read_file: Callable[[], dict[str, Any]]
    on_settings: Callable[[Settings], None]
    apply: Callable[[Iterable[Outcome]], None]
    changed: Callable[[], None]
    diagnostics: Callable[[], Done]

    def execute(self, name: CommandName) -> Done:
        """Carry out one command. Raises CommandRefused."""
        match name:
            case "reload":
                return self._reload()
            case "drain":
                return self._drain()
            case "resume":
                return self._resume()
            case "unload":
                return self._unload()
            case "load":
                return self._load()
            case "diagnostics":
                return self.diagnostics()

    def _reload(self) -> Done:
        self._refuse_in_a_trial()
        try:
            sections = self.config.use_owner(self.read_file())
        except RestartNeededError as error:
            why = f"{error} changed in the device's file, which takes a restart of edged; nothing was applied"
            raise CommandRefused("failed", "restart_needed", why) from None
        except (ConfigError, BadValue) as error:
            raise CommandRefused("failed", "config", f"{error}; nothing was applied") from None
        self.on_settings(self.config.in_force.settings)
        self.changed()
        return Done(f"applied: {', '.join(sections)}" if sections else "nothing has changed in the device's file")

    def _drain(self) -> Done:
        if not self.drain.on:
            self._store_drain(on=True)
        return Done(f"the device accepts no prompts until resume; {self._open} will still be answered")

    def _resume(self) -> Done:
        if not self.drain.on:
            return Done("the device was not drained")
        self._store_drain(on=False)
        return Done("the device accepts prompts again")

    def _store_drain(self, *, on: bool) -> None:
        try:
            self.drain.set(on=on)
        except sqlite3.Error as error:
            why = f"the journal cannot be written ({error}); free disk space and send the command again"
            raise CommandRefused("unavailable", "not_stored", why) from None
        self.changed()

    def _unload(self) -> Done:
        if self.supervisor.unloaded:
            return Done("the model is not in memory")
        self._refuse_in_a_trial()
        if self.queue.open:
            why = f"{self._open} must be answered first; drain the device, or send the command again later"
            raise CommandRefused("busy", "in_use", why)
        if not self.supervisor.ready:
            raise CommandRefused("failed", "not_loaded", "no model is loaded; see the device's health")
        self.idle.unload_now()
        return Done("the model was unloaded; the next prompt or the command load loads it")

    def _load(self) -> Done:
        self._refuse_in_a_trial()
        if self.supervisor.ready:
            return Done("the model is loaded")
        if self.supervisor.unloaded:
            self.apply(self.supervisor.wake())
        elif self.supervisor.state == "safe":
            self.apply(self.supervisor.use(self.supervisor.order))
        return Done("the model is being loaded; the device's health shows when it is ready")

    def _refuse_in_a_trial(self) -> None:
        if self.trials.active:
            raise CommandRefused("busy", "trial", "a config layer is on trial; send the command again after it")

    @property
    def _open(self) -> str:
        count = self.queue.open
        return f"{count} open prompt{'' if count == 1 else 's'}"
