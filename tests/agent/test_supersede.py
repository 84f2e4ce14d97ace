"""`supersede`: a newer prompt with the same key replaces the requester's older ones that wait."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edged.config.schema import Limits, PerRequester, Settings
from tests.agent.bench import Bench, message


@pytest.fixture
def bench() -> Bench:
    """Without a model, so that prompts wait."""
    made = Bench()
    made.worker.info = None
    return made


def ask(bench: Bench, prompt_id: str, key: str | None = "k", requester: str = "me", **more: Any) -> None:
    body = {"id": prompt_id, "prompt": prompt_id, **more}
    bench.arrive(message(body if key is None else {**body, "supersede": key}), requester=requester)


def endings(bench: Bench) -> list[tuple[str, str]]:
    return [(final["id"], final["reason"]) for final in bench.replies.finals]


def open_ids(bench: Bench) -> list[str]:
    return [entry.job.id for entry in bench.journal.open_entries()]


def test_an_older_waiting_prompt_ends_as_cancelled_without_an_error(bench: Bench) -> None:
    ask(bench, "a")
    ask(bench, "b")
    (final,) = bench.replies.finals
    assert ("a", "cancelled", "", False) == (final["id"], final["reason"], final["text"], "error" in final)
    assert ["b"] == open_ids(bench)
    assert {"id": "b", "accepted": True, "position": 1, "eta_ms": None} == bench.replies.documents[-1]


def test_other_keys_other_requesters_and_prompts_without_a_key_stay(bench: Bench) -> None:
    ask(bench, "other", "k2")
    ask(bench, "none", None)
    ask(bench, "theirs", requester="you")
    ask(bench, "a")
    assert [] == endings(bench)


def test_what_has_begun_is_not_replaced() -> None:
    bench = Bench()
    ask(bench, "a")
    bench.started(1)
    ask(bench, "b")
    bench.finished(1)
    assert ([], [("a", "stop")]) == (bench.worker.cancelled, endings(bench))


def test_what_the_worker_has_but_has_not_begun_is_taken_back() -> None:
    bench = Bench()
    ask(bench, "a")
    ask(bench, "b")
    assert ["1"] == bench.worker.cancelled
    bench.finished(1, "", "cancelled", tokens=0)
    assert [("a", "cancelled")] == endings(bench)


def test_a_replaced_id_has_its_final_and_is_not_asked_again(bench: Bench) -> None:
    ask(bench, "a")
    ask(bench, "b")
    ask(bench, "a")
    assert [("a", "cancelled"), ("a", "cancelled")] == endings(bench)
    assert ["b"] == open_ids(bench)


@pytest.mark.parametrize("limits", [{"queue": 1}, {"per_requester": PerRequester(queue=1)}])
def test_a_full_queue_takes_a_prompt_that_replaces_one(bench: Bench, limits: dict[str, Any]) -> None:
    bench.settings = Settings(limits=Limits(**limits))
    ask(bench, "a")
    ask(bench, "b")
    ask(bench, "c", "another")
    assert [("a", "cancelled"), ("c", "busy")] == endings(bench)


def test_a_full_share_takes_replacements_that_arrive_together(bench: Bench) -> None:
    bench.settings = Settings(limits=Limits(per_requester=PerRequester(queue=1)))
    bench.arrive(*(message({"id": name, "prompt": name, "supersede": "k"}) for name in "abc"))
    assert [("a", "cancelled"), ("b", "cancelled")] == endings(bench)


def test_a_kill_between_the_new_prompt_and_the_end_of_the_older_leaves_one(bench: Bench) -> None:
    for name in ("a", "b"):
        ask(bench, name, None)
    rows = bench.journal.open_entries()
    with bench.journal.transaction():
        for row in rows:
            bench.journal.redirect(row.seq, msgspec.structs.replace(row.job, supersede="k"))
    bench.make_queue()
    bench.queue.restore(bench.journal.open_entries())
    assert [("a", "cancelled")] == endings(bench)


def test_what_ran_while_it_was_replaced_does_not_begin_anew_after_a_crash() -> None:
    bench = Bench()
    ask(bench, "a")
    bench.started(1)
    ask(bench, "b")
    bench.worker.replaced = True
    bench.queue.worker_exited("was killed")
    assert [("a", "cancelled")] == endings(bench)
