"""Admission: in which order a prompt is judged, what is stored, and what is answered to the rest."""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec
import pytest

from edged.agent.commands import CommandRefused, Done
from edged.config.schema import Commands, Generation, Limits, Mqtt, PerRequester, Settings
from edged.core.prompt import Choice, Turn
from tests.agent.bench import Bench, fill_disk, message


@pytest.fixture
def bench() -> Bench:
    return Bench()


def outcome(bench: Bench) -> list[tuple[str, str, str]]:
    """(id, reason, error code) of every final."""
    return [(f["id"], f["reason"], f.get("error", {}).get("code", "")) for f in bench.replies.finals]


# ---- who asks, where the answer goes --------------------------------------------------------------------------------


@pytest.mark.parametrize("requester", ["", "a b", "ä", "x" * 65, "a.b"])
def test_a_requester_outside_the_pattern_gets_no_reply_but_is_counted(bench: Bench, requester: str) -> None:
    bench.arrive(message({"id": "a", "prompt": "x"}), message(b"broken \xff"), requester=requester)
    assert bench.replies.sent == []
    assert len(bench.bad) == 2
    assert "requester" in bench.bad[0]
    assert bench.journal.open_entries() == []


def test_answers_go_to_the_default_topic_and_stream(bench: Bench) -> None:
    bench.arrive(message({"id": "a", "prompt": "x"}))
    ((topic, notice),) = bench.replies.sent
    assert topic == "edged/v1/home/reply/me/pi/a"
    assert notice == {"id": "a", "accepted": True, "position": 1, "eta_ms": None}


def test_with_a_response_topic_only_the_final_comes_and_it_goes_there(bench: Bench) -> None:
    bench.arrive(message({"id": "a", "prompt": "x"}, response_topic="edged/v1/home/reply/me/x", correlation=b"\0c"))
    assert bench.replies.sent == []
    (entry,) = bench.journal.open_entries()
    assert (entry.job.reply_to.topic, entry.job.reply_to.correlation) == ("edged/v1/home/reply/me/x", b"\0c")
    bench.finished(entry.seq)
    assert [topic for topic, _ in bench.replies.sent] == ["edged/v1/home/reply/me/x"]


def test_a_response_topic_with_stream_asked_for_streams(bench: Bench) -> None:
    body = {"id": "a", "prompt": "x", "stream": True}
    bench.arrive(message(body, response_topic="edged/v1/home/reply/me/x"))
    assert bench.replies.documents[0]["accepted"] is True


@pytest.mark.parametrize("topic", ["edged/v1/home/reply/you/x", "$SYS/x", "x", "edged/v1/home/reply/me/", "a/#", ""])
def test_any_other_response_topic_is_refused_on_the_default_topic(bench: Bench, topic: str) -> None:
    bench.arrive(message({"id": "a", "prompt": "x"}, response_topic=topic))
    assert outcome(bench) == [("a", "invalid", "response_topic")]
    assert bench.replies.sent[0][0] == "edged/v1/home/reply/me/pi/a"


def test_the_owners_reply_prefixes_are_allowed(bench: Bench) -> None:
    bench.settings = Settings(mqtt=Mqtt(reply_prefixes=("ha/inbox/",)))
    bench.arrive(message({"id": "a", "prompt": "x"}, response_topic="ha/inbox/1"))
    assert outcome(bench) == []
    bench.finished(1)
    assert bench.replies.sent[-1][0] == "ha/inbox/1"


def test_a_broken_body_is_answered_on_its_response_topic(bench: Bench) -> None:
    bench.arrive(message(b'{"id":"a",', response_topic="edged/v1/home/reply/me/x"))
    assert bench.replies.sent[0][0] == "edged/v1/home/reply/me/x"
    assert outcome(bench) == [("a", "invalid", "bad_request")]


# ---- whether it can be taken now ------------------------------------------------------------------------------------


def test_a_retained_prompt_is_invalid(bench: Bench) -> None:
    bench.arrive(message({"id": "a", "prompt": "x"}, retain=True))
    assert outcome(bench) == [("a", "invalid", "retained")]


