"""The access list that `edgectl acl` makes, behind a real mosquitto with config/mosquitto.conf: who may what.

Fifty identities publish to each other's topics and subscribe to everything. What each may do is written down here once
more, by role; the broker must accept and deliver exactly that.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edged.config.schema import Mqtt
from edged.core.errors import BrokerError
from edged.ctl.main import main
from edged.link.session import Session
from tests.secured_broker import PLAIN, certificates, password_of, secured
from tests.support import SECONDS, Broker

DEVICES = tuple(f"d-{number}" for number in range(22))
LIMITED = {f"r-{number}": f"d-{number}" for number in range(5)}  # may ask this device alone
REQUESTERS = tuple(f"r-{number}" for number in range(22))
OPERATORS = ("o-0", "o-1", "o-2")
CONSOLES = ("c-0", "c-1")
EVERYBODY = (*DEVICES, *REQUESTERS, *OPERATORS, *CONSOLES, "ha")
ROOT_TOPIC = "edged/v1/test"
GRANTED, DENIED = "granted", "Not authorized"


def group_of(device: str) -> str:
    return f"g-{int(device[2:]) % 2}"


class Rules:
    """What each identity may do, by its role. `patterns`: everybody is also the device and requester of its name."""

    def __init__(self, *, patterns: bool) -> None:
        self.patterns = patterns

    def is_device(self, who: str, name: str) -> bool:
        return who == name and (self.patterns or who in DEVICES)

    def may_ask(self, who: str, device: str, requester: str) -> bool:
        if who == "ha" and requester == "home-assistant":
            return True
        if self.patterns:
            return who == requester
        allowed = who in {*OPERATORS, *CONSOLES} or (who in REQUESTERS and LIMITED.get(who, device) == device)
        return allowed and who == requester

    def sees(self, who: str, device: str) -> bool:
        """Status and health."""
        if self.patterns or self.is_device(who, device):
            return True
        return who not in DEVICES and LIMITED.get(who, device) == device

    def may_write(self, who: str, topic: str) -> bool:
        match topic.split("/")[3:] if topic.startswith(ROOT_TOPIC) else topic.split("/"):
            case ["device", device, "prompt" | "cancel", requester]:
                return self.may_ask(who, device, requester)
            case ["device", device, "command", requester]:
                return who in {*OPERATORS, *CONSOLES} and who == requester
            case ["config"] | ["group", _, "config"] | ["device", _, "config"]:
                return who in OPERATORS
            case ["device", device, "status" | "health"] | ["device", device, "config", "reported" | "history"]:
                return self.is_device(who, device) or who in OPERATORS
            case ["device", device, _] | ["reply", _, device, *_] | ["model", _, "missing" | "state", device]:
                return self.is_device(who, device)
            case ["model", _, "offer" | "sending"] | ["model", _, "chunk", _]:
                return who in OPERATORS
            case ["homeassistant", "status"]:
                return who == "ha"
            case ["homeassistant", _, node, _, "config"]:
                return who == "ha" or (who in DEVICES and node == f"edged-test-{who}")
        raise AssertionError(topic)

    def may_read(self, who: str, topic: str) -> bool:
        watches = who in {*OPERATORS, *CONSOLES}
        match topic.split("/")[3:] if topic.startswith(ROOT_TOPIC) else topic.split("/"):
            case ["device", device, *rest]:
                return self.may_read_of_device(who, device, "/".join(rest), watches=watches)
            case ["config"]:
                return watches or self.patterns or who in DEVICES
            case ["group", group, "config"]:
                return watches or self.patterns or (who in DEVICES and group_of(who) == group)
            case ["reply", requester, *_]:
                if who == "ha" and requester == "home-assistant":
                    return True
                return who == requester and (self.patterns or who not in {*DEVICES, "ha"})
            case ["model", _, "missing" | "state", _]:
                return who in OPERATORS
            case ["model", *_]:
                return self.patterns or who in DEVICES
            case ["homeassistant", what, *_]:
                return who == "ha" or (who in DEVICES and what == "status")
        raise AssertionError(topic)

    def may_read_of_device(self, who: str, device: str, what: str, *, watches: bool) -> bool:
        match what:
            case "status":
                return self.sees(who, device)
            case "health":
                return self.sees(who, device) and (self.patterns or who not in DEVICES)
            case "telemetry":
                return watches or who == "ha"
            case "event" | "config/reported" | "config/history":
                return watches
            case "config":
                return watches or self.is_device(who, device)
        return self.is_device(who, device)


def attempts(who: str) -> Iterator[str]:
    """The topics that everybody publishes to: those of each other identity, and those of nobody."""
    number = EVERYBODY.index(who)
    victim = EVERYBODY[(number + 1) % len(EVERYBODY)]
    for device in DEVICES:
        own = f"{ROOT_TOPIC}/device/{device}"
        yield from (f"{own}/{what}" for what in ("status", "config", f"prompt/{who}"))
        yield f"{ROOT_TOPIC}/reply/{victim}/{device}/id"
    for device in (DEVICES[number % len(DEVICES)], "d-1"):
        kinds = ("health", "telemetry", "event", "config/reported", "config/history", f"cancel/{who}", f"command/{who}")
        yield from (
            f"{ROOT_TOPIC}/device/{device}/{what}" for what in (*kinds, f"cancel/{victim}", f"command/{victim}")
        )
    for name in (*EVERYBODY, "home-assistant"):
        yield f"{ROOT_TOPIC}/device/d-0/prompt/{name}"
        yield f"{ROOT_TOPIC}/reply/{name}/{who}/id"
    yield from (f"{ROOT_TOPIC}/{what}" for what in ("config", "group/g-0/config", "group/g-1/config"))
    models = ("offer", "sending", "chunk/7", "missing/d-1", "state/d-1", f"missing/{who}", f"state/{victim}")
    yield from (f"{ROOT_TOPIC}/model/sha256:0/{what}" for what in models)
    yield "homeassistant/status"
    yield "homeassistant/sensor/edged-test-d-3/status/config"
    yield f"homeassistant/sensor/edged-test-{who}/status/config"


class Peer:
    """One identity's connection with MQTT 5. Nothing happens but in `pump`."""

    def __init__(
        self, port: int, user: str | None, client_id: str, *, keeps: bool = False, will: str = "", **tls: Any
    ) -> None:
        self.user = user
        self.connack = ""
        self.alive = True
        self.subscribed = 0
        self.accepted: dict[int, str] = {}
        self.received: list[tuple[str, str]] = []
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=client_id, protocol=mqtt.MQTTv5)
        if user is not None:
            self.client.username_pw_set(user, password_of(user))
        if will:
            self.client.will_set(will, "offline", qos=1)
        if tls:
            self.client.tls_set(**tls)
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = self._on_disconnect
        self.client.on_subscribe = self._on_subscribe
        self.client.on_publish = self._on_publish
        self.client.on_message = self._on_message
        expiry = Properties(PacketTypes.CONNECT)
        expiry.SessionExpiryInterval = 60 if keeps else 0
        self.client.connect("127.0.0.1", port, clean_start=not keeps, properties=expiry)

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self.connack = str(reason)

    def _on_disconnect(self, *_: Any) -> None:
        self.alive = False

    def _on_subscribe(self, *_: Any) -> None:
        self.subscribed += 1

    def _on_publish(self, _client: Any, _data: Any, mid: int, reason: Any, _properties: Any) -> None:
        self.accepted[mid] = DENIED if reason.is_failure else GRANTED
        assert not reason.is_failure or str(reason) == DENIED

    def _on_message(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        self.received.append((message.topic, message.payload.decode()))

    def subscribe(self, *topics: str, qos: int = 0) -> None:
        """Granted when it returns; what was published to the topics before it has arrived."""
        before = self.subscribed
        self.client.subscribe([(topic, mqtt.SubscribeOptions(qos)) for topic in topics])
        pump([self], lambda: self.subscribed > before)

    def publish(self, topic: str, payload: str = "") -> str:
        """Publish at QoS 1; what the broker answered."""
        mid = self.client.publish(topic, payload, qos=1).mid
        pump([self], lambda: mid in self.accepted)
        return self.accepted[mid]

    def close(self) -> None:
        self.client.disconnect()


def pump(peers: Sequence[Peer], done: Callable[[], bool], seconds: float = 30.0) -> None:
    """Read and write on all connections until `done`."""
    until = time.monotonic() + seconds * SECONDS
    while not done():
        assert time.monotonic() < until, "the broker did not answer"
        sockets = {sock: peer.client for peer in peers if (sock := peer.client.socket()) is not None}
        writing = [sock for sock, client in sockets.items() if client.want_write()]
        ready, writable, _ = select.select(list(sockets), writing, [], 0.5)
        for sock in ready:
            sockets[sock].loop_read()
        for sock in writable:
            sockets[sock].loop_write()


def connected(peers: Sequence[Peer]) -> None:
    pump(peers, lambda: all(peer.connack for peer in peers))
    assert {"Success"} == {peer.connack for peer in peers}


def made(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert 0 == main(["acl", "--fleet", "test", *options])
    return capsys.readouterr().out


def exact() -> list[str]:
    """The options that name everybody."""
    options = [f"--device={device}={group_of(device)}" for device in DEVICES]
    options += [f"--requester={name}" + (f"={LIMITED[name]}" if name in LIMITED else "") for name in REQUESTERS]
    return options + people()


def people() -> list[str]:
    options = [f"--operator={name}" for name in OPERATORS] + [f"--console={name}" for name in CONSOLES]
    return [*options, "--home-assistant=ha"]


@pytest.mark.parametrize("patterns", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["names", "patterns"])
def test_fifty_identities_may_do_to_each_other_what_their_roles_say_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], patterns: bool
) -> None:
    """All of them connect with the client id of one device, which must not end each other's connection."""
    assert 50 == len(set(EVERYBODY))
    options = ["--patterns", *people(), *(f"--device={device}" for device in DEVICES)] if patterns else exact()
    rules = Rules(patterns=patterns)
    with secured(tmp_path, made(capsys, *options), EVERYBODY, PLAIN) as broker:
        names = ("edged-test-d-0", "d-0")
        peers = {who: Peer(broker.port, who, names[i % 2]) for i, who in enumerate(EVERYBODY)}
        connected(list(peers.values()))
        for peer in peers.values():
            peer.subscribe(f"{ROOT_TOPIC}/#", "homeassistant/#")
        tried = {who: {peer.client.publish(t, who, qos=1).mid: t for t in attempts(who)} for who, peer in peers.items()}
        pump(list(peers.values()), lambda: all(len(peers[who].accepted) == len(mids) for who, mids in tried.items()))
        for peer in peers.values():
            peer.subscribe("barrier")  # granted after everything that was published has been delivered
        answers = {(who, t): peers[who].accepted[m] for who, mids in tried.items() for m, t in mids.items()}
        accepted = {attempt for attempt, answer in answers.items() if answer == GRANTED}
        assert {(who, t) for who, t in answers if rules.may_write(who, t)} == accepted
        for reader, peer in peers.items():
            expected = sorted((t, who) for who, t in accepted if rules.may_read(reader, t))
            assert expected == sorted(set(peer.received)), reader
        assert [] == [who for who, peer in peers.items() if not peer.alive]
        for peer in peers.values():
            peer.close()


