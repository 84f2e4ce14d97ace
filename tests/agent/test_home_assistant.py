"""A device that publishes itself to Home Assistant: at each connect, at a birth message, and withdrawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support import Broker, Client, Device

pytestmark = pytest.mark.mosquitto
ON = {"integrations": {"home_assistant": {"prefix": "homeassistant"}}}


def retained(broker: Broker, count: int) -> set[str]:
    reader = Client(broker.port)
    found: set[str] = set()

    def all_there(message: Any) -> bool:
        found.add(message.topic)
        return len(found) >= count

    try:
        reader.subscribe("homeassistant/+/+/+/config")
        reader.subscribe("edged/v1/test/device/pi/status")
        reader.wait(all_there, 5, f"{count} retained topics")
    finally:
        reader.close()
    return {topic for topic in found if topic.endswith("/config")}


def test_entities_appear_return_after_a_birth_and_go_when_switched_off(
    device: Callable[..., Device], broker: Broker, client: Client
) -> None:
    client.subscribe("homeassistant/#")
    made = device(ON)
    client.wait(lambda message: message.topic.endswith("/answer/config") and message.payload, 5, "discovery")
    assert 10 == len(retained(broker, 11))
    client.clear()
    client.publish("homeassistant/status", b"online")
    client.wait(lambda message: message.topic.endswith("/answer/config"), 5, "discovery after a birth message")
    client.publish("edged/v1/test/device/pi/prompt/home-assistant", b'{"prompt": "one two", "stream": false}')
    assert "one two" == client.any_final("home-assistant")["text"].strip()
    made.stop()
    client.clear()
    device({})
    client.wait(lambda message: message.topic.endswith("/answer/config") and not message.payload, 5, "withdrawal")
    assert set() == retained(broker, 1)
