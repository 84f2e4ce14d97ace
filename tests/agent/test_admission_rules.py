"""What is decided about a message is data: the same message under the same conditions gives the same decision."""

from __future__ import annotations

import msgspec
import pytest

from edged.agent.admission_rules import Accept, AdmissionRules, Cancel, Conditions, Conflict, Ignore, Refuse, Repeat
from edged.agent.journal import Entry, ReplyTo, body_digest
from edged.config.schema import Generation, Limits, Settings
from edged.link.events import Arrived
from edged.wire.topics import Topics
from tests.agent.bench import message

NOW = Conditions(Settings(limits=Limits(queue=2)), {"fleet": 7}, None, 0, 50_000.0)
DEFAULT = ReplyTo("edged/v1/home/reply/me/pi/a")
PROMPT = message({"id": "a", "prompt": "x"})


def rules(*known: Entry) -> AdmissionRules:
    stored = {(entry.job.requester, entry.job.id): entry for entry in known}
    return AdmissionRules(Topics("home", "pi"), lambda *key: stored.get(key), lambda *_: False, lambda: "auto-1")


def accepted(arrived: Arrived = PROMPT) -> Accept:
    decision = rules().prompt("me", arrived, NOW)
    assert isinstance(decision, Accept)
    return decision


def entry(of: Accept) -> Entry:
    return Entry(4, of.job, of.body, 0, None, None)


def test_a_prompt_is_accepted_with_the_revisions_in_force() -> None:
    decision = accepted()
    assert ("me", "a", DEFAULT) == (decision.job.requester, decision.job.id, decision.job.reply_to)
    assert ({"fleet": 7}, 50_000.0) == (decision.job.config, decision.job.arrived)
    assert body_digest(PROMPT.payload) == decision.body


def test_a_raw_prompt_needs_the_owners_leave() -> None:
    raw = message({"id": "a", "prompt": "Once", "raw": True})
    refused = rules().prompt("me", raw, NOW)
    assert isinstance(refused, Refuse)
    assert ("invalid", "bad_request") == (refused.reason, refused.code)
    assert "limits.raw: true in the device's own file" in refused.message
    system = Generation(system="Be brief.")
    open_to_all = msgspec.structs.replace(NOW, settings=Settings(limits=Limits(raw=True), generation=system))
    allowed = rules().prompt("me", raw, open_to_all)
    assert isinstance(allowed, Accept)
    assert ("Once", ()) == (allowed.job.request.raw, allowed.job.request.turns)


def test_what_nobody_sets_is_left_to_the_model_and_the_arrival_goes_with_the_prompt() -> None:
    request = accepted(message({"id": "a", "prompt": "x", "top_p": 1.0})).job.request
    assert ("temperature", "top_k", "min_p", "repetition_penalty") == request.unset
    assert 50_000.0 == request.arrived


def test_a_last_turn_may_be_continued() -> None:
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "I"}]
    assert accepted(message({"id": "a", "messages": turns, "continue": True})).job.request.continue_last


def test_a_decision_changes_nothing() -> None:
    asked = rules(entry(accepted()))
    assert asked.prompt("me", PROMPT, NOW) == asked.prompt("me", PROMPT, NOW)


def test_a_refusal_names_where_it_goes_and_why() -> None:
    full = msgspec.structs.replace(NOW, open_prompts=2)
    why = "2 prompts wait already (limits.queue); send it again after retry_after_ms"
    assert Refuse("me", DEFAULT, "a", body_digest(PROMPT.payload), "busy", "queue_full", why) == rules().prompt(
        "me", PROMPT, full
    )


def test_a_known_id_is_a_repeat_or_a_conflict() -> None:
    first = accepted()
    known = rules(entry(first))
    assert Repeat(4, first.job) == known.prompt("me", PROMPT, NOW)
    assert Conflict(DEFAULT, "a") == known.prompt("me", message({"id": "a", "prompt": "y"}), NOW)
    assert Conflict(DEFAULT, "a") == known.command("me", message({"id": "a"}), NOW)


def test_a_repeat_goes_where_its_newest_copy_wants_it() -> None:
    first = accepted()
    newest = message({"id": "a", "prompt": "x"}, response_topic="edged/v1/home/reply/me/x", correlation=b"c")
    to = ReplyTo("edged/v1/home/reply/me/x", b"c")
    expected = Repeat(4, msgspec.structs.replace(first.job, stream=False, reply_to=to))
    assert expected == rules(entry(first)).prompt("me", newest, NOW)


@pytest.mark.parametrize("requester", ["", "a b", "x" * 65])
def test_a_requester_outside_the_pattern_is_ignored(requester: str) -> None:
    decisions = (
        rules().prompt(requester, PROMPT, NOW),
        rules().command(requester, PROMPT, NOW),
        rules().cancel(requester, message({"all": True})),
        rules().unreadable(requester, PROMPT, "why"),
    )
    assert [Ignore] * 4 == [type(decision) for decision in decisions]


def test_an_unreadable_message_is_refused_under_a_generated_id() -> None:
    decision = rules().unreadable("me", PROMPT, "property 99")
    assert isinstance(decision, Refuse)
    assert ("auto-1", "invalid", "unreadable") == (decision.prompt_id, decision.reason, decision.code)


def test_a_cancel_names_its_requester() -> None:
    assert Cancel("me", "a") == rules().cancel("me", message({"id": "a"}))
    assert Cancel("me", None) == rules().cancel("me", message({"all": True}))