@pytest.fixture
def one_of_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Broker]:
    """A broker with the access list of two devices, a requester and an operator."""
    names = ("--device=d-0", "--device=d-1", "--requester=r-0", "--operator=o-0")
    with secured(tmp_path, made(capsys, *names), EVERYBODY, PLAIN) as broker:
        yield broker


def test_nobody_connects_without_an_account_and_its_password(one_of_each: Broker) -> None:
    nobody, wrong, right = (Peer(one_of_each.port, user, "any") for user in (None, "r-0", "d-1"))
    wrong.client.disconnect()
    wrong = Peer(one_of_each.port, "unknown", "any")
    pump([nobody, wrong, right], lambda: all((nobody.connack, wrong.connack, right.connack)))
    assert (DENIED, DENIED, "Success") == (nobody.connack, wrong.connack, right.connack)


def test_what_waits_for_a_device_that_is_away_is_not_taken_by_others_with_its_client_id(one_of_each: Broker) -> None:
    device = Peer(one_of_each.port, "d-0", "edged-test-d-0", keeps=True)
    connected([device])
    device.subscribe(f"{ROOT_TOPIC}/device/d-0/prompt/+", qos=1)
    device.close()
    pump([device], lambda: not device.alive)
    requester = Peer(one_of_each.port, "r-0", "r")
    connected([requester])
    topic = f"{ROOT_TOPIC}/device/d-0/prompt/r-0"
    assert GRANTED == requester.publish(topic, "waits")
    for client_id in ("edged-test-d-0", "d-0"):
        for keeps in (True, False):
            other = Peer(one_of_each.port, "d-1", client_id, keeps=keeps)
            connected([other])
            other.subscribe("barrier")
            assert [] == other.received
            other.close()
            pump([other], lambda peer=other: not peer.alive)  # type: ignore[misc]
    device = Peer(one_of_each.port, "d-0", "edged-test-d-0", keeps=True)
    pump([device], lambda: bool(device.received))
    assert [(topic, "waits")] == device.received


