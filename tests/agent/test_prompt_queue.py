"""The queue: who is served when, what is published meanwhile, and that each prompt ends with exactly one final."""

from __future__ import annotations

from typing import Any

import pytest

from edged.core.prompt import Failure, Final, Usage
from edged.worker import frames
from tests.agent.bench import Bench


@pytest.fixture
def bench() -> Bench:
    return Bench()


# ---- order ----------------------------------------------------------------------------------------------------------


def test_prompts_go_to_the_worker_as_they_come(bench: Bench) -> None:
    first, second = bench.accept("a"), bench.accept("b")
    assert bench.worker.added == [str(first), str(second)]


def test_without_a_model_prompts_wait_and_then_go_in_order_of_priority_and_arrival(bench: Bench) -> None:
    bench.worker.info, info = None, bench.worker.info
    nine, five, five_too, zero = (bench.accept(f"p{p}{i}", priority=p) for i, p in enumerate([9, 5, 5, 0]))
    assert bench.worker.added == []
    bench.worker.info = info
    bench.queue.submit_waiting()
    assert bench.worker.added == [str(seq) for seq in (zero, five, five_too, nine)]


def test_the_worker_has_a_bounded_number_and_gets_the_next_when_one_ends(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edged.agent.prompt_queue.MAX_SUBMITTED", 2)
    a, b, c = bench.accept("a"), bench.accept("b"), bench.accept("c")
    urgent = bench.accept("urgent", priority=0)
    assert bench.worker.added == [str(a), str(b)]
    bench.finished(a)
    assert bench.worker.added == [str(a), str(b), str(urgent)]
    bench.finished(urgent)
    assert bench.worker.added[-1] == str(c)


def test_the_notice_says_the_position_among_those_that_wait(bench: Bench) -> None:
    bench.worker.info = None
    for prompt_id, priority in (("a", 5), ("b", 5), ("c", 0), ("d", 9)):
        bench.accept(prompt_id, priority=priority)
    assert [(d["id"], d["position"], d["eta_ms"]) for d in bench.replies.documents] == [
        ("a", 1, None),
        ("b", 2, None),
        ("c", 1, None),
        ("d", 4, None),
    ]


def test_what_runs_already_is_not_counted_in_the_position(bench: Bench) -> None:
    bench.started(bench.accept("a"))
    bench.accept("b")
    assert bench.replies.documents[-1] == {"id": "b", "accepted": True, "position": 1, "eta_ms": None}


def test_the_eta_is_known_once_a_speed_was_measured(bench: Bench) -> None:
    seq = bench.accept("a")
    bench.started(seq)
    bench.generated(seq, 0, "x")
    bench.finished(seq, tokens=11, ms=1000.0)  # ten tokens in a second
    bench.accept("b")
    assert bench.replies.documents[-1]["eta_ms"] == 1100
    bench.accept("c", max_tokens=5)
    assert bench.replies.documents[-1]["eta_ms"] == 1100 + 500


def test_a_prompt_that_does_not_stream_gets_its_final_and_nothing_else(bench: Bench) -> None:
    seq = bench.accept("a", stream=False)
    bench.started(seq)
    bench.generated(seq, 0, "do")
    bench.clock.wait(1)
    bench.generated(seq, 2, "ne")
    bench.finished(seq)
    assert [d.get("final") for d in bench.replies.documents] == [True]


# ---- chunks ---------------------------------------------------------------------------------------------------------


def test_the_first_chunk_goes_at_once_then_at_most_one_every_50_ms(bench: Bench) -> None:
    seq = bench.accept("a")
    bench.started(seq)
    for i in range(20):
        bench.generated(seq, i, "x")
        bench.clock.wait(1 / 64)
    chunks = bench.replies.chunks
    assert [(c["seq"], c["at"], c["text"]) for c in chunks] == [
        (0, 0, "x"),
        (1, 1, "xxxx"),
        (2, 5, "xxxx"),
        (3, 9, "xxxx"),
        (4, 13, "xxxx"),
    ]
    bench.finished(seq, "x" * 20)
    assert bench.replies.chunks == chunks
    assert bench.replies.finals[0]["text"] == "x" * 20


def test_at_counts_code_points(bench: Bench) -> None:
    seq = bench.accept("a")
    bench.generated(seq, 0, "日本😀")
    bench.clock.wait(0.06)
    bench.generated(seq, 3, "!")
    assert [(c["at"], c["text"]) for c in bench.replies.chunks] == [(0, "日本😀"), (3, "!")]


# ---- finals ---------------------------------------------------------------------------------------------------------


def test_the_final_carries_everything(bench: Bench) -> None:
    seq = bench.accept("a")
    bench.clock.wait(0.5)
    bench.started(seq)
    bench.clock.wait(0.25)
    bench.generated(seq, 0, "To")
    bench.clock.wait(0.25)
    bench.queue.set_throttled(True)
    bench.finished(seq, "Tokyo", tokens=3, ms=40.0)
    (final,) = bench.replies.finals
    assert final == {
        "id": "a",
        "final": True,
        "reason": "stop",
        "text": "Tokyo",
        "ts": final["ts"],
        "usage": {"prompt_tokens": 2, "cached_tokens": 0, "completion_tokens": 3},
        "timing": {"queue_ms": 500.0, "ttft_ms": 750.0, "total_ms": 1000.0, "tokens_per_second": 50.0},
        "receipt": {
            "device": "pi",
            "model": "m",
            "digest": "sha256:0",
            "quantization": "q4_1",
            "backend": "torch",
            "config": {"fleet": 7},
            "seed": 9,
            "throttled": True,
        },
    }
    assert bench.replies.tokens == [seq]
    assert (bench.queue.open, bench.queue.finished) == (0, 1)


def test_an_answer_that_comes_whole_has_a_time_to_its_first_token_too(bench: Bench) -> None:
    seq = bench.accept("a")
    bench.clock.wait(0.5)
    bench.started(seq)
    bench.clock.wait(0.25)
    final = Final("stop", "5", Usage(2, 0, 3), seed=9, prefill_ms=125.0, decode_ms=100.0)
    bench.queue.process_frame(frames.Finished(str(seq), final))
    assert bench.replies.finals[0]["timing"]["ttft_ms"] == 625.0
    assert bench.queue.speed.ttft_ms == 125.0


def test_the_final_is_in_the_journal_before_it_is_published(bench: Bench) -> None:
    seen: list[bytes | None] = []
    final = bench.replies.send_final

    def watched(*arguments: Any) -> None:
        found = bench.journal.find("me", "a")
        seen.append(found.final if found else None)
        final(*arguments)

    bench.replies.send_final = watched  # type: ignore[method-assign]
    bench.finished(bench.accept("a"))
    assert seen[0]


def test_p01_frames_about_a_prompt_that_has_ended_change_nothing(bench: Bench) -> None:
    seq = bench.accept("a")
    bench.finished(seq)
    bench.started(seq)
    bench.generated(seq, 0, "more")
    bench.finished(seq, "again")
    bench.queue.process_frame(frames.Refused(str(seq), "failed", "c", "m"))
    bench.queue.cancel("me", "a")
    assert len(bench.replies.finals) == 1
    assert bench.replies.finals[0]["text"] == "done"


@pytest.mark.parametrize("key", ["", "x", "-1", "99", "1.5", "٣", "9" * 5000])
def test_a_frame_about_nothing_we_know_is_ignored(bench: Bench, key: str) -> None:
    bench.accept("a")
    for frame in (frames.Started(key), frames.Generated(key, 0, "x"), frames.Refused(key, "failed", "c", "m")):
        bench.queue.process_frame(frame)
    assert bench.replies.finals == []
    assert bench.queue.open == 1


def test_p08_what_the_worker_refuses_is_a_final_with_its_reason(bench: Bench) -> None:
    seq = bench.accept("a")
    bench.queue.process_frame(
        frames.Refused(str(seq), "too_long", "too_long", "the prompt has 99 tokens, the context 64")
    )
    (final,) = bench.replies.finals
    assert final["reason"] == "too_long"
    assert final["error"] == {"code": "too_long", "message": "the prompt has 99 tokens, the context 64"}


def test_a_sequence_that_the_engine_could_not_compute_is_failed_with_advice(bench: Bench) -> None:
    bench.finished(bench.accept("a"), "half", "failed")
    (final,) = bench.replies.finals
    assert (final["reason"], final["text"]) == ("failed", "half")
    assert final["error"]["message"]


def test_p08_an_answer_that_does_not_obey_its_format_is_failed_in_the_engines_words(bench: Bench) -> None:
    seq = bench.accept("a")
    failure = Failure("format_incomplete", "raise max_tokens")
    bench.queue.process_frame(frames.Finished(str(seq), Final("failed", '{"a', Usage(2, 0, 3), 9, 1.0, 20.0, failure)))
    (final,) = bench.replies.finals
    assert (final["reason"], final["text"]) == ("failed", '{"a')
    assert final["error"] == {"code": "format_incomplete", "message": "raise max_tokens"}
    assert final["usage"] == {"prompt_tokens": 2, "cached_tokens": 0, "completion_tokens": 3}
    assert final["timing"]["tokens_per_second"] == 100.0
    assert final["receipt"]["seed"] == 9


def test_length_is_an_answer(bench: Bench) -> None:
    bench.finished(bench.accept("a"), "half", "length")
    assert bench.replies.finals[0]["reason"] == "length"
    assert "error" not in bench.replies.finals[0]


def test_a_more_urgent_prompt_is_submitted_beside_as_many_as_are_computed_at_a_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits can be ordered, what was submitted only has a level; a flood must not keep others from the worker."""
    monkeypatch.setattr("edged.agent.prompt_queue.SUBMITTED", 2)
    for number in range(6):
        bench.accept(f"{number}", requester="ab"[number % 2], priority=5)
    assert ["1", "2"] == bench.worker.added
    bench.accept("rare", requester="c", priority=5)
    bench.accept("late", requester="d", priority=9)
    assert ["1", "2", "7"] == bench.worker.added


def test_what_becomes_less_urgent_in_the_worker_is_reported_to_it(bench: Bench) -> None:
    """A requester that had much ranks behind one that comes new; its running prompts get another level."""
    first = bench.accept("a", requester="flood", priority=0, max_tokens=1_000_000)
    bench.accept("b", requester="rare", priority=5, max_tokens=10)
    levels = [frame for frame in bench.worker.frames if isinstance(frame, frames.SetLevel)]
    assert [str(first)] == [frame.key for frame in levels]
    assert levels[0].level > 11