def test_when_no_prompt_is_taken_it_is_unavailable_with_the_reason(bench: Bench) -> None:
    bench.closed = "no usable model: remove it"
    bench.arrive(message({"id": "a", "prompt": "x"}), message({"id": "b", "prompt": 5}))
    assert outcome(bench) == [("a", "unavailable", "not_now"), ("b", "invalid", "bad_request")]
    assert bench.replies.finals[0]["error"]["message"] == "no usable model: remove it"


def test_max_tokens_beyond_the_limit_is_invalid_and_names_the_limit(bench: Bench) -> None:
    bench.settings = Settings(limits=Limits(max_tokens=10))
    bench.arrive(
        message({"id": "a", "prompt": "x", "max_tokens": 11}), message({"id": "b", "prompt": "x", "max_tokens": 10})
    )
    assert outcome(bench) == [("a", "invalid", "bad_request")]
    assert "limits.max_tokens" in bench.replies.finals[0]["error"]["message"]


def test_a_full_queue_is_busy_with_the_time_to_send_again(bench: Bench) -> None:
    """The limit counts within a batch too."""
    bench.settings = Settings(limits=Limits(queue=2))
    bench.arrive(*(message({"id": f"{i}", "prompt": "x"}) for i in range(5)))
    assert outcome(bench) == [(f"{i}", "busy", "queue_full") for i in (2, 3, 4)]
    assert bench.replies.finals[0]["retry_after_ms"] == 5000
    assert len(bench.journal.open_entries()) == 2
    bench.finished(1)
    bench.arrive(message({"id": "2", "prompt": "x"}))
    assert len(bench.journal.open_entries()) == 2


def limited(queue: int = 64, **share: Any) -> Settings:
    return Settings(limits=Limits(queue=queue, per_requester=PerRequester(**share)))


def test_one_requester_has_a_share_of_the_queue(bench: Bench) -> None:
    """It counts within a batch too; others are not concerned, and a name may have more."""
    bench.settings = Settings(
        limits=Limits(queue=10, per_requester=PerRequester(queue=2, by_name={"hub": {"queue": 3}}))
    )
    bench.arrive(*(message({"id": f"{i}", "prompt": "x"}) for i in range(3)))
    bench.arrive(*(message({"id": f"{i}", "prompt": "x"}) for i in range(4)), requester="hub")
    assert [("2", "busy", "share_full"), ("3", "busy", "share_full")] == outcome(bench)
    assert 5 == len(bench.journal.open_entries())


def test_prompts_a_minute_are_bounded(bench: Bench) -> None:
    bench.settings = limited(prompts_per_minute=2)
    bench.arrive(*(message({"id": f"{i}", "prompt": "x"}) for i in range(3)))
    assert [("2", "busy", "rate")] == outcome(bench)
    bench.clock.wait(29)
    bench.arrive(message({"id": "3", "prompt": "x"}))
    assert [("2", "busy", "rate"), ("3", "busy", "rate")] == outcome(bench)
    bench.clock.wait(2)
    bench.arrive(message({"id": "4", "prompt": "x"}))
    bench.arrive(message({"id": "5", "prompt": "x"}), requester="other")
    assert ["0", "1", "4", "5"] == [entry.job.id for entry in bench.journal.open_entries()]


def test_the_best_priority_is_bounded_and_is_the_default_where_that_is_better(bench: Bench) -> None:
    bench.settings = limited(priority=7, by_name={"hub": {"priority": 2}})
    bench.arrive(message({"id": "a", "prompt": "x", "priority": 6}), message({"id": "b", "prompt": "x"}))
    bench.arrive(
        message({"id": "c", "prompt": "x", "priority": 2}), message({"id": "d", "prompt": "x"}), requester="hub"
    )
    assert [("a", "invalid", "bad_request")] == outcome(bench)
    assert "must be 7 to 9" in bench.replies.finals[0]["error"]["message"]
    entries = bench.journal.open_entries()
    assert [("b", 7), ("c", 2), ("d", 5)] == [(entry.job.id, entry.job.request.priority) for entry in entries]


