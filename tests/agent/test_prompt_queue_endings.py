"""The queue when things end otherwise: cancels, deadlines, repeats, crashes of the worker, a stop."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.fleet.desired import InForce
from edged.worker import frames
from tests.agent.bench import Bench, message


@pytest.fixture
def bench() -> Bench:
    return Bench()


# ---- cancels and deadlines ------------------------------------------------------------------------------------------


def test_a_waiting_prompt_is_cancelled_at_once(bench: Bench) -> None:
    bench.worker.info = None
    bench.accept("a")
    bench.accept("b")
    bench.queue.cancel("me", "a")
    assert [(f["id"], f["reason"], f["text"]) for f in bench.replies.finals] == [("a", "cancelled", "")]
    assert "error" not in bench.replies.finals[0]
    assert bench.queue.open == 1


def test_a_running_prompt_is_cancelled_with_what_it_wrote(bench: Bench) -> None:
    seq = bench.accept("a")
    bench.started(seq)
    bench.queue.cancel("me", "a")
    bench.queue.cancel("me", "a")
    assert bench.worker.cancelled == [str(seq)]
    assert bench.replies.finals == []
    bench.finished(seq, "half", "cancelled")
    assert [(f["reason"], f["text"]) for f in bench.replies.finals] == [("cancelled", "half")]


def test_a_cancel_concerns_only_its_own_requester(bench: Bench) -> None:
    bench.worker.info = None
    bench.accept("a", requester="me")
    bench.accept("a", requester="you")
    bench.accept("b", requester="me")
    bench.queue.cancel("me", None)
    assert bench.queue.open == 1
    bench.queue.cancel("me", "a")
    bench.queue.cancel("stranger", None)
    assert bench.queue.open == 1


def test_an_answer_that_ended_before_the_cancel_reached_it_stays_an_answer(bench: Bench) -> None:
    seq = bench.accept("a")
    bench.queue.cancel("me", "a")
    bench.finished(seq, "whole", "stop")
    assert [(f["reason"], f["text"]) for f in bench.replies.finals] == [("stop", "whole")]


def test_a_waiting_prompt_expires_at_its_deadline_and_not_before(bench: Bench) -> None:
    bench.worker.info = None
    bench.accept("a", expires_in=2.0)
    assert bench.queue.next_deadline() == bench.clock.up + 2.0
    bench.clock.wait(1.9)
    bench.queue.tick()
    assert bench.replies.finals == []
    bench.clock.wait(0.1)
    bench.queue.tick()
    assert [f["reason"] for f in bench.replies.finals] == ["expired"]
    assert bench.queue.next_deadline() is None


def test_a_running_prompt_expires_with_what_it_wrote(bench: Bench) -> None:
    seq = bench.accept("a", expires_in=2.0)
    bench.started(seq)
    bench.clock.wait(3)
    bench.queue.tick()
    assert bench.queue.next_deadline() is None
    bench.finished(seq, "half", "cancelled")
    assert [(f["reason"], f["text"]) for f in bench.replies.finals] == [("expired", "half")]


def test_a_prompt_whose_end_was_asked_for_is_not_submitted_again_when_the_worker_ends(bench: Bench) -> None:
    seq = bench.accept("a")
    bench.started(seq)
    bench.queue.cancel("me", "a")
    bench.queue.worker_exited("died")
    bench.queue.submit_waiting()
    assert [f["reason"] for f in bench.replies.finals] == ["cancelled"]
    assert bench.worker.added == [str(seq)]


def test_a_deadline_is_kept_by_the_monotonic_clock_when_the_wall_clock_is_set(bench: Bench) -> None:
    bench.worker.info = None
    bench.accept("a", expires_in=10.0)
    bench.clock.wall += 1_000_000
    bench.queue.tick()
    assert bench.replies.finals == []


# ---- repeats --------------------------------------------------------------------------------------------------------


def test_a_repeat_before_any_text_does_not_count_as_a_chunk(bench: Bench) -> None:
    """What is shown of nothing is an empty chunk; the first text, at 0 again, has the number 0 again."""
    repeated = message({"id": "a", "prompt": "x"})
    bench.arrive(repeated)
    bench.arrive(repeated)
    bench.started(1)
    bench.generated(1, 0, "one ")
    bench.clock.wait(0.1)
    bench.generated(1, 4, "two")
    assert [(c["seq"], c["at"], c["text"]) for c in bench.replies.chunks] == [(0, 0, ""), (0, 0, "one "), (1, 4, "two")]


def test_p03_the_same_prompt_again_while_it_runs_gets_the_text_so_far_and_what_follows(bench: Bench) -> None:
    repeated = message({"id": "a", "prompt": "x"})
    bench.arrive(repeated)
    bench.started(1)
    bench.generated(1, 0, "one ")
    bench.generated(1, 4, "two ")
    bench.arrive(repeated)
    bench.clock.wait(0.06)
    bench.generated(1, 8, "three")
    bench.finished(1, "one two three")
    assert [(c["seq"], c["at"], c["text"]) for c in bench.replies.chunks] == [
        (0, 0, "one "),
        (0, 0, "one two "),
        (1, 8, "three"),
    ]
    assert len(bench.replies.finals) == 1
    assert bench.worker.added == ["1"]


# ---- the worker ends ------------------------------------------------------------------------------------------------


def test_p11_what_ran_is_tried_once_more_alone_then_poisoned(bench: Bench) -> None:
    a, b = bench.accept("a"), bench.accept("b")
    bench.started(a, b)
    bench.generated(a, 0, "half")
    bench.queue.worker_exited("was killed by SIGKILL")
    assert bench.replies.finals == []
    bench.worker.frames.clear()
    bench.queue.submit_waiting()
    assert bench.worker.added == [str(a)]
    bench.started(a)
    bench.queue.worker_exited("was killed by SIGKILL")
    (final,) = bench.replies.finals
    assert (final["id"], final["reason"], final["error"]["code"]) == ("a", "poisoned", "worker_died")
    assert (
        "the worker process was killed by SIGKILL twice while it worked on this prompt, so it is not tried again; "
        "change the prompt and send it under a new id"
    ) == final["error"]["message"]
    bench.queue.submit_waiting()
    assert bench.worker.added == [str(a), str(b)]
    bench.finished(b)
    assert [f["id"] for f in bench.replies.finals] == ["a", "b"]


def test_p11_what_had_not_begun_is_not_counted(bench: Bench) -> None:
    a, b = bench.accept("a"), bench.accept("b")
    bench.started(a)
    for _ in range(5):
        bench.queue.worker_exited("died")
        bench.queue.submit_waiting()
        bench.finished(a) if bench.queue.has(a) else None
    assert bench.queue.has(b)
    assert [e.crashes for e in bench.journal.open_entries()] == [0]


def test_p11_what_kills_the_worker_before_it_begins_is_counted_too(bench: Bench) -> None:
    """A text or a format that takes the worker's memory while it is prepared; what waits beside it is not counted."""
    waiting, bad = bench.accept("waiting"), bench.accept("bad")
    for key in (waiting, bad):
        bench.queue.process_frame(frames.Preparing(str(key)))
        if key == waiting:
            bench.queue.process_frame(frames.Prepared(str(key)))
    bench.queue.worker_exited("was killed by SIGKILL")
    bench.worker.frames.clear()
    bench.queue.submit_waiting()
    assert bench.worker.added == [str(bad)]
    bench.queue.process_frame(frames.Preparing(str(bad)))
    bench.queue.worker_exited("was killed by SIGKILL")
    bench.queue.submit_waiting()
    assert [(f["id"], f["error"]["code"]) for f in bench.replies.finals] == [("bad", "worker_died")]
    assert bench.worker.added == [str(bad), str(waiting)]
    assert [entry.crashes for entry in bench.journal.open_entries()] == [0]


