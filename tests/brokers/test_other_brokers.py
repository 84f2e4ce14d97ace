"""The same device behind other brokers: amqtt (3.1.1 only), iotcore (embedded), mosquitto with TLS and a password."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest

from tests.support import ROOT, Broker, Client, Device, as_json, free_port, running, wait_until

AMQTT = """
import asyncio, sys
from amqtt.broker import Broker

async def main() -> None:
    broker = Broker({"listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{sys.argv[1]}"}},
                     "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}})
    await broker.start()
    await asyncio.Event().wait()

asyncio.run(main())
"""


class OtherBroker(Broker):
    """A broker that is another program."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        super().__init__(folder)
        self.command = command

    def start(self) -> OtherBroker:
        log = (self.folder / "broker.log").open("ab")
        self.process = subprocess.Popen([*self.command, str(self.port)], stdout=log, stderr=log)
        wait_until(self.answers, 20, "the broker listens")
        return self


@contextmanager
def started(broker: Broker) -> Iterator[Broker]:
    try:
        yield broker.start()
    finally:
        broker.stop()


def goes_the_whole_way(device: Device, client: Client, seconds: float) -> dict[str, Any]:
    """Status, a prompt, a config push and what it changes; gives the health."""
    client.subscribe("edged/v1/test/#")
    client.wait(lambda m: m.topic.endswith("/status") and m.payload == b"online", seconds, "status online")
    client.publish(f"{device.root}/prompt/me", {"id": "one", "prompt": "hello there"})
    assert "hello there " == client.final("one")["text"]
    layer = {"revision": 3, "settings": {"limits": {"max_tokens": 7}}}
    client.publish(f"{device.root}/config", layer, retain=True)
    report = client.wait(lambda m: m.topic.endswith("/reported") and as_json(m).get("revision") == 3 and as_json(m))
    assert ("applied", {"device": 3}) == (report["phase"], report["in_force"])
    client.publish(f"{device.root}/prompt/me", {"id": "two", "prompt": "x", "max_tokens": 8})
    assert "invalid" == client.final("two")["reason"]
    health: dict[str, Any] = client.wait(lambda m: m.topic.endswith("/health") and as_json(m))
    assert 0 == device.stop()
    client.wait(lambda m: m.topic.endswith("/status") and m.payload == b"offline", 10, "status offline")
    return health


def test_falls_back_to_3_1_1_where_the_broker_knows_nothing_else(tmp_path: Path) -> None:
    """amqtt answers no CONNECT of MQTT 5: after three of them 3.1.1 is spoken, and health says so."""
    pytest.importorskip("amqtt")
    with (
        started(OtherBroker(tmp_path, [sys.executable, "-c", AMQTT])) as broker,
        running(Device(tmp_path, broker)) as device,
    ):
        client = Client(broker.port, protocol=mqtt.MQTTv311)
        health = goes_the_whole_way(device, client, 60)
        client.close()
    assert "3.1.1" == health["mqtt"]["version"]


def test_the_embedded_broker_serves(tmp_path: Path) -> None:
    pytest.importorskip("iotcore")
    program = [sys.executable, str(ROOT / "scripts" / "embedded_broker.py")]
    with started(OtherBroker(tmp_path, program)) as broker, running(Device(tmp_path, broker)) as device:
        client = Client(broker.port)
        health = goes_the_whole_way(device, client, 30)
        client.close()
    assert "5" == health["mqtt"]["version"]