def test_edgectl_reports_what_the_broker_refuses(one_of_each: Broker, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(password_of("r-0"))
    settings = Mqtt(url=one_of_each.url, username="r-0", password_file=str(tmp_path / "password"))
    with Session(settings, ()) as session:
        session.publish(f"{ROOT_TOPIC}/device/d-0/prompt/r-0", b"hello")
        with pytest.raises(BrokerError, match=f"refused a message to {ROOT_TOPIC}/config .not authorized.; check the"):
            session.publish(f"{ROOT_TOPIC}/config", b"{}")


def test_a_will_on_the_topic_of_another_is_not_published(one_of_each: Broker) -> None:
    """Each connection of the device ends the one before, whose will the broker then publishes, or drops."""
    operator = Peer(one_of_each.port, "o-0", "o")
    connected([operator])
    operator.subscribe(f"{ROOT_TOPIC}/#")
    for topic in ("device/d-0/status", "config", "device/d-1/status", "device/d-1/health"):
        connected([Peer(one_of_each.port, "d-1", "any", will=f"{ROOT_TOPIC}/{topic}")])
    pump([operator], lambda: bool(operator.received))
    assert [(f"{ROOT_TOPIC}/device/d-1/status", "offline")] == operator.received


def test_with_client_certificates_the_user_is_that_of_the_certificate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certificates(tmp_path, "d-0", "d-1")
    names = ("--device=d-0", "--device=d-1", "--requester=r-0", "--operator=o-0")
    lines = ("cafile /etc/mosquitto/ca.pem", "require_certificate true", "use_identity_as_username true")
    replaced = {f"#{line}\n": f"{line}\n" for line in lines} | {"password_file /etc/mosquitto/passwd\n": ""}
    with secured(tmp_path, made(capsys, *names), EVERYBODY, replaced) as broker:
        first, second = (
            Peer(broker.port, "o-0", "d-0", ca_certs=f"{tmp_path}/ca.pem", certfile=f"{tmp_path}/{name}.pem",
                 keyfile=f"{tmp_path}/{name}.key")
            for name in ("d-0", "d-1")
        )  # fmt: skip
        connected([first, second])
        for peer, answers in ((first, (GRANTED, DENIED)), (second, (DENIED, GRANTED))):
            topics = (f"{ROOT_TOPIC}/reply/r-0/{device}/id" for device in ("d-0", "d-1"))
            assert answers == tuple(peer.publish(topic) for topic in topics)
            assert DENIED == peer.publish(f"{ROOT_TOPIC}/config")
        assert first.alive
        stranger = Peer(broker.port, "d-0", "x", ca_certs=f"{tmp_path}/ca.pem")
        pump([stranger], lambda: not stranger.alive)
        assert "" == stranger.connack
