"""Pools: prompts that any member may answer, and when a device is no member."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edged.agent.events import FromPool
from edged.agent.pools import MemberFacts, Pools, reason_to_leave
from edged.config.schema import Mqtt
from edged.link.events import Arrived, Down, Up
from edged.wire.topics import Topics
from tests.agent.bench import Bench, message
from tests.support import ROOT, Broker, Client, Device, as_json, running, wait_until

POOL = "edged/v1/test/pool/fast/prompt/me"
WELL = MemberFacts(connected=True, unavailable=None, online=True, trial=False, findings=(), open=0, limit=4)


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({}, None),
        ({"connected": False}, "there is no connection to the broker"),
        ({"unavailable": "drained"}, "drained"),
        ({"online": False}, "the model is being loaded"),
        ({"trial": True}, "a config layer is on trial"),
        ({"findings": ("memory_low", "throttled")}, "the finding throttled holds"),
        ({"findings": ("temperature_high",)}, "the finding temperature_high holds"),
        ({"findings": ("memory_low",)}, None),
        ({"open": 3}, None),
        ({"open": 4}, "the queue is full"),
    ],
)
def test_a_member_leaves_while_it_should_get_no_prompts(facts: dict[str, Any], why: str | None) -> None:
    assert why == reason_to_leave(msgspec.structs.replace(WELL, **facts), joined=True, held=0)


def test_a_member_that_was_full_returns_when_a_quarter_of_its_queue_is_free() -> None:
    back = [
        open_
        for open_ in range(9)
        if reason_to_leave(msgspec.structs.replace(WELL, open=open_, limit=8), joined=False, held=0) is None
    ]
    assert [0, 1, 2, 3, 4, 5, 6] == back
    assert None is reason_to_leave(msgspec.structs.replace(WELL, limit=1), joined=False, held=0)
    assert "the queue is full" == reason_to_leave(WELL, joined=True, held=1)


class RecordingConnection:
    """The second connection: records what it is asked for."""

    def __init__(self, *given: Any, **options: Any) -> None:
        self.given, self.options = given, options
        self.calls: list[str] = []
        self.acknowledged: list[int] = []

    def start(self) -> None:
        self.calls.append("start")

    def stop(self, _timeout: float) -> None:
        self.calls.append("stop")

    def subscribe(self, _session: int, _subscriptions: Any) -> None:
        self.calls.append("subscribe")

    def unsubscribe(self, _session: int, _topics: Any) -> None:
        self.calls.append("unsubscribe")

    def acknowledge(self, arrived: Arrived) -> None:
        self.acknowledged.append(arrived.mid)


class Member:
    """A device as a member, over a bench without I/O."""

    def __init__(self, **limits: Any) -> None:
        self.bench = Bench(**limits)
        self.made: list[RecordingConnection] = []
        self.facts = WELL
        self.version = "5"
        self.congested = False
        topics = Topics("test", "pi", pools=("fast",))
        self.pools = Pools(
            topics,
            Mqtt(),
            self.bench.admission,
            self,  # type: ignore[arg-type]
            self.connect,
            lambda _event: None,
            lambda: msgspec.structs.replace(
                self.facts, open=self.bench.queue.open, limit=self.bench.settings.limits.queue
            ),
            lambda: self.version,
        )

    def connect(self, *given: Any, **options: Any) -> Any:
        self.made.append(RecordingConnection(*given, **options))
        return self.made[-1]

    def send(self, publication: Any) -> None:
        self.bench.replies.publish(publication)

    def event(self, event: Any) -> None:
        self.pools.process(FromPool(len(self.made), event))

    def up(self, *refused: str) -> None:
        self.pools.tick()
        self.event(Up(1, "5", 20, None, refused))

    def arrive(self, *ids: str, qos: int = 1) -> None:
        for mid, prompt_id in enumerate(ids, 1):
            self.event(message({"id": prompt_id, "prompt": "x"}, topic=POOL, mid=mid, qos=qos))


def test_the_second_connection_is_clean_has_an_id_of_its_own_and_a_small_window() -> None:
    member = Member()
    member.up()
    (made,) = member.made
    settings, client_id, will, subscriptions, _ = made.given
    assert ("5", "edged-test-pi.pool", None) == (settings.version, client_id, will)
    assert ["$share/edged/edged/v1/test/pool/fast/prompt/+"] == [one.topic for one in subscriptions]
    assert {"persistent": False, "receive_maximum": 10} == made.options


def test_a_prompt_beyond_the_queue_is_held_unacknowledged_and_accepted_when_there_is_room() -> None:
    member = Member(queue=2)
    member.up()
    member.arrive("a", "b", "c")
    assert [1, 2] == member.made[0].acknowledged
    member.pools.tick()
    assert (False, "unsubscribe") == (member.pools.joined, member.made[0].calls[-1])
    member.bench.started(1)
    member.bench.finished(1)
    member.pools.tick()
    assert [1, 2, 3] == member.made[0].acknowledged
    assert [] == [final for final in member.bench.replies.finals if final["reason"] == "busy"]
    for seq in (2, 3):
        member.bench.started(seq)
        member.bench.finished(seq)
    member.pools.tick()
    assert (True, "subscribe") == (member.pools.joined, member.made[0].calls[-1])


def test_a_requester_with_all_its_share_open_is_refused_and_holds_up_nobody() -> None:
    member = Member(queue=9)
    member.bench.settings = msgspec.structs.replace(
        member.bench.settings,
        limits=msgspec.structs.replace(
            member.bench.settings.limits,
            per_requester=msgspec.structs.replace(member.bench.settings.limits.per_requester, queue=1),
        ),
    )
    member.up()
    member.arrive("a")
    member.arrive("b", qos=0)
    member.event(message({"id": "c", "prompt": "x"}, topic=POOL, mid=7))
    assert ["busy", "busy"] == [final["reason"] for final in member.bench.replies.finals]
    assert 7 in member.made[0].acknowledged
    member.pools.tick()
    assert member.pools.joined


def test_a_device_that_accepts_no_prompts_ends_the_connection_without_acknowledging() -> None:
    member = Member()
    member.up()
    member.facts = msgspec.structs.replace(WELL, unavailable="drained")
    member.arrive("a")
    assert (["start", "unsubscribe", "stop"], []) == (member.made[0].calls, member.made[0].acknowledged)
    assert [] == member.bench.replies.sent
    member.facts = WELL
    member.pools.tick()
    member.event(Up(1, "5", 20, None, ()))
    member.arrive("a")
    assert [1] == member.made[1].acknowledged


def test_what_is_held_is_forgotten_with_the_connection() -> None:
    """Its broker gives it to another member, or the requester sends it again: this device must not acknowledge it."""
    member = Member(queue=1)
    member.up()
    member.arrive("a", "b")
    member.event(Down("gone", 1.0, taken_over=False))
    member.bench.started(1)
    member.bench.finished(1)
    member.pools.tick()
    assert (1, [1]) == (member.bench.queue.finished, member.made[0].acknowledged)


def test_a_broker_that_cannot_have_pools_is_a_finding() -> None:
    member = Member()
    member.up("$share/edged/edged/v1/test/pool/fast/prompt/+")
    assert member.pools.tick()
    assert ["pool_refused"] == [finding.code for finding in member.pools.findings(1.0, ())]
    member.version = "3.1.1"
    assert member.pools.tick()
    assert (["pool_needs_mqtt_5"], False) == ([f.code for f in member.pools.findings(1.0, ())], member.pools.joined)


# ---- three daemons on one broker ------------------------------------------------------------------------------------


def pooled(folder: Path, broker: Broker, name: str, **config: Any) -> Device:
    identity = {"fleet": "test", "device": name, "pools": ["fast"]}
    settings = {"identity": identity, "log": {"level": "debug"}, **config}
    return Device(folder / name, broker, settings, name=name)


def joined(made: Device) -> int:
    return made.log.read_text().count("joined its pools") if made.log.exists() else 0


def answer_all(client: Client, ids: list[str], prompt: Callable[[str], dict[str, Any]], seconds: float) -> None:
    """Send each prompt again until its final comes, as a requester does."""
    until = time.monotonic() + seconds
    while missing := [one for one in ids if not client.finals(one)]:
        assert time.monotonic() < until, f"no final of {missing}"
        for one in missing:
            client.publish(POOL, prompt(one))
        time.sleep(0.5)


def run_pool(tmp_path: Path, broker: Broker, client: Client, count: int, seconds: float) -> list[str]:
    """Three members; the queue of b is full, c is killed while it has half of the first prompts; who answered."""
    client.subscribe("edged/v1/test/reply/#")
    with ExitStack() as stack:
        a, b, c = (
            stack.enter_context(running(pooled(tmp_path, broker, name, limits={"queue": 1 if name == "b" else 64})))
            for name in "abc"
        )
        wait_until(lambda: joined(a) and joined(b) and joined(c), 20, "all are members")
        client.publish(f"{b.root}/prompt/me", {"id": "blocks", "prompt": "wait:go"})
        wait_until(lambda: "left its pools" in b.log.read_text(), 10, "b leaves")
        first = [f"first-{number}" for number in range(count)]
        for one in first:
            client.publish(POOL, {"id": one, "prompt": "wait:half say:x"})

        def accepted(made: Device) -> int:
            topic = f"/reply/me/{made.name}/"
            return len([m for m in list(client.messages) if topic in m.topic and as_json(m).get("accepted")])

        wait_until(lambda: accepted(a) and accepted(c), 10, "a and c have prompts")
        c.kill()
        (a.control / "half").touch()
        later = [f"later-{number}" for number in range(count)]
        answer_all(client, first, lambda one: {"id": one, "prompt": "wait:half say:x"}, seconds)
        answer_all(client, later, lambda one: {"id": one, "prompt": "say:x"}, seconds)
        (b.control / "go").touch()
        (b.control / "half").touch()
        wait_until(lambda: joined(b) == 2, 10, "b is a member again")
        finals = [client.finals(one) for one in first + later]
    assert {"stop"} == {final["reason"] for each in finals for final in each}
    assert [] == [each for each in finals if any(final != each[0] for final in each)], "one device, one answer"
    return [each[0]["receipt"]["device"] for each in finals]


@pytest.mark.broker
@pytest.mark.mosquitto
def test_a_pool_answers_every_prompt_while_a_member_is_killed_and_another_is_full(
    tmp_path: Path, broker: Broker, client: Client
) -> None:
    devices = run_pool(tmp_path, broker, client, 6, 15)
    assert ["a"] * 12 == devices


@pytest.mark.slow
@pytest.mark.broker
@pytest.mark.mosquitto
def test_a_pool_answers_300_prompts_while_a_member_is_killed_and_another_is_full(
    tmp_path: Path, broker: Broker, client: Client
) -> None:
    assert {"a"} == set(run_pool(tmp_path, broker, client, 150, 120))


@pytest.mark.broker
@pytest.mark.mosquitto
def test_edgectl_asks_a_pool_and_a_device_with_mqtt_3_1_1_is_no_member(
    tmp_path: Path, broker: Broker, client: Client
) -> None:
    client.subscribe("edged/v1/test/#")
    command = [sys.executable, "-m", "edged.ctl.main", "prompt", "--pool", "fast", "--requester", "me", "--json"]
    command += ["--url", broker.url, "--fleet", "test", "say:hello"]
    with (
        running(pooled(tmp_path, broker, "new")) as new,
        running(pooled(tmp_path, broker, "old", mqtt={"url": broker.url, "version": "3.1.1"})) as old,
    ):
        wait_until(lambda: joined(new), 20, "a member")
        ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, cwd=ROOT)
        final = json.loads(ran.stdout)
        assert ("hello ", "new") == (final["text"], final["receipt"]["device"])
        client.wait(
            lambda m: m.topic == f"{old.root}/health" and "pool_needs_mqtt_5" in m.payload.decode(), 10, "the finding"
        )
        assert 0 == joined(old)