def certificates(folder: Path) -> None:
    """A CA of our own and a certificate for 127.0.0.1, as an owner would make them."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    openssl(
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
        "-days",
        "2",
        "-subj",
        "/CN=Test CA",
    )
    openssl(
        "req", "-newkey", "rsa:2048", "-nodes", "-keyout", "broker.key", "-out", "broker.csr", "-subj", "/CN=127.0.0.1"
    )
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl(
        "x509", "-req", "-in", "broker.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
        "-out", "broker.pem", "-days", "2", "-extfile", "names",
    )  # fmt: skip
    for key in ("broker.key", "ca.key"):
        (folder / key).chmod(0o644)  # the test's broker may drop root


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Broker]:
    """A mosquitto with TLS and a password on one listener, open on another for the test's own client."""
    if not shutil.which("openssl") or not shutil.which("mosquitto_passwd"):
        pytest.skip("needs openssl and mosquitto_passwd")
    certificates(tmp_path)
    subprocess.run(["mosquitto_passwd", "-c", "-b", "users", "pi", "s3cret"], cwd=tmp_path, check=True)
    (tmp_path / "users").chmod(0o644)
    tmp_path.chmod(0o755)
    port = free_port()
    extra = (
        f"per_listener_settings true\nlistener {port} 127.0.0.1\nallow_anonymous false\n"
        f"password_file {tmp_path}/users\n"
        f"cafile {tmp_path}/ca.pem\ncertfile {tmp_path}/broker.pem\nkeyfile {tmp_path}/broker.key\n"
    )
    broker = Broker(tmp_path, "")
    broker.tls_port = port  # type: ignore[attr-defined]
    config = tmp_path / f"mosquitto-{broker.port}.conf"
    text = extra + f"listener {broker.port} 127.0.0.1\nallow_anonymous true\n"
    config.write_text(text + "user root\n")
    program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
    log = (tmp_path / "broker.log").open("ab")
    broker.process = subprocess.Popen([program, "-c", str(config)], stdout=log, stderr=log)
    wait_until(broker.answers, 10, "mosquitto listens")
    yield broker
    broker.stop()


def secured_config(broker: Broker, folder: Path, password: str, ca: str | None) -> dict[str, Any]:
    (folder / "password").write_text(password + "\n")
    mqtt_section: dict[str, Any] = {
        "url": f"mqtts://127.0.0.1:{broker.tls_port}",  # type: ignore[attr-defined]
        "username": "pi",
        "password_file": str(folder / "password"),
    }
    if ca is not None:
        mqtt_section["ca"] = ca
    return {"mqtt": mqtt_section}


def test_tls_with_an_own_ca_and_a_password(secured: Broker, tmp_path: Path) -> None:
    config = secured_config(secured, tmp_path, "s3cret", str(tmp_path / "ca.pem"))
    with running(Device(tmp_path, secured, config)) as device:
        client = Client(secured.port)
        goes_the_whole_way(device, client, 30)
        client.close()


@pytest.mark.parametrize(
    ("password", "ca", "said"), [("wrong", "ca.pem", "not authori"), ("s3cret", None, "certificate")]
)
def test_a_broker_that_does_not_fit_is_named(
    secured: Broker, tmp_path: Path, password: str, ca: str | None, said: str
) -> None:
    """A wrong password, or the certificate of a CA that is not trusted: the log says which, the device goes on."""
    config = secured_config(secured, tmp_path, password, None if ca is None else str(tmp_path / ca))
    with running(Device(tmp_path, secured, config)) as device:

        def complaint() -> dict[str, Any] | None:
            lines = [json.loads(line) for line in device.log.read_text().splitlines() if line.startswith("{")]
            return next((line for line in lines if line["event"] == "not connected"), None)

        reason = wait_until(complaint, 20, "a line about the broker")["reason"]
        assert said in reason.lower()
        assert 0 == device.stop()


def test_a_broker_that_refuses_a_reply_is_a_finding(tmp_path: Path) -> None:
    """An access list that forbids the reply topics: the answer is not lost in silence, health names the topic."""
    rules = tmp_path / "acl"
    rules.write_text("topic read #\ntopic write edged/v1/test/device/#\n")
    rules.chmod(0o644)
    tmp_path.chmod(0o755)
    with (
        started(Broker(tmp_path, f"user root\nacl_file {rules}\n")) as broker,
        running(Device(tmp_path, broker)) as device,
    ):
        client = Client(broker.port).subscribe("edged/v1/test/#")
        client.wait(lambda m: m.topic.endswith("/status") and m.payload == b"online", 30, "status online")
        client.publish(f"{device.root}/prompt/me", {"id": "forbidden", "prompt": "hello"})

        def named(message: mqtt.MQTTMessage) -> bool:
            findings = as_json(message).get("findings", [])
            return any(f["code"] == "publish_refused" and "reply/me/pi/forbidden" in f["advice"] for f in findings)

        client.wait(named, 20, "a finding publish_refused")
        assert 0 == device.stop()
        client.close()
