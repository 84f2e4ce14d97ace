"""`edgectl simulate` itself, with few devices."""

from __future__ import annotations

import json

import pytest

from edged.commands.edgectl import MORE
from edged.ctl.main import main
from tests.support import Broker, Client

pytestmark = [pytest.mark.broker, pytest.mark.slow]


def test_every_step_holds_and_nothing_is_left_at_the_broker(
    broker: Broker, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--devices", "12", "--soak", "2s", "--within", "30s", "--fleet", "simulated")
    assert 0 == main(("simulate", "--url", broker.url, *words, "--json"), MORE)
    found = json.loads(capsys.readouterr().out)
    assert ["connect", "push", "bad push"] == [step["name"] for step in found["steps"]]
    assert all(step["held"] for step in found["steps"])
    assert "stopped at" in found["steps"][2]["result"]
    client.subscribe("edged/v1/simulated/#")
    client.publish("edged/v1/simulated/z", b"")
    client.wait(lambda message: message.topic.endswith("/z"))
    assert [] == [message.topic for message in client.messages if message.retain]


def test_a_fleet_that_has_devices_is_refused(
    broker: Broker, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    topic = "edged/v1/simulated/device/pi/status"
    client.publish(topic, b"online", retain=True)
    try:
        assert 1 == main(("simulate", "--url", broker.url, "--fleet", "simulated"), MORE)
        assert "give a simulation a fleet of its own with --fleet" in capsys.readouterr().err
    finally:
        client.publish(topic, b"", retain=True)


@pytest.mark.parametrize("count", ["0", "10001"])
def test_an_impossible_number_of_devices_is_refused(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert 2 == main(("simulate", "--devices", count), MORE)
    assert "--devices: must be between 1 and 10000" in capsys.readouterr().err
