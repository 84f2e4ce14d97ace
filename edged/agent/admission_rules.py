"""Decides what to do with an arrived message, from the message, the conditions and the journal.

A prompt is checked in one order: who asks, whether it can be read, where the answer may go, whether its id is used,
whether it can be accepted now. Nothing here changes any state; `admission` executes the decisions.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping

import msgspec

from edged.agent.journal import Entry, Job, ReplyTo, body_digest
from edged.config.schema import Limits, PerRequester, Settings
from edged.core.errors import BadValue
from edged.core.prompt import DEFAULT_PRIORITY, MAX_LOGPROBS, Reason, Request, Turn
from edged.link.events import Arrived
from edged.wire import prompts
from edged.wire.commands import Command, CommandName, parse_command
from edged.wire.topics import REQUESTER, Topics


class Accept(msgspec.Struct, frozen=True):
    """Store the prompt and put it into the queue; `displaces`: a waiting prompt of another requester is removed."""

    job: Job
    body: bytes
    displaces: bool = False


class Refuse(msgspec.Struct, frozen=True):
    """Answer with a final that is not stored."""

    requester: str
    to: ReplyTo
    prompt_id: str
    body: bytes
    reason: Reason
    code: str
    message: str


class Repeat(msgspec.Struct, frozen=True):
    """The prompt `seq` of the journal arrived again: its answer goes where `job`, the newest copy, wants it."""

    seq: int
    job: Job


class Conflict(msgspec.Struct, frozen=True):
    """Another prompt has this id: a notice, nothing else."""

    to: ReplyTo
    prompt_id: str


class Ignore(msgspec.Struct, frozen=True):
    """No reply is possible: the message is counted and reported as an event."""

    message: str


class Cancel(msgspec.Struct, frozen=True):
    """End this prompt of the requester (None: all of them)."""

    requester: str
    prompt_id: str | None


class Execute(msgspec.Struct, frozen=True):
    """Carry out a command, and store its final as that of `job`."""

    job: Job
    body: bytes
    command: CommandName


class Refused(msgspec.Struct, frozen=True):
    """The prompt was refused already and that final is on its way: the broker delivered the message twice."""


Decision = Accept | Refuse | Repeat | Conflict | Ignore | Refused | Execute


class Conditions(msgspec.Struct, frozen=True):
    """What a decision depends on in addition to the message.

    `unavailable`: why no prompt is accepted now; None: prompts are accepted. `at`: Unix time.

    About the requester: `own_open` is how many prompts it has open, `rate_spent` whether it used up its prompts per
    minute, `may_displace` whether a full queue should remove a prompt of a requester with more open, `replaceable` how
    many of its prompts have not begun, by their key of `supersede`.
    """

    settings: Settings
    revisions: Mapping[str, int]
    unavailable: str | None
    open_prompts: int
    at: float
    own_open: int = 0
    rate_spent: bool = False
    may_displace: bool = False
    replaceable: Mapping[str, int] = {}


class _Refusal(msgspec.Struct, frozen=True):
    """Why a prompt is refused, before it is known where the answer goes."""

    reason: Reason
    code: str
    message: str


def generated_id() -> str:
    """An id for a prompt that came without one."""
    return f"auto-{secrets.token_hex(8)}"


class AdmissionRules:
    """See the module. `find` looks up (requester, id) in the journal, `is_refused` (requester, id, body) among
    the finals on their way. `until_begun`: in how many seconds at least a prompt of (requester, priority) would
    begin, by the measured speed; None: not known.
    """

    def __init__(
        self,
        topics: Topics,
        find: Callable[[str, str], Entry | None],
        is_refused: Callable[[str, str, bytes], bool],
        make_id: Callable[[], str] = generated_id,
        until_begun: Callable[[str, int], float | None] = lambda *_: None,
    ) -> None:
        self._topics = topics
        self._find = find
        self._is_refused = is_refused
        self._make_id = make_id
        self._until_begun = until_begun

    def prompt(self, requester: str, message: Arrived, now: Conditions) -> Decision:
        """Decide about a message of a prompt topic."""
        if not REQUESTER.match(requester):
            return Ignore("a prompt was ignored: the requester in its topic must be 1 to 64 of A-Z, a-z, 0-9, _ and -")
        limit = now.settings.limits.prompt_bytes
        try:
            prompt = prompts.parse_prompt(message.payload, message.content_type, limit, self._make_id)
        except prompts.BadPrompt as error:
            return self._refuse(requester, error.id, message, now, _Refusal("invalid", "bad_request", str(error)))
        return self._readable(requester, prompt, message, now)

    def _readable(self, requester: str, prompt: prompts.Prompt, message: Arrived, now: Conditions) -> Decision:
        to = self._reply_to(requester, prompt.id, message, now)
        if to is None:
            return self._refuse(requester, prompt.id, message, now, self._bad_response_topic(requester))
        job = _job(requester, prompt, message, to, now)
        body = body_digest(message.payload)
        if prompt.named and (known := self._find(requester, prompt.id)) is not None:
            return _again(known, to, body, stream=job.stream)
        if prompt.named and self._is_refused(requester, prompt.id, body):
            return Refused()
        refusal = _refusal(job, prompt, message, now) or self._too_late(job)
        if refusal is not None:
            return self._refuse(requester, prompt.id, message, now, refusal)
        return Accept(job, body, displaces=_without_replaced(job, now).open_prompts >= now.settings.limits.queue)

    def _too_late(self, job: Job) -> _Refusal | None:
        """Why the deadline cannot be met: the first token would come after it."""
        if job.expires is None:
            return None
        least = self._until_begun(job.requester, job.request.priority)
        if least is None or least <= job.expires - job.arrived:
            return None
        return _Refusal("expired", "expired", f"by the measured speed it would begin in {least:.1f} s at the earliest")

    def command(self, requester: str, message: Arrived, now: Conditions) -> Decision:
        """Decide about a message of a command topic; ids are shared with the requester's prompts."""
        if not REQUESTER.match(requester):
            return Ignore("a command was ignored: the requester in its topic must be 1 to 64 of A-Z, a-z, 0-9, _ and -")
        if message.retain:
            return Ignore("a command was ignored: it must not be retained")
        prompt_id = prompts.id_of(message.payload, now.settings.limits.prompt_bytes, self._make_id)
        if requester not in now.settings.commands.allow:
            why = "this requester may send no commands: the owner names it in commands.allow of the device's own file"
            return self._refuse(requester, prompt_id, message, now, _Refusal("invalid", "not_allowed", why))
        try:
            command = parse_command(message.payload, lambda: prompt_id)
        except BadValue as error:
            return self._refuse(requester, prompt_id, message, now, _Refusal("invalid", "bad_request", str(error)))
        return self._readable_command(requester, command, message, now)

    def _readable_command(self, requester: str, command: Command, message: Arrived, now: Conditions) -> Decision:
        to = self._reply_to(requester, command.id, message, now)
        if to is None:
            return self._refuse(requester, command.id, message, now, self._bad_response_topic(requester))
        body = body_digest(message.payload)
        if command.named and (known := self._find(requester, command.id)) is not None:
            return _again(known, to, body, stream=False)
        if command.named and self._is_refused(requester, command.id, body):
            return Refused()
        job = Job(requester, command.id, Request(), stream=False, reply_to=to, arrived=now.at)
        return Execute(job, body, command.name)

    def unreadable(self, requester: str, message: Arrived, why: str) -> Decision:
        """Decide about a message whose properties and body cannot be read: it is answered under a generated id."""
        if not REQUESTER.match(requester):
            return Ignore(f"a message to {message.topic} was ignored: {why}")
        prompt_id = self._make_id()
        to = self._default(requester, prompt_id, message)
        sentence = f"the message cannot be read ({why}); correct or remove that part and send it again"
        return Refuse(requester, to, prompt_id, body_digest(message.payload), "invalid", "unreadable", sentence)

    def cancel(self, requester: str, message: Arrived) -> Cancel | Ignore:
        """Decide about a message of a cancel topic."""
        try:
            if not REQUESTER.match(requester):
                raise BadValue("", "the requester in the topic must be 1 to 64 of A-Z, a-z, 0-9, _ and -")
            if message.retain:
                raise BadValue("", "a cancel must not be retained")
            return Cancel(requester, prompts.parse_cancel(message.payload).id)
        except BadValue as error:
            return Ignore(f"a cancel was ignored: {error}")

    def _refuse(self, requester: str, prompt_id: str, message: Arrived, now: Conditions, refusal: _Refusal) -> Decision:
        """A used id has its one final already, whatever is wrong with this copy."""
        to = self._reply_to(requester, prompt_id, message, now) or self._default(requester, prompt_id, message)
        if (known := self._find(requester, prompt_id)) is not None:
            return _again(known, to, body_digest(message.payload), stream=known.job.stream)
        if self._is_refused(requester, prompt_id, body_digest(message.payload)):
            return Refused()
        return Refuse(
            requester, to, prompt_id, body_digest(message.payload), refusal.reason, refusal.code, refusal.message
        )

    def _reply_to(self, requester: str, prompt_id: str, message: Arrived, now: Conditions) -> ReplyTo | None:
        """Where the answer goes; None where the Response Topic is not allowed."""
        if message.response_topic is None:
            return self._default(requester, prompt_id, message)
        if not self._topics.allows_reply_to(message.response_topic, requester, now.settings.mqtt.reply_prefixes):
            return None
        return ReplyTo(message.response_topic, message.correlation)

    def _bad_response_topic(self, requester: str) -> _Refusal:
        why = f"the response topic must be below {self._topics.replies(requester)}…"
        return _Refusal("invalid", "response_topic", why)

    def _default(self, requester: str, prompt_id: str, message: Arrived) -> ReplyTo:
        return ReplyTo(self._topics.reply(requester, prompt_id), message.correlation)


