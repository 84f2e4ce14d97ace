"""What the tests share: a real mosquitto on a port of its own, a plain paho client, a daemon as a process."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import yaml
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

ROOT = Path(__file__).resolve().parent.parent
SECONDS = float(os.environ.get("TEST_PATIENCE", "1"))  # a slow machine may multiply every bound


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def mosquitto() -> str | None:
    """The program, or None where there is none (`TEST_EMBEDDED=1` acts as if there were none)."""
    if os.environ.get("TEST_EMBEDDED"):
        return None
    return shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


class Broker:
    """A mosquitto (else the embedded broker) that a test may stop and start again on the same port."""

    def __init__(self, folder: Path, extra: str = "") -> None:
        self.folder = folder
        self.port = free_port()
        self.extra = extra
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> Broker:
        program = mosquitto()
        config = self.folder / f"mosquitto-{self.port}.conf"
        access = "" if "allow_anonymous" in self.extra else "allow_anonymous true\n"
        config.write_text(f"listener {self.port} 127.0.0.1\n{access}{self.extra}")
        log = (self.folder / f"mosquitto-{self.port}.log").open("ab")
        embedded = [sys.executable, str(ROOT / "scripts" / "embedded_broker.py"), str(self.port)]
        command = [program, "-c", str(config)] if program else embedded
        self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self.answers, 15, "the broker listens")
        return self

    def answers(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(0.5)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def forget_session(self, client_id: str) -> None:
        """Drop what the broker keeps for a client: its subscriptions and the messages that wait for it."""
        self._come_and_go(client_id, clean_start=True)

    def take_over(self, client_id: str) -> None:
        """Connect with a client's id as another board of that name does, which keeps the session, and leave."""
        keeps = Properties(PacketTypes.CONNECT)
        keeps.SessionExpiryInterval = 3600
        self._come_and_go(client_id, clean_start=False, properties=keeps)

    def _come_and_go(self, client_id: str, **how: Any) -> None:
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=client_id, protocol=mqtt.MQTTv5)
        client.connect("127.0.0.1", self.port, **how)
        while client.loop(timeout=0.1) == mqtt.MQTT_ERR_SUCCESS and not client.is_connected():
            pass
        client.disconnect()
        client.loop(timeout=0.0)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)
            self.process = None


def wait_until(condition: Callable[[], Any], seconds: float, what: str, *, every: float = 0.02) -> Any:
    """Poll for something that has no event to wait for (a port, a file, another process)."""
    until = time.monotonic() + seconds * SECONDS
    while time.monotonic() < until:
        if result := condition():
            return result
        time.sleep(every)
    raise AssertionError(f"not within {seconds} s: {what}")


