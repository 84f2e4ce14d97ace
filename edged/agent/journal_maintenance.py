"""Keeps the journal in order: what it could not take, what was delivered, what to send again, what to forget.

Owned by the agent's main thread. What the journal refuses, on a full disk for one, is tried again later; nothing here
ends the daemon.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import suppress

from edged.agent import logs
from edged.agent.journal import Journal
from edged.agent.prompt_queue import Desk
from edged.agent.replies import Replies
from edged.agent.wall_clock import WallClock
from edged.link.attempt import SESSION_EXPIRY
from edged.link.outbound import Outbound

_SWEEP_EVERY = 60.0
_STORE_EVERY = 1.0


class Keeper:
    """See the module. `remember` gives the seconds for which finals are kept. `trouble`: why nothing can be stored."""

    def __init__(
        self,
        journal: Journal,
        desk: Desk,
        replies: Replies,
        outbound: Outbound,
        wall: WallClock,
        remember: Callable[[], float],
        now: float,
    ) -> None:
        self._journal = journal
        self._desk = desk
        self._replies = replies
        self._outbound = outbound
        self._wall = wall
        self._remember = remember
        self._stored = self._swept = now
        self._log = logs.logger()
        self.trouble: str | None = None

    def turn(self, now: float) -> bool:
        """One round of the loop; gives whether `trouble` is another."""
        if now - self._stored > _STORE_EVERY:
            self._stored = now
            self._desk.store_again()
        if now - self._swept > _SWEEP_EVERY:
            self._swept = now
            with suppress(sqlite3.Error):  # the next minute tries again
                self._sweep()
        with suppress(sqlite3.Error):  # a file that broke while in use
            self._journal.repair()
        before, self.trouble = self.trouble, self._journal.trouble
        if self.trouble is not None and self.trouble != before:
            self._log.error("the journal cannot be written", error=self.trouble)
        return self.trouble != before

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
                self._replies.final(entry.job.reply_to, entry.job.id, entry.final, entry.seq)

    def _sweep(self) -> None:
        sure, remember = self._wall.sure(), self._remember()
        self._journal.forget(sure - remember, sure - max(remember, SESSION_EXPIRY))
        self._journal.set_fact("wall_floor", sure)
        self.resend()