def test_a_flood_gives_a_place_in_a_full_queue_to_another_requester(bench: Bench) -> None:
    """Its last waiting prompt ends as busy, and its id is free; it gets no place back by that."""
    bench.settings = limited(queue=4)
    bench.worker.replaced = True
    bench.arrive(*(message({"id": f"{i}", "prompt": "x"}) for i in range(5)), requester="flood")
    bench.arrive(message({"id": "a", "prompt": "x"}), message({"id": "b", "prompt": "x"}))
    assert [("4", "busy", "queue_full"), ("3", "busy", "displaced"), ("2", "busy", "displaced")] == outcome(bench)
    assert all(final["retry_after_ms"] for final in bench.replies.finals)
    assert ["0", "1", "a", "b"] == [entry.job.id for entry in bench.journal.open_entries()]
    bench.arrive(message({"id": "c", "prompt": "x"}))
    bench.arrive(message({"id": "5", "prompt": "x"}), requester="flood")
    assert [("c", "busy", "queue_full"), ("5", "busy", "queue_full")] == outcome(bench)[3:]


def test_a_flood_in_the_same_batch_does_not_fill_the_queue_for_others(bench: Bench) -> None:
    bench.settings = limited(queue=4)
    bench.worker.replaced = True
    batch = [("flood", message({"id": f"{i}", "prompt": "x"})) for i in range(4)]
    batch += [("me", message({"id": "a", "prompt": "x"}))]
    answers = bench.admission.process_prompts(batch)
    assert [None] * 5 == answers
    assert [("3", "busy", "displaced")] == outcome(bench)
    assert ["0", "1", "2", "a"] == [entry.job.id for entry in bench.journal.open_entries()]


def test_a_plain_text_prompt_gets_a_made_up_id(bench: Bench) -> None:
    bench.arrive(message(b"hello"), message(b"hello"))
    first, second = bench.journal.open_entries()
    assert first.job.id != second.job.id
    assert first.job.id.startswith("auto-")


# ---- deadlines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "facts", "seconds"),
    [
        ({}, {}, None),
        ({"deadline_ms": 1500}, {}, 1.5),
        ({}, {"expiry_s": 7}, 7),
        ({"expires_at": "1970-01-01T13:53:29.500Z"}, {}, 9.5),
        ({"deadline_ms": 1500, "expires_at": "1970-01-01T13:53:29Z"}, {"expiry_s": 7}, 1.5),
        ({"deadline_ms": 9000, "expires_at": "1970-01-01T13:53:23Z"}, {"expiry_s": 7}, 3),
        ({"deadline_ms": 9000}, {"expiry_s": 2}, 2),
    ],
)
def test_the_earliest_deadline_counts(
    bench: Bench, body: dict[str, Any], facts: dict[str, Any], seconds: float
) -> None:
    bench.arrive(message({"id": "a", "prompt": "x", **body}, **facts))
    (entry,) = bench.journal.open_entries()
    expected = None if seconds is None else pytest.approx(bench.clock.wall + seconds)
    assert entry.job.expires == expected


def test_a_deadline_that_has_passed_is_expired_at_once_and_without_an_error(bench: Bench) -> None:
    bench.arrive(message({"id": "a", "prompt": "x", "expires_at": "1970-01-01T00:00:00Z"}))
    assert outcome(bench) == [("a", "expired", "")]
    assert "error" not in bench.replies.finals[0]
    assert bench.journal.open_entries() == []


# ---- what the engine is asked ---------------------------------------------------------------------------------------


def test_a_prompt_says_only_what_differs_from_the_devices_defaults(bench: Bench) -> None:
    bench.settings = Settings(generation=Generation(max_tokens=9, temperature=0.1, system="Be brief."))
    bench.arrive(message({"id": "a", "prompt": "x", "temperature": 0, "priority": 2}))
    (entry,) = bench.journal.open_entries()
    request = entry.job.request
    assert request.turns == (Turn("system", "Be brief."), Turn("user", "x"))
    assert (request.sampling.max_tokens, request.sampling.temperature, request.priority) == (9, 0.0, 2)


