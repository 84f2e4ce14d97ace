"""Time to first token through the OpenAI-compatible API beside that of MQTT. Starts broker, daemon and server.

    .venv/bin/python scripts/serve_speed.py [ROUNDS]

Each round asks once over MQTT and once through the API, in turn the one or the other first: other prompts of the same
length, greedily, so that none finds the other's prefix. The time is from sending to the first text, by the client's
clock.
"""

from __future__ import annotations

import http.client
import json
import queue
import sys
import time
from statistics import median
from typing import Any

import paho.mqtt.client as mqtt
from first_light import FOLDER, PYTHON, alone, fail, say, start, start_broker, stop, write_config
from private_broker import free_port

ROOT = "edged/v1/home"
TOKENS = 8


class OverMqtt:
    """A client of the device itself."""

    def __init__(self, port: int) -> None:
        self._arrived: queue.Queue[tuple[str, float, bytes]] = queue.Queue()
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        self._client.on_message = self._take
        self._client.connect("127.0.0.1", port)
        self._client.subscribe(f"{ROOT}/reply/speed/#", 1)
        self._client.subscribe(f"{ROOT}/device/pi/status", 1)
        self._client.loop_start()

    def _take(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        self._arrived.put((message.topic, time.perf_counter(), message.payload))

    def until_online(self) -> None:
        while self._arrived.get(timeout=300)[2] != b"online":
            pass

    def first_text(self, prompt: str) -> float:
        """Milliseconds."""
        prompt_id = f"{time.time_ns()}"
        body = json.dumps({"id": prompt_id, "prompt": prompt, "temperature": 0, "max_tokens": TOKENS})
        begun, first = time.perf_counter(), None
        self._client.publish(f"{ROOT}/device/pi/prompt/speed", body, 1)
        while True:
            _, at, payload = self._arrived.get(timeout=120)
            document = json.loads(payload) if payload.startswith(b"{") else {}
            if document.get("id") != prompt_id:
                continue
            if document.get("text") and first is None:
                first = at
            if document.get("final"):
                if first is None or "error" in document:
                    fail(f"the answer ended as {document}")
                return 1000 * (first - begun)


class OverHttp:
    """A client of `edgectl serve`, on one connection that is kept."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def until_online(self) -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                self._connection.request("GET", "/v1/models")
                if b'"pi"' in self._connection.getresponse().read():
                    return
            except OSError:
                self._connection.close()
            time.sleep(0.1)  # it listens a moment after it was started; nothing announces that
        fail("edgectl serve does not answer")

    def first_text(self, prompt: str) -> float:
        """Milliseconds."""
        body = {"model": "pi", "messages": [{"role": "user", "content": prompt}], "temperature": 0, "stream": True}
        begun, first = time.perf_counter(), None
        self._connection.request(
            "POST", "/v1/chat/completions", json.dumps(body | {"max_tokens": TOKENS}),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        response = self._connection.getresponse()
        while line := response.readline():
            if first is None and line.startswith(b"data: {"):
                choice = json.loads(line[6:])["choices"][0]
                if choice["delta"].get("content"):
                    first = time.perf_counter()
        if first is None:
            fail(f"the answer has status {response.status} and no text")
        return 1000 * (first - begun)


def main(rounds: int) -> None:
    FOLDER.mkdir(exist_ok=True)
    lock = alone()
    url, broker = start_broker()
    config = write_config(url, private=True)
    port = free_port(say)
    direct = OverMqtt(int(url.rsplit(":", 1)[1]))
    daemon = start([PYTHON, "-m", "edged", "run", "--config", str(config)])
    listen = ["--listen", f"127.0.0.1:{port}", "--requester", "serve"]
    server = start([PYTHON, "-m", "edged.commands.edgectl", "serve", "--url", url, "--fleet", "home", *listen])
    try:
        direct.until_online()
        api = OverHttp(int(port or 0))
        api.until_online()
        pairs = []
        for number in range(-2, rounds):  # two that do not count
            ways = [direct, api] if number % 2 else [api, direct]
            took = {way: way.first_text(f"{time.time_ns()}: what is the capital of Japan?") for way in ways}
            if number >= 0:
                pairs.append((took[direct], took[api]))
        over, through = (median(pair[place] for pair in pairs) for place in (0, 1))
        added = sorted(pair[1] - pair[0] for pair in pairs)
        print(
            f"first text over MQTT {over:.1f} ms, through the API {through:.1f} ms (medians of {rounds}); "
            f"the API adds {median(added):.1f} ms (median of the pairs; "
            f"{added[rounds // 10]:.1f} to {added[-1 - rounds // 10]:.1f} without the outer tenths)"
        )
    finally:
        stop(server, "edgectl serve")
        stop(daemon, "the daemon")
        stop(broker, "the broker")
        lock.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
