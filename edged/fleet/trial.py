"""The trial of a model as a state machine: events in, actions out. No I/O; the clock comes in as an argument.

    fetch → verify → load → judge → probation → adopted
    any of them, by any failure → rolled back

Invariants: each call returns the actions to carry out in order; each action is answered by one event; the machine ends
once, with `Commit` answered by `Committed`, or with `Undo`; after that it returns no more actions. Every state has a
deadline, so that it ends even where an answer is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from edged.config import checks
from edged.config.schema import Settings
from edged.core.golden import Golden, GoldenResult, Matches, Obeys
from edged.core.prompt import Final as Answer
from edged.core.prompt import Turn
from edged.fleet.judge import QUOTED, decode_rate, fault, quote
from edged.fleet.plan import Plan
from edged.fleet.trial_events import (
    Action,
    Answered,
    Ask,
    Check,
    Checked,
    Clear,
    Cleared,
    Commit,
    Committed,
    Event,
    Exited,
    Failed,
    Fetch,
    Fetched,
    LinkChanged,
    Load,
    Loaded,
    Progress,
    Refused,
    Serve,
    Serving,
    Undo,
    Unload,
    Verified,
    Verify,
    Withdrawn,
)

State = Literal["fetch", "verify", "load", "judge", "probation", "ended"]

FETCH_STALLS: Final = 900.0  # seconds without progress
VERIFY_WITHIN: Final = 1800.0
LOAD_WITHIN: Final = 900.0
CLEAR_WITHIN: Final = 60.0
ANSWER_WITHIN: Final = 600.0  # for a golden prompt that has no `within`
CHECK_WITHIN: Final = 30.0
LINK_GRACE: Final = 30.0  # seconds that the broker may be away during the probation
LINK_LOSSES: Final = 3
SPARE_BYTES: Final = 256_000_000  # for caches and buffers of a model that is loaded beside another
BUILT_IN: Final = Golden((Turn("user", "What is the capital of France?"),), max_tokens=32)


class Trial:
    """See the module. `available` gives the bytes of memory that are free now. Owned by the agent's main thread.

    `size` is that of the model in bytes where it is known already. `link_up`: whether the broker is connected now.
    """

    def __init__(
        self,
        steps: Plan,
        target: Settings,
        size: int,
        available: Callable[[], int],
        clock: Callable[[], float],
        *,
        link_up: bool,
    ) -> None:
        self._fetches = any(step.name == "fetch" for step in steps)
        self._verifies = any(step.name == "verify" for step in steps)
        self._golden = target.golden or (BUILT_IN,)
        self._source = target.model.source
        self._probation = target.trial.probation
        self._size = size
        self._available = available
        self._clock = clock
        self._link_up = link_up
        self._link_losses = 0
        self._link_down_at: float | None = None if link_up else clock()
        self._deadline: float | None = None
        self._alone = False  # the old worker has ended, or is about to
        self._asked_at = 0.0
        self._answer: Answer | None = None
        self._took = 0.0
        self._serving = self._committing = False
        self._served_at: float | None = None  # the probation runs since then; None: not yet, or without the broker
        self._state: State = "fetch"
        self.done = 0.0
        """Share of the present step, 0 to 1."""
        self.results: tuple[GoldenResult, ...] = ()
        self.note = ""
        """What was decided about memory, with figures, for the log."""

    @property
    def state(self) -> State:
        """The present step."""
        return self._state

    @property
    def ended(self) -> bool:
        """Whether it was adopted or rolled back."""
        return self._state == "ended"

    def start(self) -> list[Action]:
        """The first actions."""
        if self._fetches:
            return self._enter("fetch", FETCH_STALLS, Fetch())
        return self._verify()

    def next_tick(self) -> float | None:
        """The monotonic time at which `tick` has something to do."""
        if self.ended:
            return None
        ends = self._served_at + self._probation if self._served_at is not None else None
        grace = self._link_down_at + LINK_GRACE if self._serving and self._link_down_at is not None else None
        return min((moment for moment in (self._deadline, ends, grace) if moment is not None), default=None)

    def tick(self) -> list[Action]:
        """What is due now."""
        now = self._clock()
        if self.ended:
            return []
        if self._deadline is not None and now >= self._deadline:
            return self._overdue()
        if self._serving and self._link_down_at is not None and now - self._link_down_at >= LINK_GRACE:
            return self._undo(f"the broker could not be reached for {LINK_GRACE:.0f} s with the new model")
        if self._served_at is not None:
            self.done = min(1.0, (now - self._served_at) / self._probation)
            if now - self._served_at >= self._probation:
                self._served_at, self._committing, self._deadline = None, True, now + CHECK_WITHIN
                return [Commit()]
        return []

    def process(self, event: Event) -> list[Action]:
        """What follows from an event. One that does not belong to the present state changes nothing."""
        if self.ended:
            return []
        match event:
            case LinkChanged(up=up):
                return self._link_changed(up=up)
            case Withdrawn(why=why):
                return self._undo(why)
            case Exited(how=how) if self._state in {"load", "judge", "probation"}:
                return self._undo(f"the worker process with the new model {how} during the step {self._state}")
        in_state = {
            "fetch": self._in_fetch,
            "verify": self._in_verify,
            "load": self._in_load,
            "judge": self._in_judge,
            "probation": self._in_probation_step,
        }
        return in_state[self._state](event)

    # ---- states -----------------------------------------------------------------------------------------------------

    def _enter(self, state: State, within: float, *actions: Action) -> list[Action]:
        self._state, self.done, self._deadline = state, 0.0, self._clock() + within
        return list(actions)

    def _overdue(self) -> list[Action]:
        if self._state == "judge" and self._answer is None:
            bound = self._present.within or ANSWER_WITHIN
            return self._not_held("", bound, f"had no answer within {checks.show_duration(bound)}")
        return self._undo(f"the step {self._state} did not end in time")

    def _in_fetch(self, event: Event) -> list[Action]:
        match event:
            case Progress(share=share):
                self._deadline = self._clock() + FETCH_STALLS
                self.done = self.done if share is None else share
            case Fetched():
                return self._verify()
            case Failed(message=message):
                return self._undo(f"{self._source} could not be fetched: {message}")
        return []

    def _verify(self) -> list[Action]:
        return self._enter("verify", VERIFY_WITHIN, Verify()) if self._verifies else self._load()

    def _in_verify(self, event: Event) -> list[Action]:
        match event:
            case Verified(size=size):
                self._size = size
                return self._load()
            case Failed(message=message):
                return self._undo(f"{self._source} could not be verified: {message}")
        return []

    def _load(self) -> list[Action]:
        free = self._available()
        needed = self._size + self._size // 2 + SPARE_BYTES
        self._alone = needed > free
        how = "instead of" if self._alone else "beside"
        self.note = f"the new model is loaded {how} the old one: about {_mb(needed)} MB needed, {_mb(free)} MB free"
        if self._alone:
            return self._enter("load", CLEAR_WITHIN, Clear())
        return self._enter("load", LOAD_WITHIN, Load())

    def _in_load(self, event: Event) -> list[Action]:
        match event:
            case Cleared() if self._alone:
                return self._enter("load", LOAD_WITHIN, Load())
            case Loaded():
                return self._ask(0)
            case Failed(code="no_memory", message=message) if not self._alone:
                self._alone = True
                self.note = f"the new model does not fit beside the old one, so it is loaded instead of it: {message}"
                return self._enter("load", CLEAR_WITHIN, Unload(), Clear())
            case Failed(message=message):
                return self._undo(f"{self._source} could not be loaded: {message}")
        return []

    @property
    def _present(self) -> Golden:
        """The golden prompt that is being judged."""
        return self._golden[len(self.results)]

    def _ask(self, index: int) -> list[Action]:
        golden = self._golden[index]
        self._enter("judge", golden.within or ANSWER_WITHIN)
        self.done, self._asked_at, self._answer = index / len(self._golden), self._clock(), None
        return [Ask(index, golden)]

    def _in_judge(self, event: Event) -> list[Action]:
        index = len(self.results)
        match event:
            case Answered(index=asked, answer=answer) if asked == index and self._answer is None:
                self._answer, self._took = answer, self._clock() - self._asked_at
                return self._judge(answer)
            case Refused(index=asked, message=message) if asked == index:
                return self._not_held("", self._clock() - self._asked_at, f"was refused by the new model: {message}")
            case Checked(index=asked, why=why) if asked == index and self._answer is not None:
                return self._judged(self._answer, why)
        return []

    def _judge(self, answer: Answer) -> list[Action]:
        if (why := fault(self._present, answer, self._took)) is not None:
            return self._judged(answer, why)
        match self._present.expect:
            case Matches() | Obeys() as expect:
                self._deadline = self._clock() + CHECK_WITHIN
                return [Check(len(self.results), expect, answer.text)]
        return self._judged(answer, None)

    def _judged(self, answer: Answer, why: str | None) -> list[Action]:
        if why is not None:
            return self._not_held(answer.text, self._took, f"was answered {quote(answer.text)}, {why}")
        self._add_result(answer.text, self._took, held=True)
        if len(self.results) < len(self._golden):
            return self._ask(len(self.results))
        return self._enter("probation", CLEAR_WITHIN, Serve())

    def _not_held(self, text: str, took: float, how: str) -> list[Action]:
        prompt = self._present.turns[-1].content
        self._add_result(text, took, held=False)
        return self._undo(f"the golden prompt {quote(prompt)} {how}")

    def _add_result(self, text: str, took: float, *, held: bool) -> None:
        prompt = self._present.turns[-1].content
        rate = None if self._answer is None else decode_rate(self._answer)
        self.results += (GoldenResult(prompt[:QUOTED], text[:QUOTED], held, round(took * 1000, 1), rate),)

    def _in_probation_step(self, event: Event) -> list[Action]:
        match event:
            case Serving() if not self._serving:
                self._serving, self._deadline = True, None
                if self._link_up:
                    self._served_at = self._clock()
                else:
                    self._link_down_at = self._clock()
            case Committed() if self._committing:
                self._state, self._deadline = "ended", None
            case Failed(message=message):
                return self._undo(f"the settings could not be stored: {message}")
        return []

    def _link_changed(self, *, up: bool) -> list[Action]:
        if up == self._link_up:
            return []
        self._link_up = up
        self._link_down_at = None if up else self._clock()
        if not self._serving or self._committing:
            return []
        if up:
            self._served_at = self._clock()  # the whole time anew
            return []
        self._served_at = None
        self._link_losses += 1
        if self._link_losses >= LINK_LOSSES:
            return self._undo(f"the broker was lost {LINK_LOSSES} times with the new model")
        return []

    def _undo(self, reason: str) -> list[Action]:
        self._state, self._deadline, self._served_at = "ended", None, None
        return [Undo(reason)]


def _mb(size: int) -> str:
    return f"{-(-size // 1_000_000):,}"
