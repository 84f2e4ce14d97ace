"""A device of a few lines: it answers each prompt with documents that a test gives."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as mqtt

Script = Callable[[dict[str, Any]], list[dict[str, Any]]]


class ScriptedDevice:
    """`script(prompt)` gives the replies, without their id; the last one is published at QoS 1."""

    def __init__(self, port: int, script: Script, name: str = "scripted") -> None:
        self.prompts: list[dict[str, Any]] = []
        self.cancelled = threading.Event()
        self.script = script
        self._name = name
        self._root = f"edged/v1/test/device/{name}"
        self._subscribed = threading.Event()
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._client.on_message = self._on_message
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_connect = self._on_connect
        self._client.reconnect_delay_set(1, 1)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._subscribed.wait(10)

    def _on_connect(self, *_: Any) -> None:
        self._client.subscribe([(f"{self._root}/prompt/+", 1), (f"{self._root}/cancel/+", 1)])
        self._client.publish(f"{self._root}/status", b"online", 1, retain=True)

    def publish(self, kind: str, payload: bytes, *, retain: bool = False) -> None:
        self._client.publish(f"{self._root}/{kind}", payload, 1, retain=retain).wait_for_publish(20)

    def stop(self) -> None:
        self.publish("status", b"", retain=True)
        self._client.disconnect()
        self._client.loop_stop()

    def _on_message(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        kind, _, requester = message.topic[len(self._root) + 1 :].partition("/")
        document = json.loads(message.payload)
        if kind == "cancel":
            self.cancelled.set()
            return
        self.prompts.append(document)
        topic = f"edged/v1/test/reply/{requester}/{self._name}/{document['id']}"
        for reply in self.script(document):
            body = json.dumps({"id": document["id"], **reply})
            self._client.publish(topic, body, 1 if reply.get("final") else 0)


def final(text: str = "", reason: str = "stop", **more: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 5, "cached_tokens": 1, "completion_tokens": 3}
    return {"final": True, "reason": reason, "text": text, "usage": usage, **more}