def test_p11_a_poisoned_prompt_carries_what_it_had(bench: Bench) -> None:
    """Its final carries the text so far, usage, times and receipt as any other."""
    a = bench.accept("a")
    for _ in range(2):
        bench.started(a)
        bench.generated(a, 0, "half")
        bench.queue.worker_exited("died")
        bench.queue.submit_waiting()
    (final,) = bench.replies.finals
    assert final["text"] == "half"
    assert {"usage", "timing", "receipt", "error"} <= final.keys()


def test_p11_others_wait_until_what_crashed_a_worker_has_finished(bench: Bench) -> None:
    a = bench.accept("a")
    bench.started(a)
    bench.queue.worker_exited("died")
    c = bench.accept("c", priority=0)
    assert bench.worker.added == [str(a), str(a)]
    bench.started(a)
    bench.finished(a)
    assert bench.worker.added == [str(a), str(a), str(c)]


def test_what_comes_while_the_worker_is_replaced_is_submitted_to_the_next_one(bench: Bench) -> None:
    bench.worker.replaced = True
    seq = bench.accept("a")
    assert bench.worker.added == []
    bench.worker.replaced = False
    bench.queue.submit_waiting()
    assert bench.worker.added == [str(seq)]


def test_after_a_crash_the_text_starts_again(bench: Bench) -> None:
    a = bench.accept("a")
    bench.started(a)
    bench.generated(a, 0, "first ")
    bench.clock.wait(0.1)
    bench.generated(a, 6, "try")
    bench.queue.worker_exited("died")
    bench.queue.submit_waiting()
    bench.started(a)
    bench.generated(a, 0, "second")
    assert [(c["seq"], c["at"]) for c in bench.replies.chunks] == [(0, 0), (1, 6), (0, 0)]
    bench.finished(a, "second")
    assert bench.replies.finals[0]["text"] == "second"


