"""The queue: every open prompt's prompt, in which order the worker gets them, and what goes out about them.

Owned by the agent's main thread. Time comes in as `clock` (monotonic seconds) and `wall` (Unix time).
Invariants: a prompt is here exactly as long as its row in the journal has no final; a final is in the journal before it
is published, and waits in its prompt while the journal cannot be written; what was running when a worker died is tried
again alone, so that only the guilty is blamed twice.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from edged.agent import receipts as answers
from edged.agent.journal import Entry, Job, Journal
from edged.agent.measured_speed import MeasuredSpeed
from edged.agent.open_prompt import OpenPrompt
from edged.agent.receipts import Context
from edged.agent.replies import Replies
from edged.core.prompt import Failure, Final, ModelInfo, Reason, Usage
from edged.wire import replies as wire
from edged.worker import frames

CHUNK_EVERY = 0.05  # seconds between two chunks of one answer
_ABOUT_PROMPTS = (
    frames.Preparing,
    frames.Prepared,
    frames.Started,
    frames.Generated,
    frames.Finished,
    frames.Refused,
)
MAX_SUBMITTED = 64  # sequences that the worker has at a time
CRASHES_ALLOWED = 1
_NOT_COMPUTED = Failure("engine", "the model could not compute this prompt; send it again or change it")


class Worker(Protocol):
    """What the queue needs of the supervisor: whether a model is loaded, and a way to send frames."""

    @property
    def info(self) -> ModelInfo | None:
        """The model that is loaded, or was by the worker that is being replaced; None before any."""

    @property
    def ready(self) -> bool:
        """Whether a worker stands that takes prompts."""

    def send(self, frame: frames.ToWorker) -> None:
        """Hand a frame to the worker."""


class PromptQueue:
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
        self._prompts: dict[int, OpenPrompt] = {}
        self._draining = False
        self.speed = MeasuredSpeed()
        self.finished = 0

    # ---- what is there ----------------------------------------------------------------------------------------------

    @property
    def open(self) -> int:
        """Prompts that were accepted and have no final yet."""
        return len(self._prompts)

    @property
    def running(self) -> int:
        """Prompts that the worker has begun."""
        return sum(1 for p in self._prompts.values() if p.started_at is not None and p.unstored_final is None)

    @property
    def submitted(self) -> int:
        """Prompts that the worker holds; above 0 it must make progress."""
        return sum(1 for p in self._prompts.values() if p.submitted)

    def has(self, seq: int) -> bool:
        """Whether this prompt is open."""
        return seq in self._prompts

    def next_deadline(self) -> float | None:
        """The monotonic time at which the next prompt expires."""
        waiting = (p for p in self._prompts.values() if p.stopping is None and p.unstored_final is None)
        return min((p.expires for p in waiting if p.expires is not None), default=None)

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
            prompt = self._add(entry.seq, entry.job, entry.body, entry.crashes)
            if prompt.crashes > CRASHES_ALLOWED:  # the agent died before it could say so
                self._close_poisoned(prompt, "died")
        self.submit_waiting()

    def accept(self, seq: int, job: Job, body: bytes) -> None:
        """A prompt was stored: say so, and give it to the worker if there is one."""
        prompt = self._add(seq, job, body, 0)
        if job.stream:
            position = 1 + sum(1 for p in self._prompts.values() if p.started_at is None and p.order < prompt.order)
            self._replies.send_now(job.reply_to, wire.accepted(job.id, position, self._eta_ms(prompt)))
        self.submit_waiting()

    def repeat(self, seq: int, job: Job) -> None:
        """The same prompt came again: its answer goes to the newest copy, beginning with the text so far."""
        prompt = self._prompts[seq]
        prompt.job = job
        prompt.chunks = prompt.streamed = 0
        prompt.last_chunk_at = None
        if job.stream:
            self._send_chunk(prompt)

    def _add(self, seq: int, job: Job, body: bytes, crashes: int) -> OpenPrompt:
        now, wall = self._clock(), self._wall()
        prompt = OpenPrompt(
            seq=seq,
            job=job,
            body=body,
            crashes=crashes,
            arrived=now - max(0.0, wall - job.arrived),
            expires=None if job.expires is None else now + (job.expires - wall),
        )
        self._prompts[seq] = prompt
        return prompt

    def _eta_ms(self, prompt: OpenPrompt) -> int | None:
        """Milliseconds until the answer is complete, as far as the mean speed and length of earlier ones tell."""
        speed, tokens = self.speed.tokens_per_second, self.speed.tokens
        if not speed or tokens is None:
            return None
        ahead = sum(1 for p in self._prompts.values() if p.order < prompt.order)
        own = min(tokens, prompt.job.request.sampling.max_tokens)
        return int((ahead * tokens + own) / speed * 1000)

    def submit_waiting(self) -> None:
        """Give the worker what it should have: suspects of a crash one at a time, else the best prompts."""
        if not self._worker.ready or self._draining:
            return
        unended = (p for p in self._prompts.values() if p.stopping is None and p.unstored_final is None)
        ranked = sorted(unended, key=lambda p: p.order)
        suspects = [p for p in ranked if p.crashes]
        if suspects:
            if not any(p.submitted for p in self._prompts.values()):
                self._submit(suspects[0])
            return
        for prompt in ranked:
            if not prompt.submitted and self.submitted < MAX_SUBMITTED:
                self._submit(prompt)

    def _submit(self, prompt: OpenPrompt) -> None:
        prompt.submitted = True
        self._worker.send(frames.Add(str(prompt.seq), prompt.job.request))

    # ---- prompts are called off -------------------------------------------------------------------------------------

    def cancel(self, requester: str, prompt_id: str | None) -> None:
        """The requester wants this prompt (None: any of his) to end."""
        for prompt in list(self._prompts.values()):
            if prompt.job.requester == requester and prompt_id in (None, prompt.job.id):
                self._stop(prompt, "cancelled")

    def expire(self) -> None:
        """End what is past its deadline."""
        now = self._clock()
        for prompt in list(self._prompts.values()):
            if prompt.expires is not None and prompt.expires <= now:
                self._stop(prompt, "expired")

    def _stop(self, prompt: OpenPrompt, reason: Reason) -> None:
        if prompt.stopping is not None or prompt.unstored_final is not None:
            return
        prompt.stopping = reason
        if prompt.submitted:
            self._worker.send(frames.Cancel(str(prompt.seq)))
        else:
            self._close(prompt, reason, Usage(), None)

    def drain(self) -> None:
        """We are stopping: what has not begun stays in the journal for the next start."""
        self._draining = True
        for prompt in self._prompts.values():
            if prompt.submitted and prompt.started_at is None:
                self._worker.send(frames.Cancel(str(prompt.seq)))
                prompt.submitted = False

    def refuse_all(self, message: str) -> None:
        """No usable model: everything that waits gets `unavailable`."""
        for prompt in list(self._prompts.values()):
            if prompt.unstored_final is None:
                self._fail(prompt, "unavailable", "no_model", message)

    # ---- the worker speaks ------------------------------------------------------------------------------------------

    def handle_frame(self, frame: frames.FromWorker) -> None:
        """A frame about a prompt; those about prompts that are gone are ignored."""
        if not isinstance(frame, _ABOUT_PROMPTS):
            return
        key = frame.key
        prompt = self._prompts.get(int(key)) if key.isdecimal() and len(key) < 20 else None
        if prompt is None or not prompt.submitted:
            return
        if isinstance(frame, (frames.Preparing, frames.Prepared)):
            prompt.preparing = isinstance(frame, frames.Preparing)
        elif isinstance(frame, frames.Started):
            prompt.started_at = self._clock()
        elif isinstance(frame, frames.Generated):
            self._add_text(prompt, frame)
        elif isinstance(frame, frames.Finished):
            self._finish(prompt, frame.final)
        else:
            self._fail(prompt, wire.reason(frame.reason), frame.code, frame.message)
            self.submit_waiting()

    def _add_text(self, prompt: OpenPrompt, frame: frames.Generated) -> None:
        now = self._clock()
        if prompt.first_token_at is None:
            prompt.first_token_at = now
        prompt.text = prompt.text[: frame.at] + frame.text
        if prompt.job.stream and (prompt.last_chunk_at is None or now - prompt.last_chunk_at >= CHUNK_EVERY):
            self._send_chunk(prompt)

    def _send_chunk(self, prompt: OpenPrompt) -> None:
        if prompt.streamed == 0:
            prompt.chunks = 0  # what was shown before was empty: a chunk with `at` 0 begins anew
        payload = wire.chunk(prompt.job.id, prompt.chunks, prompt.streamed, prompt.text[prompt.streamed :])
        self._replies.send_now(prompt.job.reply_to, payload)
        prompt.streamed = len(prompt.text)
        prompt.chunks += 1
        prompt.last_chunk_at = self._clock() if prompt.text else None

    def _finish(self, prompt: OpenPrompt, final: Final) -> None:
        if prompt.first_token_at is None and prompt.started_at is not None and final.usage.completion_tokens:
            # All of it came with the final: a single token, or text that was held back.
            prompt.first_token_at = min(self._clock(), prompt.started_at + final.prefill_ms / 1000)
        prompt.text = final.text
        failure = final.failure or _NOT_COMPUTED if final.reason == "failed" else None
        reason = prompt.stopping if final.reason == "cancelled" and prompt.stopping else final.reason
        self._close(prompt, reason, final.usage, final, failure)
        self.submit_waiting()

    def worker_exited(self, how: str) -> None:
        """The worker is gone. What it prepared or had begun is a suspect; a second death ends a prompt."""
        suspects = [p for p in self._prompts.values() if p.computing]
        if suspects:
            with suppress(sqlite3.Error):  # counted in memory at least
                self._journal.count_crash([p.seq for p in suspects])
        for prompt in suspects:
            prompt.crashes += 1
        for prompt in list(self._prompts.values()):
            if not prompt.submitted:
                continue
            if prompt.stopping is not None:
                self._close(prompt, prompt.stopping, Usage(), None)
            elif prompt.crashes > CRASHES_ALLOWED:
                self._close_poisoned(prompt, how)
            else:
                self._reset(prompt)

    def _close_poisoned(self, prompt: OpenPrompt, how: str) -> None:
        message = f"the model's process {how} twice while it worked on this prompt; change the prompt"
        self._close(prompt, "failed", Usage(), None, Failure("worker_died", message))

    def _reset(self, prompt: OpenPrompt) -> None:
        prompt.submitted = prompt.preparing = False
        prompt.started_at = prompt.first_token_at = prompt.last_chunk_at = None
        prompt.text = ""
        prompt.streamed = prompt.chunks = 0

    # ---- finals -----------------------------------------------------------------------------------------------------

    def _close(
        self, prompt: OpenPrompt, reason: Reason, usage: Usage, final: Final | None, failure: Failure | None = None
    ) -> None:
        now = self._clock()
        timing = answers.timing(prompt, now, final)
        if reason in ("stop", "length"):
            first = (
                None
                if prompt.first_token_at is None or prompt.started_at is None
                else (prompt.first_token_at - prompt.started_at) * 1000
            )
            self.speed.add(answers.speed(final), first, usage.completion_tokens)
        receipt = answers.receipt(prompt.job, self._worker.info, self._context, final)
        payload = wire.answer(prompt.job.id, reason, prompt.text, self._wall(), usage, timing, receipt, failure)
        self._store(prompt, reason, payload)

    def _fail(self, prompt: OpenPrompt, reason: Reason, code: str, message: str) -> None:
        self._store(prompt, reason, wire.refusal(prompt.job.id, reason, code, message, self._wall(), text=prompt.text))

    def _store(self, prompt: OpenPrompt, reason: Reason, payload: bytes) -> None:
        prompt.submitted = False
        try:
            self._journal.finish(prompt.seq, reason, payload, self._stamp())
        except sqlite3.Error:  # the journal says why; a computed answer is not thrown away for a full disk
            prompt.unstored_final = (reason, payload)
            return
        del self._prompts[prompt.seq]
        self.finished += 1
        self._replies.send_final(prompt.job.reply_to, prompt.job.id, payload, prompt.seq)

    def retry_unstored(self) -> None:
        """Finals that the journal could not take are tried again, oldest first, until one fails."""
        for prompt in list(self._prompts.values()):
            if prompt.unstored_final is not None:
                self._store(prompt, *prompt.unstored_final)
                if self.has(prompt.seq):
                    return
