"""Keeps the journal in order: what it could not take, what was delivered, what to send again, what to forget.

Owned by the agent's main thread. What the journal refuses, on a full disk for one, is tried again later; nothing here
ends the daemon.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress

from edged.agent import logs
from edged.agent.journal import Journal
from edged.agent.prompt_queue import PromptQueue
from edged.agent.replies import Replies
from edged.agent.wall_clock import WallClock
from edged.fleet.desired import DesiredConfig
from edged.link.connection import SESSION_EXPIRY
from edged.link.outbound import Outbound

_SWEEP_EVERY = 60.0
_STORE_EVERY = 1.0


class JournalMaintenance:
    """See the module. `write_error`: why the journal cannot be written; None while it can."""

    def __init__(
        self,
        journal: Journal,
        queue: PromptQueue,
        replies: Replies,
        outbound: Outbound,
        wall: WallClock,
        config: DesiredConfig,
        now: float,
    ) -> None:
        self._journal = journal
        self._queue = queue
        self._replies = replies
        self._outbound = outbound
        self._wall = wall
        self._config = config
        self._stored = self._swept = now
        self._log = logs.logger()
        self.write_error: str | None = None

    def turn(self, now: float) -> bool:
        """One round of the loop; gives whether `write_error` is another."""
        if now - self._stored > _STORE_EVERY:
            self._stored = now
            self._queue.retry_unstored()
        if now - self._swept > _SWEEP_EVERY:
            self._swept = now
            with suppress(sqlite3.Error):  # the next minute tries again
                self._sweep()
        before, self.write_error = self.write_error, self._journal.write_error
        if self.write_error is not None and self.write_error != before:
            self._log.error("the journal cannot be written", error=self.write_error)
        return self.write_error != before

    def delivered(self, token: object) -> None:
        """The broker has a final."""
        if self._outbound.holds(token):  # it was asked for again meanwhile, and the newest copy is on its way
            return
        with suppress(sqlite3.Error):  # it is sent again, then
            self._journal.delivered(int(str(token)))

    def resend(self) -> None:
        """Sends finals that the broker has not confirmed and that are not on their way."""
        for entry in self._journal.undelivered():
            if entry.final is not None and not self._outbound.holds(entry.seq):
                self._replies.send_final(entry.job.reply_to, entry.job.id, entry.final, entry.seq)

    def _sweep(self) -> None:
        sure, remember = self._wall.reliable(), self._config.in_force.settings.limits.remember
        self._journal.forget(sure - remember, sure - max(remember, SESSION_EXPIRY))
        self._journal.set_fact("wall_floor", sure)
        self.resend()