def test_p11_crashes_count_across_restarts_of_the_agent(bench: Bench) -> None:
    a = bench.accept("a")
    bench.started(a)
    bench.queue.worker_exited("died")
    bench.make_queue()
    bench.queue.restore(bench.journal.open_entries())
    bench.started(a)
    bench.queue.worker_exited("died")
    assert [f["reason"] for f in bench.replies.finals] == ["poisoned"]


def test_p11_an_agent_that_dies_between_the_count_and_the_final_does_not_try_a_third_time(bench: Bench) -> None:
    a = bench.accept("a")
    bench.journal.count_crash([a])
    bench.journal.count_crash([a])
    bench.worker.frames.clear()
    bench.make_queue()
    bench.queue.restore(bench.journal.open_entries())
    assert bench.worker.added == []
    assert [(f["id"], f["reason"]) for f in bench.replies.finals] == [("a", "poisoned")]


def test_p02_an_exit_of_the_agent_is_no_crash_of_the_worker(bench: Bench) -> None:
    for _ in range(5):
        seq = bench.accept("a") if not bench.queue.open else 1
        bench.started(seq)
        bench.make_queue()
        bench.queue.restore(bench.journal.open_entries())
    bench.started(1)
    bench.finished(1)
    assert [f["reason"] for f in bench.replies.finals] == ["stop"]


def test_p02_a_restart_keeps_order_and_deadline(bench: Bench) -> None:
    bench.worker.info, info = None, bench.worker.info
    late = bench.accept("late", priority=9)
    soon = bench.accept("soon", priority=1, expires_in=60)
    gone = bench.accept("gone", expires_in=1)
    bench.clock.wait(30)
    bench.clock.up = 5.0  # the board was switched off and on
    bench.worker.info = info
    bench.make_queue()
    bench.queue.restore(bench.journal.open_entries())
    bench.queue.tick()
    assert bench.queue.next_deadline() == pytest.approx(5.0 + 30.0)
    bench.finished(gone, "", "cancelled")
    assert [f["reason"] for f in bench.replies.finals] == ["expired"]
    assert bench.worker.added.index(str(soon)) < bench.worker.added.index(str(late))


# ---- stopping and no model ------------------------------------------------------------------------------------------


def test_p02_draining_lets_what_runs_end_and_keeps_what_waits(bench: Bench) -> None:
    a, b = bench.accept("a"), bench.accept("b")
    bench.started(a)
    bench.queue.drain()
    assert bench.worker.cancelled == [str(b)]
    bench.finished(b, "", "cancelled")  # the worker's answer to our own cancel is no final
    bench.accept("c")
    bench.finished(a)
    assert [f["id"] for f in bench.replies.finals] == ["a"]
    assert [e.job.id for e in bench.journal.open_entries()] == ["b", "c"]
    assert bench.queue.running == 0


def test_without_a_usable_model_everything_is_unavailable_with_the_reason(bench: Bench) -> None:
    bench.started(bench.accept("a"))
    bench.worker.info = None
    bench.accept("b")
    bench.queue.refuse_all("the model is broken; remove it")
    assert [(f["id"], f["reason"]) for f in bench.replies.finals] == [("a", "unavailable"), ("b", "unavailable")]
    assert {f["error"]["message"] for f in bench.replies.finals} == {"the model is broken; remove it"}
    assert bench.queue.open == 0


