"""What goes wrong around the server: the broker, devices that publish anything, tabs and clients that do not read."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.serve.scripted_device import Script, ScriptedDevice, final
from tests.support import Broker, Client, wait_until

pytestmark = [pytest.mark.broker, pytest.mark.slow]
ASKED = [{"role": "user", "content": "x"}]
MAX_RSS = 100e6  # bytes
TABS = 50


def server_of(address: str) -> psutil.Process:
    """The process that listens there."""
    port = int(address.rsplit(":", 1)[1])
    for child in psutil.Process().children(recursive=True):
        if any(one.laddr.port == port and one.status == "LISTEN" for one in child.net_connections()):
            return child
    raise AssertionError(f"nothing listens on {port}")


@pytest.fixture
def own_broker(tmp_path: Path) -> Any:
    """A broker that the test stops."""
    started = Broker(tmp_path).start()
    yield started
    started.stop()


def test_a_prompt_in_the_middle_fails_when_the_broker_goes_and_the_next_works_when_it_is_back(
    serve: Callable[..., str], own_broker: Broker
) -> None:
    device = ScriptedDevice(own_broker.port, lambda _: [{"seq": 0, "at": 0, "text": "begun "}])
    address = serve("--url", own_broker.url)
    body = {"model": "scripted", "messages": ASKED}
    answers: list[Any] = []
    whole = threading.Thread(
        target=lambda: answers.append(httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60))
    )
    whole.start()
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body | {"stream": True}, timeout=60) as stream:
        lines = stream.iter_lines()
        assert any("begun" in line for line in lines)
        own_broker.stop()
        rest = [line for line in lines if line]
    assert "the connection to the broker was lost" in rest[-1]
    whole.join(60)
    assert [503] == [answer.status_code for answer in answers]
    assert 503 == httpx.get(f"{address}/healthz").status_code
    assert 503 == httpx.get(f"{address}/v1/models").status_code
    own_broker.start()
    wait_until(lambda: httpx.get(f"{address}/healthz").status_code == 200, 70, "the broker is connected again")
    device.script = lambda _: [final("back")]
    wait_until(lambda: "scripted" in httpx.get(f"{address}/v1/models").text, 20, "the device is known again")
    again = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=30)
    assert "back" == again.json()["choices"][0]["message"]["content"]
    device.stop()


def test_a_prompt_goes_on_when_the_broker_is_back_soon(serve: Callable[..., str], own_broker: Broker) -> None:
    device = ScriptedDevice(own_broker.port, lambda _: [{"seq": 0, "at": 0, "text": "begun "}])
    address = serve("--url", own_broker.url)
    body = {"model": "scripted", "messages": ASKED, "stream": True}
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=60) as stream:
        lines = stream.iter_lines()
        assert any("begun" in line for line in lines)
        device.script = lambda _: [final("begun and ended")]
        own_broker.stop()
        own_broker.start()
        rest = "".join(lines)
    assert '"content":"and ended"' in rest
    assert rest.endswith("data: [DONE]")
    assert device.prompts[0] == device.prompts[-1]
    device.stop()


class Tabs:
    """Open pages that read, as threads."""

    def __init__(self, address: str, number: int) -> None:
        self._stop = threading.Event()
        self._alive: set[int] = set()
        self._address = address
        self._threads = [threading.Thread(target=self._read, args=(one,), daemon=True) for one in range(number)]
        for thread in self._threads:
            thread.start()

    def _read(self, one: int) -> None:
        with httpx.stream("GET", f"{self._address}/console/fleet", timeout=30) as stream:
            for _ in stream.iter_lines():
                self._alive.add(one)
                if self._stop.is_set():
                    return

    def all_read(self) -> bool:
        return len(self._alive) == len(self._threads)

    def close(self) -> None:
        """They close with the next update."""
        self._stop.set()


def publish_anything(client: Client) -> None:
    """200 devices with names of HTML and many readings, and one that publishes 10 MB, broken and deep JSON."""
    root = "edged/v1/test/device"
    for number in range(200):
        client.publish(f"{root}/d{number}/status", b"online", retain=True)
        health = {"state": "ok", "model": {"name": "<script>alert(1)</script>" * 20}}
        client.publish(f"{root}/d{number}/health", health, retain=True)
    for _ in range(3):
        for kind in ("health", "telemetry", "event", "config/reported", "config/history", "config"):
            for payload in (b"<b>" * 3_400_000, b'{"broken": ', b'{"a":' + b"[" * 100_000):
                client.publish(f"{root}/evil/{kind}", payload)
    for number in range(2000):
        client.publish(f"{root}/d{number % 200}/telemetry", {"temperature_c": number}, qos=0)
    client.publish("edged/v1/other/device/pi/status", b"online")


def test_memory_stays_small_with_50_tabs_one_that_does_not_read_and_a_device_that_publishes_anything(
    serve: Callable[..., str], client: Client, scripted: Callable[[Script], ScriptedDevice]
) -> None:
    scripted(lambda _: [final("still here")])
    address = serve()
    server = server_of(address)
    tabs = Tabs(address, TABS)
    with httpx.stream("GET", f"{address}/console/fleet", timeout=30):  # does not read
        publish_anything(client)
        wait_until(tabs.all_read, 30, "every tab reads")
        answer = httpx.post(f"{address}/v1/chat/completions", json={"model": "scripted", "messages": ASKED}, timeout=20)
        assert 200 == answer.status_code, answer.text
        used = server.memory_info().rss
    tabs.close()
    for number in range(200):
        for kind in ("status", "health"):
            client.publish(f"edged/v1/test/device/d{number}/{kind}", b"", retain=True)
    print(f"{used / 1e6:.1f} MB with {TABS} tabs")
    assert used <= MAX_RSS


def test_a_client_that_closes_early_cancels_whole_answers_too(
    serve: Callable[..., str], scripted: Callable[[Script], ScriptedDevice]
) -> None:
    device = scripted(lambda _: [])
    address = serve()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{address}/v1/chat/completions", json={"model": "scripted", "messages": ASKED}, timeout=1)
    assert device.cancelled.wait(10)
