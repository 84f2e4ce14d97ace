"""Whether an operator has drained the device: no prompt is accepted until it is resumed, also after a restart.

Owned by the agent's main thread. Prompts that were accepted before are answered.
"""

from __future__ import annotations

from edged.agent.journal import Journal
from edged.agent.model_state import ModelState
from edged.core.health import Finding

_FACT = "drained"
_ADVICE = "an operator drained this device, so it accepts no prompts; the command resume ends that"


class Drain:
    """See the module. `load` reads what an earlier run stored."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.on = False

    def load(self) -> None:
        """Read the stored state. Raises sqlite3.Error."""
        self.on = self._journal.fact(_FACT, 0.0) != 0.0

    def set(self, *, on: bool) -> None:
        """Store and use the new state. Raises sqlite3.Error; then nothing has changed."""
        self._journal.set_fact(_FACT, float(on))
        self.on = on

    def status(self, state: ModelState) -> str:
        """The status word of a device whose model is in this state; without a usable one it stays `safe`."""
        return "draining" if self.on and state != "safe" else state

    @property
    def unavailable(self) -> str | None:
        """Why no prompt is accepted."""
        return "an operator drained this device; send the prompt to another device or later" if self.on else None

    def findings(self, now: float, known: tuple[Finding, ...]) -> tuple[Finding, ...]:
        """The finding while the device is drained. It keeps the `since` of before."""
        if not self.on:
            return ()
        since = {finding.code: finding.since for finding in known}
        return (Finding("drained", since.get("drained", now), None, None, _ADVICE),)
