"""How much of `edged bench`'s decode arrives at an MQTT client. Starts a broker and the daemon, asks and measures.

    .venv/bin/python scripts/mqtt_speed.py [ROUNDS]

The client counts for itself: tokens after the first over the time from the first chunk to the final. Between two
prompts, while the daemon is idle, the same decode is measured without it. The time from the start of the daemon until
its status is `online` is printed as well.
"""

from __future__ import annotations

import json
import queue
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt
from first_light import FOLDER, PYTHON, alone, fail, say, start, start_broker, stop, write_config

from edged.measure import speed
from edged.models.store.catalog import default_model
from edged.models.store.locate import locate
from edged.models.store.packed_cache import packed_model
from edged.models.store.store import Store

TOKENS = 128
ROOT = "edged/v1/home"


class Asker:
    """A client that asks greedily and measures."""

    def __init__(self, port: int) -> None:
        self._arrived: queue.Queue[tuple[str, float, Any]] = queue.Queue()
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

    def tokens_per_second(self, number: int) -> float:
        prompt = {"id": f"{time.time_ns()}", "prompt": "Tell me a long story about the sea.", "temperature": 0}
        body = json.dumps(prompt | {"max_tokens": TOKENS, "priority": number % 10})
        self._client.publish(f"{ROOT}/device/pi/prompt/speed", body, 1)
        first: float | None = None
        while True:
            _, at, payload = self._arrived.get(timeout=120)
            document = json.loads(payload)
            if document.get("id") != prompt["id"]:
                continue
            if "seq" in document and first is None:
                first = at
            if document.get("final"):
                if first is None or document["reason"] not in {"length", "stop"}:
                    fail(f"the answer ended as {document}")
                return float(document["usage"]["completion_tokens"] - 1) / (at - first)


def main(rounds: int) -> None:
    FOLDER.mkdir(exist_ok=True)
    lock = alone()
    url, broker = start_broker()
    config = write_config(url, private=True)
    asker = Asker(int(url.rsplit(":", 1)[1]))
    begun = time.perf_counter()
    daemon = start([PYTHON, "-m", "edged", "run", "--config", str(config)])
    try:
        asker.until_online()
        say(f"online {time.perf_counter() - begun:.2f} s after the start (the first time it also fetches the model)")
        models = Path(FOLDER, "state", "models")
        backend = speed.open_for_bench(
            packed_model(locate(default_model(), None, Store(models)), "auto", models), None, "auto"
        )
        ids = np.random.default_rng(0).integers(0, backend.vocabulary, 256).tolist()
        speed.decode(backend, ids)
        asker.tokens_per_second(0)
        pairs = []
        for number in range(rounds):
            ours = asker.tokens_per_second(number)
            pairs.append((ours, speed.decode(backend, ids)))
            say(f"over MQTT {ours:.0f}, without {pairs[-1][1]:.0f} tokens/s")
        share = median(one / other for one, other in pairs)
        over, without = (median(pair[place] for pair in pairs) for place in (0, 1))
        print(f"over MQTT {over:.0f} tokens/s, edged bench's decode {without:.0f}: {share:.0%} (median of the pairs)")
    finally:
        stop(daemon, "the daemon")
        stop(broker, "the broker")
        lock.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
