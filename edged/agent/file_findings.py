"""Findings about the agent's own files: a damaged journal or layers, rights that others should not have.

Owned by the agent's main thread. A damage is a finding until the next start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from edged import state_files
from edged.agent import logs
from edged.agent.journal import Journal
from edged.core.health import Finding
from edged.link.access import exposed_password


class FileFindings:
    """See the module. `event` publishes a code and a message."""

    def __init__(
        self, journal: Journal, state_dir: Path, password_file: str | None, event: Callable[[str, str], None]
    ) -> None:
        self._journal = journal
        self._state_dir = state_dir
        self._password_file = password_file
        self._event = event
        self._log = logs.logger()
        self._reported: dict[str, str] = {}
        self._dropped = 0
        self._moved = 0

    def check(self, layers_damage: str | None = None, trust_damage: str | None = None) -> bool:
        """Log what is new and publish an event for it. Returns whether there was something."""
        before = dict(self._reported)
        if self._journal.recovery is not None:
            self._report("journal_damaged", str(self._journal.recovery))
        elif self._journal.dropped > self._dropped:
            self._report("journal_damaged", f"{self._journal.dropped} damaged rows of the journal were dropped")
        self._dropped = self._journal.dropped
        if self._journal.moved > self._moved:
            self._moved = self._journal.moved
            what = f"{self._state_dir} was removed or replaced while in use"
            self._report("state_dir_replaced", f"{what}; the journal and the config layers are written there again")
        if layers_damage is not None:
            self._report("layers_damaged", layers_damage)
        if trust_damage is not None:
            self._report("trust_damaged", f"{trust_damage}; stop edged and run edged trust reset")
        return self._reported != before

    def findings(self, now: float, known: Sequence[Finding]) -> tuple[Finding, ...]:
        """The findings that hold now. One that held before keeps its `since`."""
        since = {finding.code: finding.since for finding in known}
        advice = {code: f"{text}; check the disk" for code, text in self._reported.items()}
        if self._password_file is not None and (mode := exposed_password(self._password_file)) is not None:
            advice["password_exposed"] = (
                f"{self._password_file} has the mode {mode:04o}: others can read the password; run chmod 600 on it"
            )
        if self._state_dir.is_dir() and not state_files.make_private(self._state_dir):
            advice["state_dir_exposed"] = f"{self._state_dir} cannot be closed to other users; run chmod 700 on it"
        return tuple(Finding(code, since.get(code, now), None, None, text) for code, text in advice.items())

    def _report(self, code: str, message: str) -> None:
        if self._reported.get(code) != message:
            self._reported[code] = message
            self._log.error(message)
            self._event(code, message)
