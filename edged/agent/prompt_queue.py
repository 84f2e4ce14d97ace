"""The desk: every open prompt's ticket, in which order the worker gets them, and what goes out about them.

Owned by the agent's main thread. Time comes in as `clock` (monotonic seconds) and `wall` (Unix time).
Invariants: a ticket is here exactly as long as its row in the journal has no final; a final is in the journal before it
is published, and waits in its ticket while the journal cannot be written; what was running when a worker died is tried
again alone, so that only the guilty is blamed twice.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from edged.agent import receipts as answers
from edged.agent.journal import Entry, Job, Journal
from edged.agent.measured_speed import Speed
from edged.agent.open_prompt import Ticket
from edged.agent.receipts import Context
from edged.agent.replies import Replies
from edged.core.prompt import Failure, Final, ModelInfo, Reason, Usage
from edged.wire import replies as wire
from edged.worker import frames

CHUNK_EVERY = 0.05  # seconds between two chunks of one answer
_ABOUT_PROMPTS = (
    frames.Preparing,
    frames.Prepared,
    frames.Began,
    frames.Wrote,
    frames.Ended,
    frames.Refused,
)
MAX_GIVEN = 64  # sequences that the worker has at a time
DEATHS_ALLOWED = 1
_NOT_COMPUTED = Failure("engine", "the model could not compute this prompt; send it again or change it")


class Worker(Protocol):
    """What the desk needs of the supervisor: whether a model is loaded, and a way to send frames."""

    @property
    def info(self) -> ModelInfo | None:
        """The model that is loaded, or was by the worker that is being replaced; None before any."""

    @property
    def ready(self) -> bool:
        """Whether a worker stands that takes prompts."""

    def send(self, frame: frames.ToWorker) -> None:
        """Hand a frame to the worker."""


class Desk:
    """See the module."""

    def __init__(
        self,
        journal: Journal,
        replies: Replies,
        worker: Worker,
        context: Context,
        clock: Callable[[], float],
        wall: Callable[[], float],
        stamp: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._replies = replies
        self._worker = worker
        self._context = context
        self._clock = clock
        self._wall = wall
        self._stamp = stamp  # Unix time by which finals are forgotten
        self._tickets: dict[int, Ticket] = {}
        self._draining = False
        self.speed = Speed()
        self.finished = 0

    # ---- what is there ----------------------------------------------------------------------------------------------

    @property
    def open(self) -> int:
        """Prompts that were accepted and have no final yet."""
        return len(self._tickets)

    @property
    def running(self) -> int:
        """Prompts that the worker has begun."""
        return sum(1 for t in self._tickets.values() if t.began is not None and t.unstored is None)

    @property
    def given(self) -> int:
        """Prompts that the worker holds; above 0 it must make progress."""
        return sum(1 for t in self._tickets.values() if t.given)

    def has(self, seq: int) -> bool:
        """Whether this prompt is open."""
        return seq in self._tickets

    def next_deadline(self) -> float | None:
        """The monotonic time at which the next ticket expires."""
        waiting = (t for t in self._tickets.values() if t.ending is None and t.unstored is None)
        return min((t.expires for t in waiting if t.expires is not None), default=None)

    def retry_after_ms(self) -> int:
        """When a refused requester should ask again: about the time of one answer, 1 s to 10 min."""
        if self.speed.tokens_per_second and self.speed.tokens:
            return int(min(600.0, max(1.0, self.speed.tokens / self.speed.tokens_per_second)) * 1000)
        return 5000

    @property
    def config(self) -> dict[str, int]:
        """The revisions in force."""
        return dict(self._context.config)

    # ---- prompts come ----------------------------------------------------------------------------------------------

    def restore(self, entries: list[Entry]) -> None:
        """Take up what an earlier run of the agent had accepted."""
        for entry in entries:
            ticket = self._take_in(entry.seq, entry.job, entry.body, entry.deaths)
            if ticket.deaths > DEATHS_ALLOWED:  # the agent died before it could say so
                self._blame(ticket, "died")
        self.hand_out()

    def accept(self, seq: int, job: Job, body: bytes) -> None:
        """A prompt was stored: say so, and give it to the worker if there is one."""
        ticket = self._take_in(seq, job, body, 0)
        if job.stream:
            position = 1 + sum(1 for t in self._tickets.values() if t.began is None and t.order < ticket.order)
            self._replies.fleeting(job.reply_to, wire.accepted(job.id, position, self._eta_ms(ticket)))
        self.hand_out()

    def repeat(self, seq: int, job: Job) -> None:
        """The same prompt came again: its answer goes to the newest copy, beginning with the text so far."""
        ticket = self._tickets[seq]
        ticket.job = job
        ticket.chunks = ticket.shown = 0
        ticket.last_chunk = None
        if job.stream:
            self._show(ticket)

    def _take_in(self, seq: int, job: Job, body: bytes, deaths: int) -> Ticket:
        now, wall = self._clock(), self._wall()
        ticket = Ticket(
            seq=seq,
            job=job,
            body=body,
            deaths=deaths,
            arrived=now - max(0.0, wall - job.arrived),
            expires=None if job.expires is None else now + (job.expires - wall),
        )
        self._tickets[seq] = ticket
        return ticket

    def _eta_ms(self, ticket: Ticket) -> int | None:
        """Milliseconds until the answer is complete, as far as the mean speed and length of earlier ones tell."""
        speed, tokens = self.speed.tokens_per_second, self.speed.tokens
        if not speed or tokens is None:
            return None
        ahead = sum(1 for t in self._tickets.values() if t.order < ticket.order)
        own = min(tokens, ticket.job.request.sampling.max_tokens)
        return int((ahead * tokens + own) / speed * 1000)

    def hand_out(self) -> None:
        """Give the worker what it should have: suspects of a crash one at a time, else the best tickets."""
        if not self._worker.ready or self._draining:
            return
        unended = (t for t in self._tickets.values() if t.ending is None and t.unstored is None)
        ranked = sorted(unended, key=lambda t: t.order)
        suspects = [t for t in ranked if t.deaths]
        if suspects:
            if not any(t.given for t in self._tickets.values()):
                self._give(suspects[0])
            return
        for ticket in ranked:
            if not ticket.given and self.given < MAX_GIVEN:
                self._give(ticket)

    def _give(self, ticket: Ticket) -> None:
        ticket.given = True
        self._worker.send(frames.Add(str(ticket.seq), ticket.job.request))

    # ---- prompts are called off -------------------------------------------------------------------------------------

    def cancel(self, requester: str, prompt_id: str | None) -> None:
        """The requester wants this prompt (None: any of his) to end."""
        for ticket in list(self._tickets.values()):
            if ticket.job.requester == requester and prompt_id in (None, ticket.job.id):
                self._call_off(ticket, "cancelled")

    def expire(self) -> None:
        """End what is past its deadline."""
        now = self._clock()
        for ticket in list(self._tickets.values()):
            if ticket.expires is not None and ticket.expires <= now:
                self._call_off(ticket, "expired")

    def _call_off(self, ticket: Ticket, reason: Reason) -> None:
        if ticket.ending is not None or ticket.unstored is not None:
            return
        ticket.ending = reason
        if ticket.given:
            self._worker.send(frames.Cancel(str(ticket.seq)))
        else:
            self._close(ticket, reason, Usage(), None)

    def drain(self) -> None:
        """We are stopping: what has not begun stays in the journal for the next start."""
        self._draining = True
        for ticket in self._tickets.values():
            if ticket.given and ticket.began is None:
                self._worker.send(frames.Cancel(str(ticket.seq)))
                ticket.given = False

    def refuse_all(self, message: str) -> None:
        """No usable model: everything that waits gets `unavailable`."""
        for ticket in list(self._tickets.values()):
            if ticket.unstored is None:
                self._fail(ticket, "unavailable", "no_model", message)

    # ---- the worker speaks ------------------------------------------------------------------------------------------

    def heard(self, frame: frames.FromWorker) -> None:
        """A frame about a ticket; those about tickets that are gone are ignored."""
        if not isinstance(frame, _ABOUT_PROMPTS):
            return
        key = frame.key
        ticket = self._tickets.get(int(key)) if key.isdecimal() and len(key) < 20 else None
        if ticket is None or not ticket.given:
            return
        if isinstance(frame, (frames.Preparing, frames.Prepared)):
            ticket.preparing = isinstance(frame, frames.Preparing)
        elif isinstance(frame, frames.Began):
            ticket.began = self._clock()
        elif isinstance(frame, frames.Wrote):
            self._wrote(ticket, frame)
        elif isinstance(frame, frames.Ended):
            self._ended(ticket, frame.final)
        else:
            self._fail(ticket, wire.reason(frame.reason), frame.code, frame.message)
            self.hand_out()

    def _wrote(self, ticket: Ticket, frame: frames.Wrote) -> None:
        now = self._clock()
        if ticket.first is None:
            ticket.first = now
        ticket.text = ticket.text[: frame.at] + frame.text
        if ticket.job.stream and (ticket.last_chunk is None or now - ticket.last_chunk >= CHUNK_EVERY):
            self._show(ticket)

    def _show(self, ticket: Ticket) -> None:
        if ticket.shown == 0:
            ticket.chunks = 0  # what was shown before was empty: a chunk with `at` 0 begins anew
        payload = wire.chunk(ticket.job.id, ticket.chunks, ticket.shown, ticket.text[ticket.shown :])
        self._replies.fleeting(ticket.job.reply_to, payload)
        ticket.shown = len(ticket.text)
        ticket.chunks += 1
        ticket.last_chunk = self._clock() if ticket.text else None

    def _ended(self, ticket: Ticket, final: Final) -> None:
        if ticket.first is None and ticket.began is not None and final.usage.completion_tokens:
            # All of it came with the final: a single token, or text that was held back.
            ticket.first = min(self._clock(), ticket.began + final.prefill_ms / 1000)
        ticket.text = final.text
        failure = final.failure or _NOT_COMPUTED if final.reason == "failed" else None
        reason = ticket.ending if final.reason == "cancelled" and ticket.ending else final.reason
        self._close(ticket, reason, final.usage, final, failure)
        self.hand_out()

    def lost_worker(self, how: str) -> None:
        """The worker is gone. What it prepared or had begun is a suspect; a second death ends a prompt."""
        suspects = [t for t in self._tickets.values() if t.suspect]
        if suspects:
            with suppress(sqlite3.Error):  # counted in memory at least
                self._journal.died([t.seq for t in suspects])
        for ticket in suspects:
            ticket.deaths += 1
        for ticket in list(self._tickets.values()):
            if not ticket.given:
                continue
            if ticket.ending is not None:
                self._close(ticket, ticket.ending, Usage(), None)
            elif ticket.deaths > DEATHS_ALLOWED:
                self._blame(ticket, how)
            else:
                self._begin_again(ticket)

    def _blame(self, ticket: Ticket, how: str) -> None:
        message = f"the model's process {how} twice while it worked on this prompt; change the prompt"
        self._close(ticket, "failed", Usage(), None, Failure("worker_died", message))

    def _begin_again(self, ticket: Ticket) -> None:
        ticket.given = ticket.preparing = False
        ticket.began = ticket.first = ticket.last_chunk = None
        ticket.text = ""
        ticket.shown = ticket.chunks = 0

    # ---- finals -----------------------------------------------------------------------------------------------------

    def _close(
        self, ticket: Ticket, reason: Reason, usage: Usage, final: Final | None, failure: Failure | None = None
    ) -> None:
        now = self._clock()
        timing = answers.timing(ticket, now, final)
        if reason in ("stop", "length"):
            first = None if ticket.first is None or ticket.began is None else (ticket.first - ticket.began) * 1000
            self.speed.note(answers.speed(final), first, usage.completion_tokens)
        receipt = answers.receipt(ticket.job, self._worker.info, self._context, final)
        payload = wire.answer(ticket.job.id, reason, ticket.text, self._wall(), usage, timing, receipt, failure)
        self._store(ticket, reason, payload)

    def _fail(self, ticket: Ticket, reason: Reason, code: str, message: str) -> None:
        self._store(ticket, reason, wire.refusal(ticket.job.id, reason, code, message, self._wall(), text=ticket.text))

    def _store(self, ticket: Ticket, reason: Reason, payload: bytes) -> None:
        ticket.given = False
        try:
            self._journal.finish(ticket.seq, reason, payload, self._stamp())
        except sqlite3.Error:  # the journal says why; a computed answer is not thrown away for a full disk
            ticket.unstored = (reason, payload)
            return
        del self._tickets[ticket.seq]
        self.finished += 1
        self._replies.final(ticket.job.reply_to, ticket.job.id, payload, ticket.seq)

    def store_again(self) -> None:
        """Finals that the journal could not take are tried again, oldest first, until one fails."""
        for ticket in list(self._tickets.values()):
            if ticket.unstored is not None:
                self._store(ticket, *ticket.unstored)
                if self.has(ticket.seq):
                    return
