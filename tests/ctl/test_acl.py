"""The access list of a fleet: its formats, and names that it refuses. tests/brokers has it behind a real broker."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from edged.agent.broker_link import subscriptions
from edged.ctl.main import main
from edged.wire import home_assistant
from edged.wire.topics import Topics
from tests.support import ROOT, Broker, Client

FLEET = (
    "--device=pi-1=kitchen,attic",
    "--device=pi-2",
    "--requester=anna",
    "--requester=bob=pi-2",
    "--operator=ops",
    "--console=ops",
    "--console=web",
    "--pool=fast=pi-1",
    "--home-assistant=hass",
)
Made = Callable[..., str]
Rights = set[tuple[str, str, str]]


@pytest.fixture
def made(capsys: pytest.CaptureFixture[str]) -> Made:
    """What `edgectl acl` prints with these options."""

    def print_it(*options: str) -> str:
        assert 0 == main(["acl", *options])
        return capsys.readouterr().out

    return print_it


def of_json(text: str) -> Rights:
    users = json.loads(text)["users"]
    return {(user, access, topic) for user, rights in users.items() for access in rights for topic in rights[access]}


def of_mosquitto(text: str) -> Rights:
    found: Rights = set()
    user = ""
    for line in text.splitlines():
        match line.split():
            case ["user", name]:
                user = name
            case ["topic" | "pattern" as kind, access, topic]:
                owner = user if kind == "topic" else "%u"
                found |= {(owner, one, topic) for one in (("read", "write") if access == "readwrite" else (access,))}
            case words:
                assert not words or words[0] == "#"
    return found


def of_emqx(text: str) -> Rights:
    """The terms of the file; its last denies everything else."""
    text = re.sub(r"^%%.*\n", "", text, flags=re.MULTILINE).strip()
    term = r'\{allow, (all|\{user, "([\w-]+)"\}), (subscribe|publish), \[\s*("[^"\\]+"(?:,\s*"[^"\\]+")*)\]\}\.\s*'
    assert re.fullmatch(rf"(?:{term})+\{{deny, all\}}\.", text)
    accesses = {"subscribe": "read", "publish": "write"}
    return {
        (user or "%u", accesses[action], topic.replace("${username}", "%u"))
        for _, user, action, topics in re.findall(term, text)
        for topic in re.findall(r'"([^"]+)"', topics)
    }


@pytest.mark.parametrize("options", [FLEET, ("--patterns", "--operator=ops")], ids=["names", "patterns"])
def test_every_format_allows_the_same(made: Made, options: tuple[str, ...]) -> None:
    allowed = of_json(made(*options, "--format=json"))
    assert allowed == of_mosquitto(made(*options))
    wider = {
        (user, access, f"edged/v1/home/device/+/{what}")
        for user, access, topic in allowed
        if user == "bob" and (what := topic.rpartition("/")[2]) in {"status", "health"}
    }
    narrow = {right for right in allowed if right[0] == "bob" and right[2].endswith(("/status", "/health"))}
    assert allowed - narrow | wider == of_emqx(made(*options, "--format=emqx"))


def test_a_device_may_do_what_the_daemon_does(made: Made) -> None:
    allowed = of_json(made(*FLEET, "--format=json"))
    topics = Topics("home", "pi-1", ("kitchen", "attic"), birth="homeassistant/status")
    assert {("pi-1", "read", wanted.topic) for wanted in subscriptions(topics)} <= allowed
    assert {("pi-1", "read", topics.model("+", what)) for what in ("sending", "chunk/+")} <= allowed
    own = (topics.status, topics.health, topics.telemetry, topics.event, topics.reported, topics.history)
    assert {("pi-1", "write", topic) for topic in own} <= allowed
    discovered = [
        re.sub(r"^(\w+)/\w+/(.+)/\w+/config$", r"\1/+/\2/+/config", topic)
        for topic in home_assistant.discovery(topics, "homeassistant")
    ]
    assert {("pi-1", "write", topic) for topic in discovered} <= allowed
    assert ("pi-1", "read", "edged/v1/home/pool/fast/prompt/+") in allowed
    assert ("pi-2", "read", "edged/v1/home/pool/fast/prompt/+") not in allowed
    assert ("bob", "write", "edged/v1/home/pool/fast/prompt/bob") not in allowed


def test_the_list_in_config_is_the_one_that_the_command_makes(made: Made) -> None:
    shipped = (ROOT / "config" / "mosquitto.acl").read_text("utf-8")
    assert shipped == made("--patterns", "--operator=ops", "--console=console")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "name the devices with --device or --from-broker"),
        (("--device=pi", "--requester=pi"), "pi is a device and has another role"),
        (("--device=pi", "--home-assistant=pi"), "pi is a device and has another role"),
        (("--device=pi", "--requester=anna=pj"), "the requester anna names the device pj"),
        (("--device=pi", "--pool=fast=pj"), "the pool fast names the device pj"),
        (("--device=pi", "--pool=fast"), "fast has no devices"),
        (("--device=pi", "--device=pi=attic"), "pi is named twice"),
        (("--device=pi\nuser",), "--device: must be"),
        (("--device=pi=",), "--device: must "),
        (("--device=pi", "--requester=a b"), "--requester: must be"),
        (("--device=pi", "--operator=#"), "--operator: must be"),
        (("--device=pi", "--home-assistant=x", "--requester=home-assistant"), "is the requester of Home Assistant"),
        (("--device=pi", "--home-assistant-prefix=x"), "needs --home-assistant"),
        (("--device=pi", "--home-assistant=x", "--home-assistant-prefix=edged"), "--home-assistant-prefix: must be"),
        (("--patterns", "--requester=anna"), "--patterns is for all requesters alike"),
        (("--patterns", "--device=pi"), "leave them out"),
        (("--patterns", "--home-assistant=x"), "needs the names of the devices"),
    ],
)
def test_names_and_options_that_cannot_be_are_refused_in_a_sentence(
    options: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 2 == main(["acl", *options])
    printed = capsys.readouterr()
    assert says in printed.err
    assert "" == printed.out


def test_devices_and_their_groups_come_from_the_broker(made: Made, broker: Broker, capsys: Any) -> None:
    options = ("--url", broker.url, "--fleet", "listed", "--from-broker", "--format=json")
    assert 1 == main(["acl", *options])
    assert "no device of the fleet listed is known" in capsys.readouterr().err
    client = Client(broker.port)
    try:
        for topic, payload in (("a/status", b"online"), ("b/status", b"offline"), ("a/health", {"groups": ["attic"]})):
            client.publish(f"edged/v1/listed/device/{topic}", payload, retain=True)
        allowed = of_json(made(*options, "--device=b=cellar"))
    finally:
        for topic in ("a/status", "b/status", "a/health"):
            client.publish(f"edged/v1/listed/device/{topic}", b"", retain=True)
        client.close()
    assert {"a", "b"} == {user for user, _, _ in allowed}
    groups = {(user, topic.split("/")[4]) for user, _, topic in allowed if "/group/" in topic}
    assert {("a", "attic"), ("b", "cellar")} == groups