def test_a_prompt_with_a_system_turn_of_its_own_keeps_it(bench: Bench) -> None:
    bench.settings = Settings(generation=Generation(system="Be brief."))
    turns = [{"role": "system", "content": "Be long."}, {"role": "user", "content": "x"}]
    bench.arrive(message({"id": "a", "prompt": "x", "system": "Be kind."}), message({"id": "b", "messages": turns}))
    first, second = bench.journal.open_entries()
    assert first.job.request.turns[0] == Turn("system", "Be kind.")
    assert second.job.request.turns == (Turn("system", "Be long."), Turn("user", "x"))


def test_a_format_is_kept_and_sets_the_devices_stop_texts_aside(bench: Bench) -> None:
    bench.settings = Settings(generation=Generation(stop=(".",), max_tokens=9))
    wanted = {"type": "choice", "choices": ["yes.", "no."]}
    bench.arrive(message({"id": "a", "prompt": "x", "format": wanted}), message({"id": "b", "prompt": "x"}))
    first, second = (entry.job.request for entry in bench.journal.open_entries())
    assert (first.format, first.sampling.stop, first.sampling.max_tokens) == (Choice(("yes.", "no.")), (), 9)
    assert (second.format, second.sampling.stop) == (None, (".",))


# ---- the same id again ----------------------------------------------------------------------------------------------


def test_p03_another_body_under_a_used_id_is_a_conflict_and_nothing_else(bench: Bench) -> None:
    bench.arrive(message({"id": "a", "prompt": "x"}))
    for body in ({"id": "a", "prompt": "y"}, {"id": "a", "prompt": 5}, b'{"id":"a",'):
        bench.replies.sent.clear()
        bench.arrive(message(body))
        ((_, notice),) = bench.replies.sent
        assert notice.pop("message")
        assert notice == {"id": "a", "conflict": True}
    bench.finished(1)
    assert [f["reason"] for f in bench.replies.finals] == ["stop"]


def test_p03_the_same_prompt_twice_in_one_batch_is_one_prompt(bench: Bench) -> None:
    body = {"id": "a", "prompt": "x"}
    bench.arrive(message(body), message(body))
    assert bench.worker.added == ["1"]
    bench.finished(1)
    assert len(bench.replies.finals) == 1


def test_p03_a_finished_prompt_again_gets_its_stored_final_where_the_newest_copy_wants_it(bench: Bench) -> None:
    body = {"id": "a", "prompt": "x"}
    bench.arrive(message(body))
    bench.finished(1)
    (first,) = bench.replies.finals
    bench.clock.wait(100)
    bench.arrive(message(body, response_topic="edged/v1/home/reply/me/again"))
    assert bench.replies.sent[-1] == ("edged/v1/home/reply/me/again", first)
    assert bench.worker.added == ["1"]


def test_p03_a_running_prompt_again_sends_its_answer_to_the_newest_copy(bench: Bench) -> None:
    body = {"id": "a", "prompt": "x"}
    bench.arrive(message(body))
    bench.arrive(message(body, response_topic="edged/v1/home/reply/me/again", correlation=b"2"))
    assert bench.journal.open_entries()[0].job.reply_to.correlation == b"2"
    bench.finished(1)
    assert [topic for topic, d in bench.replies.sent if d.get("final")] == ["edged/v1/home/reply/me/again"]


def test_p03_the_same_id_of_another_requester_is_another_prompt(bench: Bench) -> None:
    bench.arrive(message({"id": "a", "prompt": "x"}), requester="me")
    bench.arrive(message({"id": "a", "prompt": "y"}), requester="you")
    assert len(bench.journal.open_entries()) == 2


