"""Carries out what `admission_rules` decides: a batch is stored in one transaction, and answered after it.

Owned by the agent's main thread.
"""

from __future__ import annotations

from collections.abc import Callable

from edged.agent.admission_rules import (
    Accept,
    AdmissionRules,
    Cancel,
    Conditions,
    Conflict,
    Decision,
    Ignore,
    Refuse,
    Repeat,
)
from edged.agent.journal import Journal
from edged.agent.prompt_queue import PromptQueue
from edged.agent.replies import Replies
from edged.core.prompt import Usage
from edged.fleet.desired import DesiredConfig
from edged.link.events import Arrived
from edged.wire import replies as wire
from edged.wire.topics import Topics


class Admission:
    """See the module. `unavailable` gives the reason why no prompt is accepted now, or None.

    `on_bad_request` counts and reports a message that gets no reply. `refused` counts refusals.
    """

    def __init__(
        self,
        topics: Topics,
        journal: Journal,
        queue: PromptQueue,
        replies: Replies,
        config: DesiredConfig,
        unavailable: Callable[[], str | None],
        on_bad_request: Callable[[str], None],
        wall: Callable[[], float],
    ) -> None:
        self._rules = AdmissionRules(topics, journal.find)
        self._journal = journal
        self._queue = queue
        self._replies = replies
        self._config = config
        self._unavailable = unavailable
        self._on_bad_request = on_bad_request
        self._wall = wall
        self.refused = 0

    def process_prompts(self, messages: list[tuple[str, Arrived]]) -> None:
        """(requester, message) of prompt topics. On return all are stored or refused, and may be acknowledged.

        Raises sqlite3.Error where the journal cannot be written; then none of them was accepted.
        """
        recorded: list[tuple[Decision, int]] = []
        accepted = 0
        with self._journal.transaction():
            for requester, message in messages:
                decision = self._rules.prompt(requester, message, self._conditions(accepted))
                recorded.append((decision, self._record(decision)))
                accepted += isinstance(decision, Accept)
        for decision, seq in recorded:
            self._carry_out(decision, seq)

    def process_command(self, requester: str, message: Arrived) -> None:
        """A message of a command topic."""
        self._carry_out(self._rules.command(requester, message, self._conditions()))

    def process_unreadable(self, requester: str, message: Arrived, why: str) -> None:
        """A message of a prompt or command topic whose properties and body cannot be read."""
        self._carry_out(self._rules.unreadable(requester, message, why))

    def process_cancel(self, requester: str, message: Arrived) -> None:
        """A message of a cancel topic."""
        match self._rules.cancel(requester, message):
            case Cancel(requester=requester, prompt_id=prompt_id):
                self._queue.cancel(requester, prompt_id)
            case Ignore(message=why):
                self._on_bad_request(why)

    def _conditions(self, accepted: int = 0) -> Conditions:
        """`accepted`: prompts of this batch that are not in the queue yet."""
        in_force = self._config.in_force
        return Conditions(
            settings=in_force.settings,
            revisions=in_force.revisions,
            unavailable=self._unavailable(),
            open_prompts=self._queue.open + accepted,
            at=self._wall(),
        )

    def _record(self, decision: Decision) -> int:
        """Write a decision to the journal, inside the batch's transaction; gives the prompt's sequence number."""
        match decision:
            case Accept(job=job, body=body):
                return self._journal.admit(job, body)
            case Repeat(seq=seq, job=job):
                self._journal.redirect(seq, job)
                return seq
            case _:
                return 0

    def _carry_out(self, decision: Decision, seq: int = 0) -> None:
        match decision:
            case Accept(job=job, body=body):
                self._queue.accept(seq, job, body)
            case Refuse(to=to, prompt_id=prompt_id):
                self.refused += 1
                self._replies.send_final(to, prompt_id, self._final(decision), None)
            case Repeat():
                self._repeat(decision)
            case Conflict(to=to, prompt_id=prompt_id):
                self._replies.send_now(to, wire.conflict(prompt_id))
            case Ignore(message=why):
                self._on_bad_request(why)

    def _repeat(self, repeat: Repeat) -> None:
        """An open prompt continues to its newest copy; a finished one is answered with its stored final."""
        seq, job = repeat.seq, repeat.job
        if self._queue.has(seq):
            self._queue.repeat(seq, job)
        elif (stored := self._journal.find(job.requester, job.id)) is not None and stored.final is not None:
            self._replies.send_final(job.reply_to, job.id, stored.final, stored.seq)

    def _final(self, refuse: Refuse) -> bytes:
        now = self._wall()
        if refuse.reason == "expired":
            return wire.answer(refuse.prompt_id, "expired", "", now, Usage(), wire.Timing(0.0, None, 0.0, None), None)
        retry = self._queue.retry_after_ms() if refuse.reason == "busy" else None
        return wire.refusal(refuse.prompt_id, refuse.reason, refuse.code, refuse.message, now, retry_after_ms=retry)
