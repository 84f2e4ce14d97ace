"""The open prompts: which of them the worker gets and when, and what is published about them.

`fair_queue` decides the order among requesters. Methods about one prompt never loop over all prompts.
Owned by the agent's main thread. Time comes in as `clock` (monotonic seconds) and `wall` (Unix time).
Invariants: a prompt is here exactly as long as its row in the journal has no final; a final is in the journal before it
is published, and is kept here while the journal cannot be written; a prompt that the worker was computing when it ended
is retried alone, so that only the crashing prompt is counted twice.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from heapq import heappop, heappush
from typing import Protocol

from edged.agent import logs, receipts
from edged.agent.fair_queue import FairQueue
from edged.agent.journal import Entry, Job, Journal
from edged.agent.measured_speed import EstimateError, MeasuredSpeed
from edged.agent.open_prompt import OpenPrompt
from edged.agent.replies import Replies
from edged.agent.streaming import ChunkStream
from edged.core.prompt import Failure, Final, ModelInfo, Reason, Usage
from edged.fleet.desired import DesiredConfig
from edged.wire import replies as wire
from edged.worker import frames

SUBMITTED = 16  # sequences that the worker has at a time: more are computed no faster, and waiting ones can be ordered
MAX_SUBMITTED = 64  # the same with those that are more urgent than one that the worker has
CRASHES_ALLOWED = 1
SAFETY = 2.0  # a deadline is given up where half of the estimated wait exceeds it: estimates err by about this factor
LEVELS_EVERY = 1.0  # seconds between two updates of the levels of the submitted prompts
_NOT_COMPUTED = Failure("engine", "the model could not compute this prompt; send it again or change it")


class Worker(Protocol):
    """What the queue needs of the supervisor: whether a model is loaded, and a way to send frames."""

    @property
    def info(self) -> ModelInfo | None:
        """The model that is loaded, or was by the worker that is being replaced; None before any."""

    @property
    def ready(self) -> bool:
        """Whether a worker runs that accepts prompts."""

    @property
    def load_left(self) -> float:
        """Seconds until a worker accepts prompts, as far as known; 0 where one does."""

    def send(self, frame: frames.ToWorker) -> None:
        """Hand a frame to the worker."""


class PromptQueue:
    """See the module. `stored_time` returns the Unix time that is stored with finals; old ones are removed by it."""

    def __init__(
        self,
        journal: Journal,
        replies: Replies,
        worker: Worker,
        config: DesiredConfig,
        device: str,
        clock: Callable[[], float],
        wall: Callable[[], float],
        stored_time: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._replies = replies
        self._worker = worker
        self._config = config
        self._device = device
        self._clock = clock
        self._wall = wall
        self._stored_time = stored_time
        self._chunks = ChunkStream(replies, clock)
        self._prompts: dict[int, OpenPrompt] = {}
        self._of: dict[str, dict[int, None]] = {}  # open prompts by requester
        self._order = FairQueue(self._may_run)
        self._submitted: dict[int, OpenPrompt] = {}
        self._started: set[int] = set()
        self._crashed: dict[int, None] = {}  # open prompts that were computed when a worker ended, not submitted yet
        self._unstored: dict[int, None] = {}  # those whose final the journal could not take
        self._deadlines: list[tuple[float, int]] = []  # heap; entries of prompts that ended are dropped at the top
        self._levels_at = clock()
        self._draining = False
        self._held = False
        self._taken_back: set[int] = set()  # cancelled by `hold`: the worker still sends one last frame about each
        self._throttled: bool | None = None
        self._log = logs.logger()
        self.speed = MeasuredSpeed()
        self.estimates = EstimateError()
        self.finished = 0

    # ---- state ------------------------------------------------------------------------------------------------------

    @property
    def open(self) -> int:
        """Prompts that were accepted and have no final yet."""
        return len(self._prompts)

    @property
    def running(self) -> int:
        """Prompts that the worker has started."""
        return len(self._started)

    @property
    def submitted(self) -> int:
        """Prompts that the worker has."""
        return len(self._submitted)

    def has(self, seq: int) -> bool:
        """Whether this prompt is open."""
        return seq in self._prompts

    def open_of(self, requester: str) -> int:
        """How many open prompts a requester has."""
        return len(self._of.get(requester, ()))

    def until_begun(self, requester: str, priority: int) -> float | None:
        """Seconds until a new prompt would begin, at least; None where nothing was measured."""
        ahead, level = self._order.ahead_of_new(requester, priority)
        wait = self._wait_behind(ahead, level)
        return None if wait is None else wait / SAFETY

    def _wait_behind(self, ahead: int, level: int) -> float | None:
        """Seconds until a prompt of this level begins behind `ahead` waiting ones and what the worker has."""
        ahead += sum(prompt.level <= level for prompt in self._submitted.values())
        wait = self.speed.until_begun(ahead, self._slots())
        return None if wait is None else self._worker.load_left + wait

    def _slots(self) -> int:
        return max(1, self._worker.info.slots) if self._worker.info is not None else 1

    def replaceable_of(self, requester: str) -> Mapping[str, int]:
        """How many prompts of a requester have not begun, by their key of `supersede`."""
        own = [self._prompts[seq] for seq in self._of.get(requester, ())]
        return Counter(key for prompt in own if prompt.waits and (key := prompt.job.supersede) is not None)

    def to_displace(self, requester: str) -> int | None:
        """The waiting prompt to remove from a full queue for one of this requester, if that is fair; else None."""
        return self._order.to_displace(requester)

    def next_deadline(self) -> float | None:
        """The monotonic time at which the next prompt expires."""
        while self._deadlines and not self._may_expire(self._deadlines[0][1]):
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def retry_after_ms(self) -> int:
        """After how many milliseconds a refused requester should send again: about one answer's time, 1 s to 10 min."""
        if self.speed.tokens_per_second and self.speed.tokens:
            return int(min(600.0, max(1.0, self.speed.tokens / self.speed.tokens_per_second)) * 1000)
        return 5000

    def set_throttled(self, throttled: bool | None) -> None:
        """Set whether the board's processor is throttled now, for the receipts; None: not known."""
        self._throttled = throttled

    # ---- prompts arrive ---------------------------------------------------------------------------------------------

    def restore(self, entries: list[Entry]) -> None:
        """Add the prompts that an earlier run of the agent accepted."""
        for entry in entries:
            prompt = self._add(entry.seq, entry.job, entry.body, entry.crashes)
            if prompt.crashes > CRASHES_ALLOWED:  # the agent ended between the count and the final
                self._end_as_poisoned(prompt, "ended")
        for seq in [entry.seq for entry in entries if self._is_superseded(entry.seq)]:
            self._request_stop(self._prompts[seq], "cancelled")
        self.submit_waiting()

    def accept(self, seq: int, job: Job, body: bytes) -> None:
        """A prompt was stored: publish its notice, and submit it when the worker has capacity."""
        prompt = self._add(seq, job, body, 0)
        self._supersede_older(prompt)
        prompt.estimated_wait = self._wait_behind(self._order.ahead_of(seq), self._order.level(seq, self._clock()))
        if job.stream:
            ahead = self._order.ahead_of(seq)
            self._replies.send_now(job.reply_to, wire.accepted(job.id, 1 + ahead, self._eta_ms(prompt, ahead)))
        self.submit_waiting()
        self._update_levels()

    def displace(self, seq: int) -> None:
        """End a waiting prompt as `busy`: the queue is full, and another requester has fewer open."""
        message = (
            "the queue was full and this requester had the most open prompts; its newest waiting prompt was removed to "
            "make room for another requester; send it again after retry_after_ms"
        )
        self._end_with_error(self._prompts[seq], "busy", "displaced", message, retry_after_ms=self.retry_after_ms())

    def repeat(self, seq: int, job: Job) -> None:
        """The same prompt arrived again: its answer goes to the newest copy, starting with the text so far."""
        prompt = self._prompts[seq]
        prompt.job = job
        self._chunks.restart(prompt)

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
        self._of.setdefault(job.requester, {})[seq] = None
        self._order.add(seq, job.requester, job.request.priority, self._expected_tokens(job), prompt.arrived)
        if prompt.expires is not None:
            heappush(self._deadlines, (prompt.expires, seq))
        if crashes:
            self._crashed[seq] = None
        return prompt

    def _supersede_older(self, prompt: OpenPrompt) -> None:
        """End the older waiting prompts that a new one replaces."""
        if prompt.job.supersede is None:
            return
        for seq in list(self._of[prompt.job.requester]):
            older = self._prompts[seq]
            if seq < prompt.seq and older.waits and older.job.supersede == prompt.job.supersede:
                self._request_stop(older, "cancelled")

    def _is_superseded(self, seq: int) -> bool:
        """Whether a newer prompt of the requester with the same key of `supersede` is open."""
        prompt = self._prompts.get(seq)
        if prompt is None or prompt.job.supersede is None:
            return False
        newer = (self._prompts[other] for other in self._of[prompt.job.requester] if other > seq)
        return any(other.job.supersede == prompt.job.supersede for other in newer)

    def _may_run(self, requester: str) -> int:
        return self._config.in_force.settings.limits.per_requester.of(requester).running

    def _expected_tokens(self, job: Job) -> float:
        """About how many tokens a prompt and its answer take; corrected when it ends."""
        request = job.request
        characters = sum(len(turn.content) for turn in request.turns) + sum(map(len, request.embed))
        if request.embed:
            return characters / 4
        most = request.sampling.max_tokens
        return characters / 4 + (most if self.speed.tokens is None else min(most, 2 * self.speed.tokens))

    def _compare_estimate(self, prompt: OpenPrompt) -> None:
        """Log by how much the estimated wait was wrong, once a prompt."""
        if prompt.estimated_wait is None or prompt.started_at is None:
            return
        waited = prompt.started_at - prompt.arrived
        self.estimates.add(prompt.estimated_wait, waited)
        self._log.debug(
            "wait estimated",
            id=prompt.job.id,
            estimated_s=round(prompt.estimated_wait, 3),
            waited_s=round(waited, 3),
            mean_error_s=round(self.estimates.mean_error, 3),
            compared=self.estimates.count,
        )
        prompt.estimated_wait = None

    def _eta_ms(self, prompt: OpenPrompt, ahead: int) -> int | None:
        """Milliseconds until the answer is complete, estimated from the mean speed and length of earlier ones, and from
        the last load where the model must be loaded first.
        """
        speed, tokens = self.speed.tokens_per_second, self.speed.tokens
        if not speed or tokens is None:
            return None
        own = min(tokens, prompt.job.request.sampling.max_tokens)
        return int((self._worker.load_left + ((ahead + len(self._submitted)) * tokens + own) / speed) * 1000)

    def submit_waiting(self) -> None:
        """Submit to the worker what it should have: prompts that crashed one alone, else the next in order."""
        if not self._worker.ready or self._draining or self._held:
            return
        now = self._clock()
        if self._crashed:
            if not self._submitted:
                seq = next(iter(self._crashed))
                self._order.start(seq, now)
                self._submit(self._prompts[seq])
            return
        while len(self._submitted) < MAX_SUBMITTED:
            full = len(self._submitted) >= SUBMITTED
            worst = max((prompt.level for prompt in self._submitted.values()), default=0) if full else None
            following = self._order.take_next(now, worst)
            if following is None:
                return
            prompt = self._prompts[following]
            if prompt.expires is not None and prompt.expires <= now:
                self._request_stop(prompt, "expired")
            else:
                self._submit(prompt)

    def _submit(self, prompt: OpenPrompt) -> None:
        prompt.submitted = True
        self._submitted[prompt.seq] = prompt
        self._crashed.pop(prompt.seq, None)
        prompt.level = self._order.level(prompt.seq, self._clock())
        self._worker.send(frames.Add(str(prompt.seq), prompt.job.request, prompt.job.requester, prompt.level))

    def _mark_not_submitted(self, prompt: OpenPrompt) -> None:
        """Record that the worker does not have this prompt any more."""
        prompt.submitted = False
        self._submitted.pop(prompt.seq, None)
        self._started.discard(prompt.seq)

    def _update_levels(self) -> None:
        """Send the worker the new levels of its prompts, as far as they changed since the last update."""
        self._levels_at = now = self._clock()
        for seq, prompt in self._submitted.items():
            level = self._order.level(seq, now)
            if level != prompt.level:
                prompt.level = level
                self._worker.send(frames.SetLevel(str(seq), level))

    # ---- prompts are stopped ----------------------------------------------------------------------------------------

    def cancel(self, requester: str, prompt_id: str | None) -> None:
        """End this prompt of the requester (None: all of them)."""
        for prompt in [self._prompts[seq] for seq in self._of.get(requester, ())]:
            if prompt_id in (None, prompt.job.id):
                self._request_stop(prompt, "cancelled")

    def tick(self) -> None:
        """End prompts that are past their deadline; once a second update the levels and submit what may run now."""
        now = self._clock()
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            _, seq = heappop(self._deadlines)
            self._request_stop(self._prompts[seq], "expired")
        if now - self._levels_at >= LEVELS_EVERY:
            self._update_levels()
            self.submit_waiting()

    def _may_expire(self, seq: int) -> bool:
        prompt = self._prompts.get(seq)
        return prompt is not None and prompt.stopping is None and prompt.unstored_final is None

    def _request_stop(self, prompt: OpenPrompt, reason: Reason) -> None:
        """Ask the worker to cancel the prompt, or end it at once if the worker does not have it."""
        if prompt.stopping is not None or prompt.unstored_final is not None:
            return
        prompt.stopping = reason
        if prompt.submitted:
            self._worker.send(frames.Cancel(str(prompt.seq)))
        else:
            self._end_with_answer(prompt, reason, Usage(), None)

    def drain(self) -> None:
        """Stop submitting: prompts that have not started stay in the journal for the agent's next start."""
        self._draining = True
        for prompt in list(self._submitted.values()):
            if prompt.started_at is None:
                self._worker.send(frames.Cancel(str(prompt.seq)))
                self._mark_not_submitted(prompt)

    def hold(self) -> None:
        """Submit nothing until `release`: what the worker has not begun waits again, the rest runs on."""
        self._held = True
        for prompt in list(self._submitted.values()):
            if not prompt.computing and prompt.stopping is None:
                self._worker.send(frames.Cancel(str(prompt.seq)))
                self._taken_back.add(prompt.seq)
                self._return_to_order(prompt)

    def release(self) -> None:
        """Submit again."""
        self._held = False
        self.submit_waiting()

    def worker_replaced(self) -> None:
        """The worker was ended on purpose: what it had waits again from the beginning, and counts no crash."""
        self._taken_back.clear()
        for prompt in list(self._submitted.values()):
            if prompt.stopping is not None:
                self._end_with_answer(prompt, prompt.stopping, Usage(), None)
            else:
                self._return_to_order(prompt)

    def _return_to_order(self, prompt: OpenPrompt) -> None:
        self._mark_not_submitted(prompt)
        prompt.reset()
        self._order.put_back(prompt.seq, self._clock())
        if prompt.crashes:
            self._crashed[prompt.seq] = None
        if self._is_superseded(prompt.seq):  # it ran when the newer one came, and would now begin anew
            self._request_stop(prompt, "cancelled")

    def refuse_all(self, message: str) -> None:
        """End every open prompt as `unavailable`: there is no usable model."""
        for prompt in list(self._prompts.values()):
            if prompt.unstored_final is None:
                self._end_with_error(prompt, "unavailable", "no_model", message)

    # ---- frames of the worker ---------------------------------------------------------------------------------------

    def process_frame(self, frame: frames.AboutPrompt) -> None:
        """Process a frame about a prompt; one about a prompt that the worker does not have is ignored."""
        key = frame.key
        seq = int(key) if key.isdecimal() and len(key) < 20 else -1
        if seq in self._taken_back:  # of the submission that `hold` took back
            if isinstance(frame, (frames.Finished, frames.Refused)):
                self._taken_back.discard(seq)
            return
        prompt = self._prompts.get(seq)
        if prompt is None or not prompt.submitted:
            return
        match frame:
            case frames.Preparing() | frames.Prepared():
                prompt.preparing = isinstance(frame, frames.Preparing)
            case frames.Started():
                prompt.started_at = self._clock()
                self._started.add(prompt.seq)
                self._compare_estimate(prompt)
            case frames.Generated():
                self._chunks.add_text(prompt, frame.at, frame.text, frame.reasoning_at, frame.reasoning)
            case frames.Finished(final=final):
                self._on_worker_finished(prompt, final)
            case frames.Refused(reason=reason, code=code, message=message):
                self._end_with_error(prompt, wire.reason(reason), code, message)
                self.submit_waiting()

    def _on_worker_finished(self, prompt: OpenPrompt, final: Final) -> None:
        """End a prompt with the result that the worker sent."""
        if prompt.first_token_at is None and prompt.started_at is not None and final.usage.completion_tokens:
            # All of it came with the final: a single token, or text that the worker kept back.
            prompt.first_token_at = min(self._clock(), prompt.started_at + final.prefill_ms / 1000)
        prompt.text = final.text
        failure = final.failure or _NOT_COMPUTED if final.reason == "failed" else None
        reason = prompt.stopping if final.reason == "cancelled" and prompt.stopping else final.reason
        self._end_with_answer(prompt, reason, final.usage, final, failure)
        self.submit_waiting()

    def worker_exited(self, how: str) -> None:
        """Count the crash for the prompts that it was computing; each is retried once, and ended after the second."""
        self._taken_back.clear()
        computing = [p for p in self._submitted.values() if p.computing]
        if computing:
            with suppress(sqlite3.Error):  # counted in memory at least
                self._journal.count_crash([p.seq for p in computing])
        for prompt in computing:
            prompt.crashes += 1
        for prompt in list(self._submitted.values()):
            if prompt.stopping is not None:
                self._end_with_answer(prompt, prompt.stopping, Usage(), None)
            elif prompt.crashes > CRASHES_ALLOWED:
                self._end_as_poisoned(prompt, how)
            else:
                self._return_to_order(prompt)

    def _end_as_poisoned(self, prompt: OpenPrompt, how: str) -> None:
        """End a prompt whose computation ended the worker twice."""
        message = (
            f"the worker process {how} twice while it worked on this prompt, so it is not tried again; "
            "change the prompt and send it under a new id"
        )
        self._end_with_answer(prompt, "poisoned", Usage(), None, Failure("worker_died", message))

    # ---- finals -----------------------------------------------------------------------------------------------------

    def _end_with_answer(
        self, prompt: OpenPrompt, reason: Reason, usage: Usage, final: Final | None, failure: Failure | None = None
    ) -> None:
        """End a prompt with an answer: text, usage, timing and receipt, and `failure` if there is one."""
        timing = receipts.timing(prompt, self._clock(), final)
        if reason in ("stop", "length") and not prompt.job.request.embed:
            self.speed.add(receipts.tokens_per_second(final), prompt.first_token_ms, usage.completion_tokens)
        receipt = receipts.receipt(
            prompt.job,
            self._worker.info,
            self._device,
            self._config.in_force.revisions,
            final,
            throttled=self._throttled,
        )
        payload = wire.answer(prompt.job.id, reason, prompt.text, self._wall(), usage, timing, receipt, failure, final)
        self._log_end(prompt, reason, usage, timing, None if failure is None else failure.code)
        self._remove_from_queue(
            prompt, reason, payload, usage.prompt_tokens - usage.cached_tokens + usage.completion_tokens
        )

    def _end_with_error(
        self, prompt: OpenPrompt, reason: Reason, code: str, message: str, *, retry_after_ms: int | None = None
    ) -> None:
        """End a prompt with an error, without usage, timing and receipt."""
        payload = wire.refusal(
            prompt.job.id, reason, code, message, self._wall(), retry_after_ms=retry_after_ms, text=prompt.text
        )
        self._log_end(prompt, reason, Usage(), receipts.timing(prompt, self._clock(), None), code)
        self._remove_from_queue(prompt, reason, payload, 0)

    def _log_end(self, prompt: OpenPrompt, reason: Reason, usage: Usage, timing: wire.Timing, code: str | None) -> None:
        """One line about a prompt that ended; never its text."""
        self._log.info(
            "prompt ended",
            id=prompt.job.id,
            requester=prompt.job.requester,
            reason=reason,
            code=code,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            queue_ms=timing.queue_ms,
            ttft_ms=timing.ttft_ms,
            total_ms=timing.total_ms,
        )

    def _remove_from_queue(self, prompt: OpenPrompt, reason: Reason, payload: bytes, tokens: int) -> None:
        """Remove a prompt from the queue and from the worker's prompts, and store its final; `tokens`: its cost."""
        self._order.remove(prompt.seq, self._clock(), tokens)
        self._mark_not_submitted(prompt)
        self._crashed.pop(prompt.seq, None)
        self._store_final(prompt, reason, payload)

    def _store_final(self, prompt: OpenPrompt, reason: Reason, payload: bytes) -> None:
        """Write the final to the journal and publish it; keep it for `retry_unstored` if the journal fails."""
        try:
            self._journal.finish(prompt.seq, reason, payload, self._stored_time())
        except sqlite3.Error:  # a computed answer is kept until the journal can be written again
            prompt.unstored_final = (reason, payload)
            self._unstored[prompt.seq] = None
            return
        self._unstored.pop(prompt.seq, None)
        del self._prompts[prompt.seq]
        own = self._of[prompt.job.requester]
        del own[prompt.seq]
        if not own:
            del self._of[prompt.job.requester]
        self.finished += 1
        self._replies.send_final(prompt.job.reply_to, prompt.job.id, payload, prompt.seq)

    def retry_unstored(self) -> None:
        """Write the finals that the journal could not store before, oldest first, until one fails."""
        for seq in list(self._unstored):
            prompt = self._prompts[seq]
            if prompt.unstored_final is not None:
                self._store_final(prompt, *prompt.unstored_final)
                if self.has(seq):
                    return