@pytest.mark.parametrize("finished", [False, True])
def test_p03_a_known_prompt_is_known_even_when_it_would_not_be_taken_any_more(bench: Bench, finished: bool) -> None:
    """Full, draining, without a model, or over a limit that a push has lowered since: its one final remains."""
    body = {"id": "a", "prompt": "x" * 50, "max_tokens": 100}
    bench.arrive(message(body))
    if finished:
        bench.finished(1)
    bench.closed = "the device is stopping"
    bench.settings = Settings(limits=Limits(queue=1, max_tokens=10, prompt_bytes=64))
    bench.arrive(message(body))
    bench.arrive(message(body, retain=True))
    bench.arrive(message(body, response_topic="edged/v1/home/reply/you/x"))
    if not finished:
        bench.finished(1)
    assert {f["reason"] for f in bench.replies.finals} == {"stop"}
    assert {topic for topic, _ in bench.replies.sent} == {"edged/v1/home/reply/me/pi/a"}


def test_a_refused_id_is_free(bench: Bench) -> None:
    bench.arrive(message({"id": "a", "prompt": "x", "seed": -1}))
    bench.arrive(message({"id": "a", "prompt": "x"}))
    bench.finished(1)
    assert [f["reason"] for f in bench.replies.finals] == ["invalid", "stop"]


def test_an_id_is_free_again_once_its_too_long_was_delivered(bench: Bench) -> None:
    from edged.worker import frames

    bench.arrive(message({"id": "a", "prompt": "x"}))
    bench.queue.process_frame(frames.Refused("1", "too_long", "too_long", "m"))
    bench.arrive(message({"id": "a", "prompt": "y"}))
    assert bench.replies.documents[-1].get("conflict") is True
    bench.journal.delivered(1)
    bench.arrive(message({"id": "a", "prompt": "y"}))
    assert bench.replies.documents[-1].get("accepted") is True


# ---- the journal fails ----------------------------------------------------------------------------------------------


