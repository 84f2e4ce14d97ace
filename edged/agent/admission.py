"""What becomes of an arrived message: decided in a batch, kept in one transaction, answered after it.

A prompt's checks stand in one order: who asks, where the answer may go, whether it can be read, whether its id is used,
whether we can take it now. Only then is it stored. Owned by the agent's main thread.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial

import msgspec

from edged.agent.journal import Entry, Job, Journal, ReplyTo, body_digest
from edged.agent.prompt_queue import Desk
from edged.agent.replies import Replies
from edged.config.schema import Settings
from edged.core.errors import BadValue, PromptRefused
from edged.core.prompt import Request, Turn, Usage
from edged.link.events import Arrived
from edged.wire import prompts
from edged.wire import replies as wire
from edged.wire.topics import REQUESTER, Topics

Effect = Callable[[], None]


def made_up_id() -> str:
    """An id for a prompt that came without one."""
    return f"auto-{secrets.token_hex(8)}"


class Intake:
    """See the module. `closed` gives the reason why no prompt is taken now, or None; `bad_request` counts and tells."""

    def __init__(
        self,
        topics: Topics,
        journal: Journal,
        desk: Desk,
        replies: Replies,
        settings: Callable[[], Settings],
        closed: Callable[[], str | None],
        bad_request: Callable[[str], None],
        wall: Callable[[], float],
    ) -> None:
        self._topics = topics
        self._journal = journal
        self._desk = desk
        self._replies = replies
        self._settings = settings
        self._closed = closed
        self._bad_request = bad_request
        self._wall = wall
        self._admitted = 0
        self.refused = 0

    def take(self, messages: list[tuple[str, Arrived]]) -> None:
        """Take (requester, message) of prompt topics. On return all are stored or refused, and may be acknowledged.

        Raises sqlite3.Error where the journal cannot be written; then none of them was taken.
        """
        effects: list[Effect] = []
        self._admitted = 0
        with self._journal.transaction():
            for requester, message in messages:
                effects.append(self._decide(requester, message))
        for effect in effects:
            effect()

    def cancel(self, requester: str, message: Arrived) -> None:
        """Take a message of a cancel topic."""
        try:
            if not REQUESTER.match(requester):
                raise BadValue("", "the requester in the topic must be 1 to 64 of A-Z, a-z, 0-9, _ and -")
            if message.retain:
                raise BadValue("", "a cancel must not be retained")
            wanted = prompts.parse_cancel(message.payload)
        except BadValue as error:
            self._bad_request(f"a cancel was ignored: {error}")
            return
        self._desk.cancel(requester, wanted.id)

    def command(self, requester: str, message: Arrived) -> None:
        """Take a message of a command topic: the name is reserved, and nothing is ever accepted and ignored."""
        why = "this version does not take commands yet"
        if not REQUESTER.match(requester) or message.retain:
            self._bad_request(f"a command was ignored: {why}")
            return
        prompt_id = prompts.id_of(message.payload, self._settings().limits.prompt_bytes, made_up_id)
        to = self._reply_to(requester, prompt_id, message) or self._default(requester, prompt_id, message)
        if self._journal.find(requester, prompt_id) is not None:
            self._replies.fleeting(to, wire.conflict(prompt_id))
            return
        self._replies.final(to, prompt_id, self._refusal(prompt_id, PromptRefused("invalid", "later", why)), None)
        self.refused += 1

    def unreadable(self, requester: str, message: Arrived, why: str) -> None:
        """Answer a message whose properties and body cannot be read, under a made-up id."""
        if not REQUESTER.match(requester):
            self._bad_request(f"a message to {message.topic} was ignored: {why}")
            return
        refusal = PromptRefused("invalid", "unreadable", f"the message cannot be read ({why}); send it without that")
        prompt_id = made_up_id()
        self._replies.final(
            self._default(requester, prompt_id, message), prompt_id, self._refusal(prompt_id, refusal), None
        )
        self.refused += 1

    def _decide(self, requester: str, message: Arrived) -> Effect:
        if not REQUESTER.match(requester):
            what = "a prompt was ignored: the requester in its topic must be 1 to 64 of A-Z, a-z, 0-9, _ and -"
            return partial(self._bad_request, what)
        limits = self._settings().limits
        try:
            prompt = prompts.parse_prompt(message.payload, message.content_type, limits.prompt_bytes, made_up_id)
        except prompts.BadPrompt as error:
            return self._refuse(requester, error.id, message, PromptRefused("invalid", "bad_request", str(error)))
        to = self._reply_to(requester, prompt.id, message)
        if to is None:
            where = f"{self._topics.replies(requester)}…"
            refusal = PromptRefused("invalid", "response_topic", f"the response topic must be below {where}")
            return self._refuse(requester, prompt.id, message, refusal)
        job = self._job(requester, prompt, message, to)
        body = body_digest(message.payload)
        if prompt.named and (known := self._journal.find(requester, prompt.id)) is not None:
            return self._again(known, job.reply_to, body, stream=job.stream)
        try:
            self._can_take(job, prompt, message)
        except PromptRefused as error:
            return self._refuse(requester, prompt.id, message, error)
        seq = self._journal.admit(job, body)
        self._admitted += 1
        return partial(self._desk.accept, seq, job, body)

    def _reply_to(self, requester: str, prompt_id: str, message: Arrived) -> ReplyTo | None:
        if message.response_topic is None:
            return self._default(requester, prompt_id, message)
        if not self._topics.allows_reply_to(message.response_topic, requester, self._settings().mqtt.reply_prefixes):
            return None
        return ReplyTo(message.response_topic, message.correlation)

    def _default(self, requester: str, prompt_id: str, message: Arrived) -> ReplyTo:
        return ReplyTo(self._topics.reply(requester, prompt_id), message.correlation)

    def _job(self, requester: str, prompt: prompts.Prompt, message: Arrived, to: ReplyTo) -> Job:
        now, settings = self._wall(), self._settings()
        ends = [
            moment
            for moment in (
                prompt.expires_at,
                None if prompt.deadline_ms is None else now + prompt.deadline_ms / 1000,
                None if message.expiry_s is None else now + message.expiry_s,
            )
            if moment is not None
        ]
        turns = prompt.turns
        if settings.generation.system is not None and turns[0].role != "system":
            turns = (Turn("system", settings.generation.system), *turns)
        # A format says itself where the output ends: the device's own stop texts are for free text.
        overrides = prompt.sampling if prompt.format is None else {**prompt.sampling, "stop": ()}
        sampling = settings.generation.sampling(overrides, settings.limits)
        request = Request(turns=turns, sampling=sampling, priority=prompt.priority, format=prompt.format)
        stream = prompt.stream if prompt.stream is not None else message.response_topic is None
        return Job(requester, prompt.id, request, stream, to, now, min(ends, default=None), self._desk.config)

    def _again(self, known: Entry, to: ReplyTo, body: bytes, *, stream: bool) -> Effect:
        """The id is known: the same prompt goes on or is answered from the journal, another one is a conflict."""
        prompt_id = known.job.id
        if known.body != body:
            return partial(self._replies.fleeting, to, wire.conflict(prompt_id))
        newest = msgspec.structs.replace(known.job, stream=stream, reply_to=to)
        self._journal.redirect(known.seq, newest)

        def effect() -> None:
            if self._desk.has(known.seq):
                self._desk.repeat(known.seq, newest)
            elif (stored := self._journal.find(newest.requester, prompt_id)) is not None and stored.final is not None:
                self._replies.final(to, prompt_id, stored.final, stored.seq)

        return effect

    def _can_take(self, job: Job, prompt: prompts.Prompt, message: Arrived) -> None:
        """Raise PromptRefused where the prompt cannot be taken now."""
        limits = self._settings().limits
        if message.retain:
            raise PromptRefused("invalid", "retained", "a prompt must not be retained; publish it without retain")
        if (closed := self._closed()) is not None:
            raise PromptRefused("unavailable", "not_now", closed)
        if prompt.sampling.get("max_tokens", 0) > limits.max_tokens:
            why = f"max_tokens: must be at most {limits.max_tokens} on this device (limits.max_tokens)"
            raise PromptRefused("invalid", "bad_request", why)
        if job.expires is not None and job.expires <= job.arrived:
            raise PromptRefused("expired", "expired", "the deadline had passed when the prompt arrived")
        if self._desk.open + self._admitted >= limits.queue:
            why = f"{limits.queue} prompts wait already (limits.queue); send it again after retry_after_ms"
            raise PromptRefused("busy", "queue_full", why)

    def _refuse(self, requester: str, prompt_id: str, message: Arrived, error: PromptRefused) -> Effect:
        """Answer with a final that is not stored. A used id has its one final already, whatever is wrong with this."""
        to = self._reply_to(requester, prompt_id, message) or self._default(requester, prompt_id, message)
        if (known := self._journal.find(requester, prompt_id)) is not None:
            return self._again(known, to, body_digest(message.payload), stream=known.job.stream)
        payload = self._refusal(prompt_id, error)
        self.refused += 1

        def effect() -> None:
            self._replies.final(to, prompt_id, payload, None)

        return effect

    def _refusal(self, prompt_id: str, error: PromptRefused) -> bytes:
        now = self._wall()
        if error.reason == "expired":
            return wire.answer(prompt_id, "expired", "", now, Usage(), wire.Timing(0.0, None, 0.0, None), None)
        retry = self._desk.retry_after_ms() if error.reason == "busy" else None
        return wire.refusal(prompt_id, wire.reason(error.reason), error.code, str(error), now, retry_after_ms=retry)
