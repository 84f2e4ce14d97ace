"""Maintains the journal: writes what it could not store, marks what was delivered, resends, deletes what is old.

Owned by the agent's main thread. What cannot be written, on a full disk for one, is retried later; nothing here ends
the daemon.
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
from edged.link.attempt import SESSION_EXPIRY
from edged.link.outbound import Outbound

_DELETE_EVERY = 60.0
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
        self._stored_at = self._deleted_at = now
        self._log = logs.logger()
        self.write_error: str | None = None

    def turn(self, now: float) -> bool:
        """One turn of the loop; returns whether `write_error` has changed."""
        if now - self._stored_at > _STORE_EVERY:
            self._stored_at = now
            with suppress(sqlite3.Error, OSError):  # retried in a second
                if self._journal.reattach():
                    self._config.store()
            self._queue.retry_unstored()
            if self._journal.write_error is not None:
                with suppress(sqlite3.Error):  # whether there is space again
                    self._journal.set_fact("wall_floor", self._wall.reliable())
        if now - self._deleted_at > _DELETE_EVERY:
            self._deleted_at = now
            with suppress(sqlite3.Error):  # retried in a minute
                self._delete_old()
        with suppress(sqlite3.Error):  # a file that SQLite found damaged while in use
            self._journal.repair()
        before, self.write_error = self.write_error, self._journal.write_error
        if self.write_error is not None and self.write_error != before:
            self._log.error("the journal cannot be written", error=self.write_error)
        return self.write_error != before

    def delivered(self, token: object) -> None:
        """The broker has a final."""
        if not isinstance(token, int) or self._outbound.holds(
            token
        ):  # the prompt was repeated meanwhile, and its final is on its way again
            return
        with suppress(sqlite3.Error):  # then it is sent again
            self._journal.delivered(token)

    def resend(self) -> None:
        """Send finals that the broker has not acknowledged and that are not on their way."""
        for entry in self._journal.undelivered():
            if entry.final is not None and not self._outbound.holds(entry.seq):
                self._replies.send_final(entry.job.reply_to, entry.job.id, entry.final, entry.seq)

    def _delete_old(self) -> None:
        now, remember = self._wall.reliable(), self._config.in_force.settings.limits.remember
        self._journal.delete_old(now - remember, now - max(remember, SESSION_EXPIRY))
        self._journal.set_fact("wall_floor", now)
        self._journal.shrink_log()
        self.resend()