def test_p02_what_cannot_be_stored_is_neither_accepted_nor_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole batch is refused, and may be sent again."""
    admit = bench.journal.admit

    def full(job: Any, body: bytes) -> int:
        if job.id == "b":
            raise sqlite3.OperationalError("database or disk is full")
        return admit(job, body)

    monkeypatch.setattr(bench.journal, "admit", full)
    bench.arrive(message({"id": "a", "prompt": "x"}), message({"id": "b", "prompt": "x"}))
    assert bench.journal.open_entries() == []
    assert [(one, "unavailable", "not_now") for one in "ab"] == outcome(bench)
    assert bench.worker.frames == []
    monkeypatch.undo()
    bench.arrive(message({"id": "a", "prompt": "x"}), message({"id": "b", "prompt": "x"}))
    assert len(bench.journal.open_entries()) == 2


# ---- commands -------------------------------------------------------------------------------------------------------


def allow(bench: Bench, *requesters: str) -> None:
    bench.settings = msgspec.structs.replace(bench.settings, commands=Commands(requesters))


def test_a_command_of_a_requester_that_the_owner_does_not_name_is_refused(bench: Bench) -> None:
    """Nothing is stored, and a prompt of that id ends once."""
    bench.command(message({"id": "a", "command": "reload"}))
    bench.command(message(b"reload", response_topic="edged/v1/home/reply/me/x", correlation=b"c"))
    (first, second), (where, other) = bench.replies.finals, [topic for topic, _ in bench.replies.sent]
    assert (where, first["id"], first["reason"]) == ("edged/v1/home/reply/me/pi/a", "a", "invalid")
    assert ("not_allowed", True) == (first["error"]["code"], "commands.allow" in first["error"]["message"])
    assert (other, second["id"][:5]) == ("edged/v1/home/reply/me/x", "auto-")
    assert ([], None) == (bench.executed, bench.journal.find("me", "a"))
    bench.arrive(message({"id": "used", "prompt": "x"}))
    bench.command(message({"id": "used"}))
    assert (bench.replies.documents[-1]["conflict"], len(bench.replies.finals)) == (True, 2)
    bench.command(message({"id": "a"}, retain=True))
    bench.command(message({"id": "a"}), requester="no one")
    assert (len(bench.bad), len(bench.replies.finals)) == (2, 2)


def test_a_command_is_carried_out_once_and_each_copy_gets_its_final(bench: Bench) -> None:
    allow(bench, "me")
    command = message({"id": "a", "command": "drain"})
    bench.command(command)
    bench.make_queue()  # as after a restart
    bench.command(command)
    assert ["drain"] == bench.executed
    first, again = bench.replies.finals
    assert ("stop", "done: drain", first) == (first["reason"], first["text"], again)
    assert [] == bench.journal.open_entries()
    bench.command(message({"id": "a", "command": "resume"}))
    bench.arrive(message({"id": "a", "prompt": "x"}))
    assert [True, True] == [document.get("conflict") for document in bench.replies.documents[-2:]]
    assert ["drain"] == bench.executed


def test_a_command_that_cannot_be_stored_is_carried_out_and_answered(bench: Bench) -> None:
    allow(bench, "me")
    fill_disk(bench.journal)
    bench.command(message({"id": "a", "command": "unload"}))
    assert (["unload"], ["done: unload"]) == (bench.executed, [final["text"] for final in bench.replies.finals])
    assert bench.journal.find("me", "a") is None


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"id": "a", "command": "reboot"}, "command: must be one of reload, drain"),
        ({"id": "a"}, "command: is required"),
        ({"id": "a", "command": "load", "force": True}, "force: unknown key"),
        (b"load", "the payload is not valid JSON"),
    ],
)
def test_a_command_that_is_not_known_is_refused_by_name(bench: Bench, body: Any, says: str) -> None:
    allow(bench, "me")
    bench.command(message(body))
    assert ("invalid", True) == (bench.replies.finals[0]["reason"], says in bench.replies.finals[0]["error"]["message"])
    assert [] == bench.executed


def test_a_command_that_is_refused_frees_its_id(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    allow(bench, "me")

    def refuse(_command: str) -> Done:
        raise CommandRefused("busy", "in_use", "2 open prompts must be answered first")

    monkeypatch.setattr(bench.admission, "_execute", refuse)
    bench.command(message({"id": "a", "command": "unload"}))
    final = bench.replies.finals[0]
    assert ("busy", "in_use", 5000) == (final["reason"], final["error"]["code"], final["retry_after_ms"])
    monkeypatch.undo()
    bench.command(message({"id": "a", "command": "unload"}))
    assert ["unload"] == bench.executed


# ---- cancels --------------------------------------------------------------------------------------------------------


def test_a_cancel_reaches_the_requesters_own_prompt(bench: Bench) -> None:
    bench.worker.info = None
    bench.arrive(message({"id": "a", "prompt": "x"}), requester="me")
    bench.arrive(message({"id": "a", "prompt": "x"}), requester="you")
    bench.admission.process_cancel("me", message({"id": "a"}))
    assert [e.job.requester for e in bench.journal.open_entries()] == ["you"]
    assert bench.bad == []


@pytest.mark.parametrize(
    ("requester", "cancel"),
    [
        ("a b", message({"all": True})),
        ("me", message({"all": True}, retain=True)),
        ("me", message({"all": False})),
        ("me", message({})),
        ("me", message(b"nonsense")),
        ("me", message(b"")),
    ],
)
def test_a_bad_cancel_is_counted_and_cancels_nothing(bench: Bench, requester: str, cancel: Any) -> None:
    bench.worker.info = None
    bench.arrive(message({"id": "a", "prompt": "x"}))
    bench.admission.process_cancel(requester, cancel)
    assert len(bench.bad) == 1
    assert bench.bad[0].startswith("a cancel was ignored: ")
    assert bench.queue.open == 1


def test_a_cancel_of_an_unknown_prompt_is_no_mistake(bench: Bench) -> None:
    bench.admission.process_cancel("me", message({"id": "never"}))
    bench.admission.process_cancel("me", msgspec.structs.replace(message({"all": True}), qos=0))
    assert bench.bad == []
