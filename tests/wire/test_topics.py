"""Topics: built as the contract spells them, and parsed strictly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.wire.topics import PROMPT_ID, REQUESTER, Inbound, Topics

TOPICS = Topics("home", "pi", ("kitchen", "attic"))


def test_every_topic_is_spelled_as_in_the_contract() -> None:
    assert "edged/v1/home/device/pi/prompt/+" == TOPICS.prompts
    assert "edged/v1/home/device/pi/cancel/+" == TOPICS.cancels
    assert "edged/v1/home/device/pi/command/+" == TOPICS.commands
    assert "edged/v1/home/device/pi/status" == TOPICS.status
    assert "edged/v1/home/device/pi/health" == TOPICS.health
    assert "edged/v1/home/device/pi/telemetry" == TOPICS.telemetry
    assert "edged/v1/home/device/pi/event" == TOPICS.event
    assert "edged/v1/home/device/pi/config/reported" == TOPICS.reported
    assert "edged/v1/home/reply/me/pi/a1" == TOPICS.reply("me", "a1")


def test_layers_stand_in_the_order_fleet_groups_device() -> None:
    assert [
        ("edged/v1/home/config", "fleet"),
        ("edged/v1/home/group/kitchen/config", "group:kitchen"),
        ("edged/v1/home/group/attic/config", "group:attic"),
        ("edged/v1/home/device/pi/config", "device"),
    ] == list(TOPICS.layers.items())


@pytest.mark.parametrize(
    ("topic", "inbound"),
    [
        ("edged/v1/home/device/pi/prompt/me", Inbound("prompt", "me")),
        ("edged/v1/home/device/pi/prompt/", Inbound("prompt", "")),
        ("edged/v1/home/device/pi/prompt/a b", Inbound("prompt", "a b")),
        ("edged/v1/home/device/pi/cancel/me", Inbound("cancel", "me")),
        ("edged/v1/home/pool/fast/prompt/me", Inbound("prompt", "me")),
        ("edged/v1/home/pool/fast/prompt/me/more", None),
        ("edged/v1/away/pool/fast/prompt/me", None),
        ("edged/v1/home/device/pi/status", Inbound("status", "")),
        ("edged/v1/home/config", Inbound("config", "fleet")),
        ("edged/v1/home/group/attic/config", Inbound("config", "group:attic")),
        ("edged/v1/home/device/pi/config", Inbound("config", "device")),
        ("edged/v1/home/group/other/config", None),
        ("edged/v1/home/device/pi/prompt/me/more", None),
        ("edged/v1/home/device/pi2/prompt/me", None),
        ("edged/v1/away/device/pi/prompt/me", None),
        ("edged/v1/home/device/pi/config/reported", None),
        ("", None),
    ],
)
def test_an_incoming_topic_is_taken_apart(topic: str, inbound: Inbound | None) -> None:
    assert inbound == TOPICS.parse(topic)


@pytest.mark.parametrize("name", ["me", "A-1_z", "x" * 64])
def test_a_requester_in_the_pattern(name: str) -> None:
    assert REQUESTER.match(name)


@pytest.mark.parametrize("name", ["", "x" * 65, "a b", "ä", "a/b", "a.b", "$a", "+", "#", "me\n"])
def test_a_requester_outside_the_pattern(name: str) -> None:
    assert not REQUESTER.match(name)


@pytest.mark.parametrize("name", ["a", "x" * 128, "a:b.c_d~!", '"', "$SYS"])
def test_an_id_in_the_pattern(name: str) -> None:
    assert PROMPT_ID.match(name)


@pytest.mark.parametrize(
    "name", ["", "x" * 129, "a b", "a/b", "/", "a+", "#a", "ä", "a\n", "a\x7f", "a\0", "x" * 200 + "/"]
)
def test_an_id_outside_the_pattern(name: str) -> None:
    assert not PROMPT_ID.match(name)


@given(st.text(alphabet=st.sampled_from("ab/+# $\x7fä\0"), max_size=6))
def test_an_id_that_passes_is_one_level_of_a_topic(name: str) -> None:
    assert bool(PROMPT_ID.match(name)) == (
        0 < len(name) and not set(name) & set("/+# \0\x7fä") and name.isascii() and name.isprintable()
    )


@pytest.mark.parametrize(
    "topic",
    [
        "edged/v1/home/reply/me/x",
        "edged/v1/home/reply/me/pi/a/b/c",
        "ha/inbox",
        "ha/inbox/deeper",
    ],
)
def test_a_response_topic_below_the_requesters_own_or_the_owners_prefix_is_allowed(topic: str) -> None:
    assert TOPICS.allows_reply_to(topic, "me", ("ha/",))


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "edged/v1/home/reply/me/",
        "edged/v1/home/reply/me",
        "edged/v1/home/reply/mean/x",
        "edged/v1/home/reply/other/x",
        "edged/v1/away/reply/me/x",
        "edged/v1/home/device/pi/status",
        "edged/v1/home/device/pi/prompt/me",
        "edged/v1/home/reply/me/+",
        "edged/v1/home/reply/me/#",
        "edged/v1/home/reply/me/a\0b",
        "edged/v1/home/reply/me/" + "x" * 1024,
        "edged/v1/home/reply/me/" + "x/" * 40 + "x",
        "edged/v1/home/reply/me/a\x01b",
        "edged/v1/home/reply/me/\u202e",
        "ha/",
        "hall/x",
        "$SYS/x",
        "x",
    ],
)
def test_any_other_response_topic_is_not(topic: str) -> None:
    assert not TOPICS.allows_reply_to(topic, "me", ("ha/",))
