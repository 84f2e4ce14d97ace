"""The trial as a pure state machine: every state and every failure end in a final state, with a reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edged.config.schema import Settings, build
from edged.core.golden import Contains, Golden, Matches, Obeys
from edged.core.prompt import Failure, Turn, Usage
from edged.core.prompt import Final as Answer
from edged.fleet import trial as module
from edged.fleet import trial_events as t
from edged.fleet.plan import plan
from edged.fleet.trial import Trial

CURRENT = build({})
STATES = ("fetch", "verify", "clear", "load", "judge", "check", "serve", "probation", "commit")


def target(golden: tuple[Golden, ...] = (), probation: float = 60.0, source: str = "gemma") -> Settings:
    return build({"model": {"source": source}, "golden": golden, "trial": {"probation": probation}})


def answer(text: str, reason: Any = "stop", tokens: int = 11, decode_ms: float = 1000.0) -> Answer:
    return Answer(reason, text, Usage(5, 0, tokens), 0, 1.0, decode_ms)


def golden(expect: Any = None, **facts: Any) -> Golden:
    return Golden((Turn("user", "Capital of Japan?"),), expect=expect, **facts)


class Bench:
    """A trial, its clock, the memory that is free, and what it asked for."""

    def __init__(self, wanted: Settings, *, free: int = 10**12, link_up: bool = True) -> None:
        self.now = 1000.0
        self.free = free
        steps = plan(CURRENT, wanted, ("gemma",))
        self.trial = Trial(steps, wanted, 100, lambda: self.free, lambda: self.now, link_up=link_up)
        self.actions = self.trial.start()

    def says(self, event: t.Event) -> list[t.Action]:
        self.actions = self.trial.process(event)
        return self.actions

    def later(self, seconds: float) -> list[t.Action]:
        self.now += seconds
        self.actions = self.trial.tick()
        return self.actions

    def until(self, state: str) -> Bench:
        """Everything goes well up to this state."""
        events: dict[str, list[t.Event]] = {
            "fetch": [],
            "verify": [t.Fetched()],
            "load": [t.Verified(1000)],
            "judge": [t.Loaded()],
            "check": [t.Answered(0, answer("Tokyo"))],
            "serve": [t.Checked(0, None)],
            "probation": [t.Serving()],
        }
        order = list(events)
        if state == "clear":
            self.free = 0
            return self.until_events(events, order[: order.index("load") + 1])
        if state == "commit":
            self.until_events(events, order)
            self.later(60)
            return self
        return self.until_events(events, order[: order.index(state) + 1])

    def until_events(self, events: dict[str, list[t.Event]], states: list[str]) -> Bench:
        for state in states:
            for event in events[state]:
                self.says(event)
        return self

    def reason(self) -> str:
        """Why it was rolled back by the last actions."""
        (undo,) = self.actions
        assert isinstance(undo, t.Undo)
        assert self.trial.ended
        return undo.reason


def bench_in(state: str) -> Bench:
    return Bench(target((golden(Matches("Tokyo")),))).until(state)


# ---- the whole way ---------------------------------------------------------------------------------------------------


def test_p04_a_model_that_answers_well_and_serves_long_enough_is_committed() -> None:
    bench = Bench(target((golden(Contains(("tokyo",))), golden(Matches("T.kyo")))))
    assert [t.Fetch()] == bench.actions
    bench.says(t.Progress(0.42))
    assert ("fetch", 0.42) == (bench.trial.state, bench.trial.done)
    assert [t.Verify()] == bench.says(t.Fetched())
    assert [t.Load()] == bench.says(t.Verified(1000))
    (ask,) = bench.says(t.Loaded())
    assert isinstance(ask, t.Ask)
    (ask,) = bench.says(t.Answered(0, answer("It is TOKYO.")))
    assert isinstance(ask, t.Ask)
    assert (1, 0.5) == (ask.index, bench.trial.done)
    assert [t.Check(1, Matches("T.kyo"), "Tokyo")] == bench.says(t.Answered(1, answer("Tokyo")))
    assert [t.Serve()] == bench.says(t.Checked(1, None))
    assert [] == bench.says(t.Serving())
    assert [] == bench.later(30)
    assert 0.5 == bench.trial.done
    assert [t.Commit()] == bench.later(30)
    assert [] == bench.says(t.Committed())
    assert bench.trial.ended
    assert [("It is TOKYO.", True, 10.0), ("Tokyo", True, 10.0)] == [
        (result.answer, result.held, result.tokens_per_second) for result in bench.trial.results
    ]


def test_the_same_source_is_neither_fetched_nor_verified() -> None:
    wanted = build({"model": {"context": 512}})
    bench = Bench(wanted)
    assert [t.Load()] == bench.actions


def test_a_stored_digest_is_verified_and_not_fetched() -> None:
    assert [t.Verify()] == Bench(target(source="sha256:" + "a" * 64)).actions


def test_without_golden_prompts_any_whole_answer_holds_and_an_empty_one_does_not() -> None:
    for text, held in (("Paris.", True), (" \n", False)):
        bench = Bench(target()).until("judge")
        bench.says(t.Answered(0, answer(text)))
        assert held == (bench.actions == [t.Serve()])
    assert "which is empty" in bench.reason()


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_p07_a_model_that_does_not_fit_beside_the_old_one_is_loaded_instead_of_it() -> None:
    bench = Bench(target()).until("verify")
    bench.free = 1000
    assert [t.Clear()] == bench.says(t.Verified(10**9))
    assert "1,756 MB needed, 1 MB free" in bench.trial.note
    assert [t.Load()] == bench.says(t.Cleared())


def test_p07_a_worker_that_finds_too_little_memory_is_tried_again_alone_and_then_fails() -> None:
    bench = Bench(target()).until("load")
    full = t.Failed("no_memory", "The model needs 900 MB but 100 MB are free")
    assert [t.Unload(), t.Clear()] == bench.says(full)
    assert [t.Load()] == bench.says(t.Cleared())
    bench.says(full)
    assert "gemma could not be loaded: The model needs 900 MB but 100 MB are free" == bench.reason()


# ---- judging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "given", "took", "said"),
    [
        (golden(Contains(("Tokyo",))), answer("Kyoto"), 1.0, 'was answered "Kyoto", which does not contain "Tokyo"'),
        (golden(Contains(("a", "b"))), answer("x"), 1.0, 'which does not contain "a" or "b"'),
        (golden(within=2.0), answer("x"), 2.5, "had no answer within 2s"),
        (golden(min_tokens_per_second=20), answer("x"), 1.0, "with 10 tokens per second, below 20"),
        (golden(min_tokens_per_second=1), answer("x", tokens=1), 1.0, "too few tokens to measure the speed, below 1"),
        (golden(), answer("x", "failed"), 1.0, 'was answered "x", which ended as failed'),
        (golden(), answer("x", "cancelled"), 1.0, "which ended as cancelled"),
    ],
)
def test_p04_an_answer_that_does_not_hold_is_quoted_in_the_reason(
    wanted: Golden, given: Answer, took: float, said: str
) -> None:
    bench = Bench(target((wanted,))).until("judge")
    bench.later(took)
    if not bench.trial.ended:
        bench.says(t.Answered(0, given))
    assert said in bench.reason()
    assert 'the golden prompt "Capital of Japan?"' in bench.reason()
    assert [False] == [result.held for result in bench.trial.results]


def test_p04_a_failure_of_the_engine_is_named() -> None:
    bench = Bench(target((golden(),))).until("judge")
    failed = Answer("failed", "", Usage(), 0, 0.0, 0.0, Failure("engine", "not a number"))
    bench.says(t.Answered(0, failed))
    assert "which ended as failed (not a number)" in bench.reason()


def test_p04_a_pattern_or_schema_that_does_not_hold_is_named() -> None:
    for expect in (Matches("^x$"), Obeys('{"type":"integer"}')):
        bench = Bench(target((golden(expect),))).until("judge")
        assert [t.Check(0, expect, "Kyoto")] == bench.says(t.Answered(0, answer("Kyoto")))
        bench.says(t.Checked(0, "which does not match"))
        assert 'was answered "Kyoto", which does not match' in bench.reason()


def test_a_long_answer_is_cut_in_report_and_reason() -> None:
    bench = Bench(target((golden(Contains(("Tokyo",))),))).until("judge")
    bench.says(t.Answered(0, answer("x" * 10_000)))
    assert len(bench.reason()) < 400
    assert 200 == len(bench.trial.results[0].answer)


def test_answers_that_come_twice_or_late_or_of_another_prompt_change_nothing() -> None:
    bench = Bench(target((golden(Matches("a")), golden()))).until("judge")
    for event in (t.Answered(1, answer("x")), t.Checked(0, None), t.Refused(3, "no"), t.Answered(-1, answer("x"))):
        assert [] == bench.says(event)
    bench.says(t.Answered(0, answer("first")))
    assert [] == bench.says(t.Answered(0, answer("second")))
    bench.says(t.Checked(0, None))
    assert "first" == bench.trial.results[0].answer


# ---- the broker in the probation -------------------------------------------------------------------------------------


def test_a_short_loss_of_the_broker_begins_the_probation_anew() -> None:
    bench = Bench(target()).until("judge")
    bench.says(t.Answered(0, answer("Paris")))
    bench.says(t.Serving())
    bench.later(50)
    bench.says(t.LinkChanged(False))
    assert [] == bench.later(29)
    bench.says(t.LinkChanged(True))
    assert [] == bench.later(59)
    assert [t.Commit()] == bench.later(1)


def test_p04_a_broker_that_comes_and_goes_rolls_back() -> None:
    bench = bench_in("probation")
    for _ in range(module.LINK_LOSSES - 1):
        assert [] == bench.says(t.LinkChanged(False))
        bench.later(1)
        assert [] == bench.says(t.LinkChanged(True))
    bench.says(t.LinkChanged(False))
    assert "the broker was lost 3 times with the new model" == bench.reason()


def test_without_a_broker_from_the_start_the_probation_does_not_begin() -> None:
    bench = Bench(target((golden(Matches("Tokyo")),)), link_up=False).until("probation")
    assert [] == bench.later(29)
    bench.later(1)
    assert "the broker could not be reached for 30 s" in bench.reason()


# ---- every state × every failure -------------------------------------------------------------------------------------


def worker_killed(bench: Bench) -> None:
    bench.says(t.Exited("was killed by SIGKILL"))


def step_failed(bench: Bench) -> None:
    """A full disk, a fetch that fails, a model that is damaged: what an action answers then."""
    bench.says(t.Failed("no_disk", "No space left on device"))


def refused(bench: Bench) -> None:
    bench.says(t.Refused(0, "the prompt has 99 tokens"))


def withdrawn(bench: Bench) -> None:
    bench.says(t.Withdrawn("the layer came as revision 13 during the trial"))


def broker_gone(bench: Bench) -> None:
    """For good; nothing else goes on, so that every state meets its own deadline at the latest."""
    bench.says(t.LinkChanged(False))
    silence(bench)


def clock_jump(bench: Bench) -> None:
    """The monotonic clock leaps, as after a suspend: at once far beyond every deadline."""
    bench.later(10_000_000)


def silence(bench: Bench) -> None:
    """No answer comes any more."""
    for _ in range(5000):
        if bench.trial.ended:
            return
        due = bench.trial.next_tick()
        assert due is not None, "a state without a deadline"
        bench.now = max(bench.now, due)
        bench.actions = bench.trial.tick()


FAILURES: dict[str, Callable[[Bench], None]] = {
    "worker-killed": worker_killed,
    "step-failed": step_failed,
    "refused": refused,
    "withdrawn": withdrawn,
    "broker-gone": broker_gone,
    "clock-jump": clock_jump,
    "silence": silence,
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("state", STATES)
def test_p04_every_state_ends_after_every_failure(state: str, failure: str) -> None:
    """In a roll-back with a reason; where a failure does not concern the state, after the silence that follows it."""
    bench = bench_in(state)
    FAILURES[failure](bench)
    if not bench.trial.ended:
        silence(bench)
    assert bench.trial.ended
    assert bench.reason()


@pytest.mark.parametrize("state", STATES)
def test_p04_after_the_end_nothing_is_asked_for_any_more(state: str) -> None:
    bench = bench_in(state)
    bench.says(t.Withdrawn("x"))
    for event in (t.Fetched(), t.Verified(1), t.Cleared(), t.Loaded(), t.Answered(0, answer("Tokyo")), t.Serving()):
        assert [] == bench.says(event)
    for failure in FAILURES.values():
        failure(bench)
    assert [] == bench.actions
    assert None is bench.trial.next_tick()


@pytest.mark.parametrize("state", STATES)
def test_events_of_other_states_do_not_move_a_state(state: str) -> None:
    bench = bench_in(state)
    known: dict[str, set[type]] = {
        "fetch": {t.Fetched},
        "verify": {t.Verified},
        "clear": {t.Cleared, t.Loaded},
        "load": {t.Loaded},
        "judge": {t.Answered},
        "check": {t.Checked},
        "serve": {t.Serving},
        "probation": set(),
        "commit": {t.Committed},
    }
    before = bench.trial.state
    events: list[t.Event] = [t.Fetched(), t.Verified(1), t.Cleared(), t.Loaded(), t.Answered(0, answer("x"))]
    for event in [*events, t.Checked(0, None), t.Serving(), t.Committed()]:
        if type(event) not in known[state]:
            assert [] == bench.says(event), event
    assert before == bench.trial.state