def test_retry_after_is_about_the_time_of_one_answer(bench: Bench) -> None:
    assert bench.queue.retry_after_ms() == 5000
    bench.finished(bench.accept("a"), tokens=101, ms=10_000.0)  # ten tokens a second
    assert bench.queue.retry_after_ms() == 10_100
    bench.finished(bench.accept("b"), tokens=100_000, ms=1e7)
    assert bench.queue.retry_after_ms() == 600_000


# ---- whatever happens -----------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(["accept", "begin", "write", "end", "die", "cancel", "wait", "restart"])), st.randoms())
def test_p01_every_prompt_gets_exactly_one_final_whatever_happens(  # noqa: C901  - a branch a kind of step
    steps: list[str], draw: random.Random
) -> None:
    bench = Bench()
    asked: list[str] = []
    held: set[str] = set()
    for step in steps:
        added_now = bench.worker.added
        held = held & {str(e.seq) for e in bench.journal.open_entries()} | set(added_now)
        key = draw.choice(sorted(held)) if held else "0"
        if step == "accept":
            asked.append(f"id{len(asked)}")
            bench.accept(asked[-1], priority=draw.randrange(10), expires_in=draw.choice([None, 0.5, 5]))
        elif step == "begin":
            bench.queue.process_frame(frames.Started(key))
        elif step == "write":
            bench.queue.process_frame(frames.Generated(key, 0, "x"))
        elif step == "end":
            bench.finished(int(key), reason=draw.choice(["stop", "length", "cancelled"]))
        elif step == "die":
            bench.queue.worker_exited("died")
            bench.queue.submit_waiting()
        elif step == "cancel":
            bench.queue.cancel("me", draw.choice([None, *asked]))
        elif step == "wait":
            bench.clock.wait(draw.random())
            bench.queue.tick()
        else:
            bench.make_queue()
            bench.queue.restore(bench.journal.open_entries())
    while bench.queue.open:
        before = bench.queue.open
        for entry in bench.journal.open_entries():
            bench.finished(entry.seq)
        assert bench.queue.open < before
    assert sorted(f["id"] for f in bench.replies.finals) == sorted(asked)


def test_the_receipt_names_the_config_that_the_prompt_was_accepted_under(bench: Bench) -> None:
    bench.arrive(message({"id": "a", "prompt": "x"}))
    bench.in_force = InForce(bench.settings, {"fleet": 8})
    bench.finished(1)
    bench.arrive(message({"id": "b", "prompt": "x"}))
    bench.finished(2)
    assert [f["receipt"]["config"] for f in bench.replies.finals] == [{"fleet": 7}, {"fleet": 8}]


# ---- another worker takes over --------------------------------------------------------------------------------------


def test_p01_while_the_queue_is_held_what_runs_ends_and_nothing_new_is_submitted(bench: Bench) -> None:
    first, second = bench.accept("a"), bench.accept("b")
    bench.started(first)
    bench.queue.hold()
    bench.accept("c")
    assert ([str(second)], 1) == (bench.worker.cancelled, bench.queue.submitted)
    bench.finished(first, "x")
    assert 0 == bench.queue.submitted
    bench.queue.release()
    assert ["a", "b", "b", "c"] == [
        bench.queue._prompts[int(k)].job.id if k != str(first) else "a" for k in bench.worker.added
    ]


def test_p01_the_end_of_a_submission_that_was_taken_back_does_not_end_the_next_one(bench: Bench) -> None:
    """The same worker goes on, since the trial was withdrawn: its answer to the cancel comes late."""
    seq = bench.accept("a")
    bench.queue.hold()
    bench.queue.release()
    bench.finished(seq, "", "cancelled")
    assert [] == bench.replies.finals
    bench.started(seq)
    bench.finished(seq, "whole")
    assert [("stop", "whole")] == [(f["reason"], f["text"]) for f in bench.replies.finals]


def test_p11_a_worker_that_is_replaced_counts_as_no_crash(bench: Bench) -> None:
    seq = bench.accept("a")
    for _ in range(5):
        bench.started(seq)
        bench.queue.hold()
        bench.queue.worker_replaced()
        bench.queue.release()
    bench.started(seq)
    bench.finished(seq, "whole")
    assert ["stop"] == [final["reason"] for final in bench.replies.finals]


def test_a_prompt_that_is_being_cancelled_ends_so_when_the_worker_is_replaced(bench: Bench) -> None:
    seq = bench.accept("a")
    bench.started(seq)
    bench.queue.cancel("me", "a")
    bench.queue.worker_replaced()
    assert ["cancelled"] == [final["reason"] for final in bench.replies.finals]
