"""Carries out what `admission_rules` decides: a batch is stored in one transaction, and answered after it.

A refusal is published after the message was acknowledged, so that the broker does not deliver it again to be decided
otherwise.

Owned by the agent's main thread.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from edged.agent import logs
from edged.agent.admission_rules import (
    Accept,
    AdmissionRules,
    Cancel,
    Conditions,
    Conflict,
    Decision,
    Execute,
    Ignore,
    Refuse,
    Repeat,
)
from edged.agent.commands import CommandRefused, Done
from edged.agent.journal import Journal
from edged.agent.prompt_queue import PromptQueue
from edged.agent.rate_limit import RateLimit
from edged.agent.replies import Replies
from edged.core.prompt import Usage
from edged.fleet.desired import DesiredConfig
from edged.link.events import Arrived
from edged.link.publication import Publication
from edged.wire import replies as wire
from edged.wire.commands import CommandName
from edged.wire.topics import Topics

_NOT_STORED = "the device cannot store prompts now; its health topic says why; send it again later"


class RefusalToken(NamedTuple):
    """Names the final of a refusal until the broker has acknowledged it."""

    requester: str
    prompt_id: str
    body: bytes


class Admission:
    """See the module. `unavailable` returns the reason why no prompt is accepted now, or None.

    `execute` carries out a command. `stored_time` returns the Unix time that is stored with finals.

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
        clock: Callable[[], float],
        wall: Callable[[], float],
        stored_time: Callable[[], float],
        execute: Callable[[CommandName], Done],
    ) -> None:
        self._rules = AdmissionRules(topics, journal.find, self._is_refused, until_begun=queue.until_begun)
        self._journal = journal
        self._queue = queue
        self._replies = replies
        self._config = config
        self._unavailable = unavailable
        self._on_bad_request = on_bad_request
        self._wall = wall
        self._stored_time = stored_time
        self._execute = execute
        self._clock = clock
        self._rate = RateLimit(clock)
        self._log = logs.logger()
        self.refused = 0

    def process_prompts(self, messages: list[tuple[str, Arrived]]) -> list[Publication | None]:
        """(requester, message) of prompt topics. On return all are stored or refused, and may be acknowledged.

        Returns for each what is to be published after its acknowledgement. Where the journal cannot be written prompts
        are refused. Raises sqlite3.Error where it cannot even be read; then some may have been accepted.
        """
        answers: list[Publication | None] = []
        while len(answers) < len(messages):
            rest = messages[len(answers) :]
            try:
                with self._journal.transaction():
                    decided = self._decide(rest, record=True)
            except sqlite3.Error:
                decided = self._decide(rest, record=False)
            answers += [self._carry_out(decision, seq) for decision, seq in decided]
        return answers

    def is_full(self) -> bool:
        """Whether no prompt is accepted now, unless another's is displaced. A requester's own limits do not count."""
        return self._queue.open >= self._config.in_force.settings.limits.queue

    def process_command(self, requester: str, message: Arrived) -> Publication | None:
        """A message of a command topic; returns the answer to publish after its acknowledgement.

        Raises sqlite3.Error where the journal cannot be read.
        """
        decision = self._rules.command(requester, message, self._conditions(requester))
        if isinstance(decision, Execute):
            return self._carry_out_command(decision)
        try:
            with self._journal.transaction():
                seq = self._record(decision)
        except sqlite3.Error:
            seq = self._seq(decision)
        return self._carry_out(decision, seq)

    def _carry_out_command(self, execute: Execute) -> Publication | None:
        """Carry out a command; its final is stored, or where that fails published as a refusal is."""
        job, began = execute.job, self._clock()
        try:
            done = self._execute(execute.command)
        except CommandRefused as error:
            self._log.info("command refused", id=job.id, requester=job.requester, command=execute.command)
            refuse = Refuse(job.requester, job.reply_to, job.id, execute.body, error.reason, error.code, str(error))
            return self._refuse(refuse)
        self._log.info("command", id=job.id, requester=job.requester, command=execute.command, result=done.text)
        took = round((self._clock() - began) * 1000, 1)
        final = wire.command_done(job.id, done.text, self._wall(), took, done.archive)
        try:
            seq = self._journal.admit_finished(job, execute.body, "stop", final, self._stored_time())
        except sqlite3.Error:
            return self._replies.final(job.reply_to, job.id, final, RefusalToken(job.requester, job.id, execute.body))
        self._replies.send_final(job.reply_to, job.id, final, seq)
        return None

    def process_unreadable(self, requester: str, message: Arrived, why: str) -> Publication | None:
        """A message of a prompt or command topic whose properties and body cannot be read; returns the answer."""
        return self._carry_out(self._rules.unreadable(requester, message, why))

    def process_cancel(self, requester: str, message: Arrived) -> None:
        """A message of a cancel topic."""
        match self._rules.cancel(requester, message):
            case Cancel(requester=requester, prompt_id=prompt_id):
                self._queue.cancel(requester, prompt_id)
            case Ignore(message=why):
                self._on_bad_request(why)

    def _decide(self, messages: list[tuple[str, Arrived]], *, record: bool) -> list[tuple[Decision, int]]:
        """Decisions about the first of these messages, at least one, with the prompts' sequence numbers.

        Where the queue or the requester's share is full a batch ends, so that the next decision sees what came before.
        Without `record` nothing is written, and no prompt accepted.
        """
        decided: list[tuple[Decision, int]] = []
        accepted: Counter[str] = Counter()
        for requester, message in messages:
            if accepted and (self._is_full(accepted) or self._share_is_full(requester, accepted)):
                break
            conditions = self._conditions(requester, accepted, None if record else _NOT_STORED)
            decision = self._rules.prompt(requester, message, conditions)
            decided.append((decision, self._record(decision) if record else self._seq(decision)))
            if isinstance(decision, Accept):
                accepted[requester] += 1
        return decided

    def _is_full(self, accepted: Mapping[str, int]) -> bool:
        return self._queue.open + sum(accepted.values()) >= self._config.in_force.settings.limits.queue

    def _share_is_full(self, requester: str, accepted: Mapping[str, int]) -> bool:
        share = self._config.in_force.settings.limits.per_requester.of(requester).queue
        return accepted.get(requester, 0) > 0 and self._queue.open_of(requester) + accepted[requester] >= share

    def _conditions(
        self, requester: str, accepted: Mapping[str, int] | None = None, not_stored: str | None = None
    ) -> Conditions:
        """`accepted`: prompts of this batch by requester that are not in the queue yet."""
        in_force, new = self._config.in_force, accepted or {}
        limits = in_force.settings.limits
        mine = new.get(requester, 0)
        return Conditions(
            settings=in_force.settings,
            revisions=in_force.revisions,
            unavailable=not_stored or self._unavailable(),
            open_prompts=self._queue.open + sum(new.values()),
            at=self._wall(),
            own_open=self._queue.open_of(requester) + mine,
            rate_spent=self._rate.is_spent(requester, limits.per_requester.of(requester).prompts_per_minute, mine),
            may_displace=self._is_full(new) and self._queue.to_displace(requester) is not None,
            replaceable=self._queue.replaceable_of(requester),
        )

    def _record(self, decision: Decision) -> int:
        """Write a decision to the journal, inside the batch's transaction; returns the prompt's sequence number."""
        match decision:
            case Accept(job=job, body=body):
                return self._journal.admit(job, body)
            case Repeat(seq=seq, job=job):
                self._journal.redirect(seq, job)
                return seq
            case _:
                return 0

    def _seq(self, decision: Decision) -> int:
        return decision.seq if isinstance(decision, Repeat) else 0

    def _carry_out(self, decision: Decision, seq: int = 0) -> Publication | None:
        """Do what was decided; returns what is to be published once the message is acknowledged."""
        match decision:
            case Accept(job=job, body=body):
                if decision.displaces and (displaced := self._queue.to_displace(job.requester)) is not None:
                    self._queue.displace(displaced)
                limits = self._config.in_force.settings.limits
                self._rate.spend(job.requester, limits.per_requester.of(job.requester).prompts_per_minute)
                self._queue.accept(seq, job, body)
            case Refuse():
                return self._refuse(decision)
            case Repeat():
                self._repeat(decision)
            case Conflict(to=to, prompt_id=prompt_id):
                self._replies.send_now(to, wire.conflict(prompt_id))
            case Ignore(message=why):
                self._on_bad_request(why)
        return None

    def _is_refused(self, requester: str, prompt_id: str, body: bytes) -> bool:
        return self._replies.is_on_its_way(RefusalToken(requester, prompt_id, body))

    def _refuse(self, refuse: Refuse) -> Publication:
        self.refused += 1
        self._log.info(
            "prompt refused",
            id=refuse.prompt_id,
            requester=refuse.requester,
            reason=refuse.reason,
            code=refuse.code or None,
        )
        token = RefusalToken(refuse.requester, refuse.prompt_id, refuse.body)
        return self._replies.final(refuse.to, refuse.prompt_id, self._final(refuse), token)

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