def _again(known: Entry, to: ReplyTo, body: bytes, *, stream: bool) -> Repeat | Conflict:
    if known.body != body:
        return Conflict(to, known.job.id)
    return Repeat(known.seq, msgspec.structs.replace(known.job, stream=stream, reply_to=to))


def _job(requester: str, prompt: prompts.Prompt, message: Arrived, to: ReplyTo, now: Conditions) -> Job:
    generation, limits = now.settings.generation, now.settings.limits
    turns = prompt.turns
    if generation.system is not None and turns and turns[0].role != "system":
        turns = (Turn("system", generation.system), *turns)
    # A format defines where the output ends: the device's default stop texts are for free text.
    overrides = prompt.sampling if prompt.format is None else {**prompt.sampling, "stop": ()}
    sampling = generation.sampling(overrides, limits)
    priority = prompt.priority
    if priority is None:
        priority = max(DEFAULT_PRIORITY, limits.per_requester.of(requester).priority)
    request = Request(
        turns=turns,
        raw=prompt.raw,
        sampling=sampling,
        priority=priority,
        format=prompt.format,
        continue_last=prompt.continue_last,
        arrived=now.at,
        unset=generation.unset_by(overrides),
        logprobs=prompt.logprobs is not None,
        top_logprobs=prompt.logprobs or 0,
        tools=prompt.tools,
        tool_choice=prompt.tool_choice[0],
        tool_name=prompt.tool_choice[1],
        reasoning=prompt.reasoning,
        reasoning_tokens=prompt.reasoning_tokens,
        embed=prompt.embed,
    )
    stream = prompt.stream if prompt.stream is not None else message.response_topic is None
    expires = _earliest_deadline(prompt, message, now.at)
    revisions = dict(now.revisions)
    return Job(requester, prompt.id, request, stream, to, now.at, expires, revisions, prompt.supersede)