class Client:
    """A plain paho client that keeps every message it got, in order."""

    def __init__(self, port: int, *, protocol: int = mqtt.MQTTv5) -> None:
        self.v5 = protocol == mqtt.MQTTv5
        self.messages: list[mqtt.MQTTMessage] = []
        self._changed = threading.Condition()
        self._up: queue.Queue[bool] = queue.Queue()
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=protocol)
        self._client.on_message = self._on_message
        self._client.on_subscribe = lambda *_: self._up.put(True)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def _on_message(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        with self._changed:
            self.messages.append(message)
            self._changed.notify_all()

    def subscribe(self, *topics: str) -> Client:
        if self.v5:
            options = SubscribeOptions(qos=1, retainAsPublished=True)
            self._client.subscribe([(topic, options) for topic in topics])
        else:
            self._client.subscribe([(topic, 1) for topic in topics])
        self._up.get(timeout=10)
        return self

    def publish(self, topic: str, payload: Any, *, qos: int = 1, retain: bool = False, **properties: Any) -> None:
        raw = payload if isinstance(payload, (bytes, str)) else json.dumps(payload)
        extra = None
        if properties:
            extra = Properties(PacketTypes.PUBLISH)
            for name, value in properties.items():
                setattr(extra, name, value)
        info = self._client.publish(topic, raw, qos=qos, retain=retain, properties=extra)
        if qos:
            info.wait_for_publish(20)

    def wait(self, matches: Callable[[mqtt.MQTTMessage], Any], seconds: float = 20, what: str = "a message") -> Any:
        """The first message, old or new, for which `matches` gives something true; gives that."""
        with self._changed:
            until = time.monotonic() + seconds * SECONDS
            seen = 0
            while True:
                for message in self.messages[seen:]:
                    if result := matches(message):
                        return result
                seen = len(self.messages)
                left = until - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    got = [(m.topic, m.payload[:300]) for m in self.messages[-12:]]
                    raise AssertionError(f"not within {seconds} s: {what}; got {got}")

    def final(self, prompt_id: str, seconds: float = 20) -> dict[str, Any]:
        """The final of this prompt."""

        def matches(message: mqtt.MQTTMessage) -> Any:
            document = as_json(message)
            return document if document.get("final") and document["id"] == prompt_id else None

        found: dict[str, Any] = self.wait(matches, seconds, f"the final of {prompt_id}")
        return found

    def any_final(self, requester: str, seconds: float = 20) -> dict[str, Any]:
        """The first final to this requester."""

        def matches(message: mqtt.MQTTMessage) -> Any:
            document = as_json(message)
            return document if f"/reply/{requester}/" in message.topic and document.get("final") else None

        found: dict[str, Any] = self.wait(matches, seconds, f"a final to {requester}")
        return found

    def publish_all(self, topic: str, payloads: list[Any], *, retain: bool = False) -> None:
        """Publish at QoS 1 as fast as the broker takes them; returns when it has all."""
        raw = [payload if isinstance(payload, bytes) else json.dumps(payload) for payload in payloads]
        infos = [self._client.publish(topic, payload, qos=1, retain=retain) for payload in raw]
        for info in infos:
            info.wait_for_publish(60)

    def document(self, suffix: str, seconds: float = 20, **facts: Any) -> dict[str, Any]:
        """The first document, old or new, on a topic that ends in `suffix` and with these values in it."""

        def matches(message: mqtt.MQTTMessage) -> Any:
            document = as_json(message)
            return document if message.topic.endswith(suffix) and facts.items() <= document.items() else None

        found: dict[str, Any] = self.wait(matches, seconds, f"{suffix} with {facts}")
        return found

    def status(self, word: str, seconds: float = 20) -> None:
        """Wait until a device says this word."""
        self.wait(lambda m: m.topic.endswith("/status") and m.payload == word.encode(), seconds, f"status {word}")

    def replies(self, prompt_id: str) -> list[dict[str, Any]]:
        """What came on reply topics about this prompt so far."""
        with self._changed:
            return [d for m in self.messages if "/reply/" in m.topic and (d := as_json(m)).get("id") == prompt_id]

    def finals(self, prompt_id: str) -> list[dict[str, Any]]:
        """The finals that came of this prompt so far."""
        return [document for document in self.replies(prompt_id) if document.get("final")]

    def documents(self, prompt_id: str) -> list[dict[str, Any]]:
        """Everything that came about this prompt so far."""
        with self._changed:
            return [d for d in map(as_json, self.messages) if d.get("id") == prompt_id]

    def clear(self) -> None:
        with self._changed:
            self.messages.clear()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def as_json(message: mqtt.MQTTMessage) -> dict[str, Any]:
    try:
        document = json.loads(message.payload)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


class Device:
    """A daemon as a process of its own, as a user would start it."""

    def __init__(
        self,
        folder: Path,
        broker: Broker,
        config: dict[str, Any] | None = None,
        *,
        fake: bool = True,
        name: str = "pi",
        patches: tuple[str, ...] = (),
    ) -> None:
        """`patches` shorten times of the fake daemon, see `fake_daemon`."""
        self.folder = folder
        self.name = name
        self.root = f"edged/v1/test/device/{name}"
        self.patches = patches
        self.variables: dict[str, str] = {}
        self.control = folder / "control"
        self.control.mkdir(parents=True, exist_ok=True)
        self.fake = fake
        self.config = {
            "identity": {"fleet": "test", "device": name},
            "mqtt": {"url": broker.url},
            "state_dir": str(folder / "state"),
            "telemetry": {"interval": "1s"},
            **(config or {}),
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "edged.log"

    def start(self) -> Device:
        path = self.folder / "edged.yaml"
        path.write_text(yaml.safe_dump(self.config))
        if self.fake:
            command = [sys.executable, str(ROOT / "tests" / "fake_daemon.py"), str(path), str(self.control)]
            command += self.patches
        else:
            command = [sys.executable, "-m", "edged", "run", "--config", str(path)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("EDGED_")}
        environment |= {"PYTHONPATH": str(ROOT), **self.variables}
        self.process = subprocess.Popen(command, stderr=self.log.open("ab"), env=environment, cwd=self.folder)
        return self

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def worker_pids(self) -> list[int]:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(child) for child in children]


@contextmanager
def running(device: Device) -> Iterator[Device]:
    """Started, and gone at the end whatever happens; a failed test shows the log."""
    device.start()
    try:
        yield device
    finally:
        if device.process is not None and device.process.poll() is None:
            device.process.kill()
            device.process.wait(10)
        print(device.log.read_text()[-6000:])


@contextmanager
def stopped(device: Device) -> Iterator[None]:
    """The agent is stopped inside this block, so that what is set up there is there before its next step."""
    os.kill(device.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(device.pid, signal.SIGCONT)