def _earliest_deadline(prompt: prompts.Prompt, message: Arrived, at: float) -> float | None:
    """Unix time; None: the prompt never expires."""
    deadlines = (
        prompt.expires_at,
        None if prompt.deadline_ms is None else at + prompt.deadline_ms / 1000,
        None if message.expiry_s is None else at + message.expiry_s,
    )
    return min((deadline for deadline in deadlines if deadline is not None), default=None)


def _refusal(job: Job, prompt: prompts.Prompt, message: Arrived, now: Conditions) -> _Refusal | None:
    """Why the prompt cannot be accepted now."""
    limits = now.settings.limits
    if (refusal := _not_now(message, now)) is not None:
        return refusal
    if (why := _not_allowed(job, prompt, limits)) is not None:
        return _Refusal("invalid", "bad_request", why)
    if job.expires is not None and job.expires <= job.arrived:
        return _Refusal("expired", "expired", "the deadline had passed when the prompt arrived")
    share = limits.per_requester.of(job.requester)
    if job.request.priority < share.priority:
        why = f"priority: must be {share.priority} to 9 for this requester (limits.per_requester.priority)"
        return _Refusal("invalid", "bad_request", why)
    return _busy(_without_replaced(job, now), share)


def _without_replaced(job: Job, now: Conditions) -> Conditions:
    """The conditions once the prompts that this one replaces have ended."""
    replaced = 0 if job.supersede is None else now.replaceable.get(job.supersede, 0)
    if not replaced:
        return now
    return msgspec.structs.replace(
        now, open_prompts=now.open_prompts - replaced, own_open=max(0, now.own_open - replaced)
    )


def _not_allowed(job: Job, prompt: prompts.Prompt, limits: Limits) -> str | None:
    """Which of the prompt's keys this device does not allow, and why."""
    if prompt.sampling.get("max_tokens", 0) > limits.max_tokens:
        return f"max_tokens: must be at most {limits.max_tokens} on this device (limits.max_tokens)"
    if prompt.raw is not None and not limits.raw:
        return "raw: needs limits.raw: true in the device's own file; send the prompt without raw, or ask its owner"
    most = job.request.sampling.max_tokens
    if prompt.logprobs is not None and (count := (1 + prompt.logprobs) * most) > MAX_LOGPROBS:
        return (
            f"logprobs: with max_tokens {most} the final would carry {count} log probabilities, above {MAX_LOGPROBS}; "
            "lower max_tokens or logprobs"
        )
    return None


def _not_now(message: Arrived, now: Conditions) -> _Refusal | None:
    if message.retain:
        return _Refusal("invalid", "retained", "a prompt must not be retained; publish it without retain")
    if now.unavailable is not None:
        return _Refusal("unavailable", "not_now", now.unavailable)
    return None


def _busy(now: Conditions, share: PerRequester) -> _Refusal | None:
    """Why there is no capacity for a prompt of this requester now."""
    later = "send it again after retry_after_ms"
    if now.own_open >= share.queue:
        why = f"{now.own_open} prompts of this requester are open already (limits.per_requester.queue); {later}"
        return _Refusal("busy", "share_full", why)
    if now.rate_spent:
        rate = f"{share.prompts_per_minute} prompts per minute (limits.per_requester.prompts_per_minute)"
        return _Refusal("busy", "rate", f"this requester may send {rate}; {later}")
    limit = now.settings.limits.queue
    if now.open_prompts >= limit and not now.may_displace:
        return _Refusal("busy", "queue_full", f"{limit} prompts wait already (limits.queue); {later}")
    return None
