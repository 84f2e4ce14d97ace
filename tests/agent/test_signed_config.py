"""Promise 5 through a real broker and a real agent: signed layers, and what is refused while prompts flow."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.signing import Key
from tests.support import Client, Device, wait_until

pytestmark = pytest.mark.broker
OPS, NEXT = Key("ops", 1), Key("next", 2)
TOPIC = "edged/v1/test/device/pi/config"


@pytest.fixture
def made(device: Callable[..., Device]) -> Device:
    """A device that requires signatures."""
    return device({"trust": {"keys": {"ops": OPS.public}, "require_signature": True}})


def layer(revision: int, tokens: int, *, key: Key = OPS, topic: str = TOPIC, **more: Any) -> bytes:
    settings = {"generation": {"max_tokens": tokens}}
    return key.sign(topic, {"revision": revision, "settings": settings, **more})


def push(client: Client, payload: bytes) -> dict[str, Any]:
    """Push and wait for the report."""
    client.clear()
    client.publish(TOPIC, payload, retain=True)
    return client.document("/config/reported", layer="device")


def answer(client: Client, made: Device, prompt_id: str) -> str:
    client.publish(f"{made.root}/prompt/me", {"id": prompt_id, "prompt": "a b c d e f"})
    return str(client.final(prompt_id)["text"])


def test_p05_signed_layers_apply_and_survive_a_restart_unsigned_ones_and_old_ones_do_not(
    made: Device, client: Client
) -> None:
    assert "applied" == push(client, layer(5, 2))["phase"]
    assert "a b " == answer(client, made, "one")
    for bad, part in (
        (b'{"revision":6,"settings":{}}', "signature: is required"),
        (layer(4, 3), "revision: 4 is below 5"),
        (layer(6, 3, topic="edged/v1/test/config"), "signature.value: does not match"),
        (layer(6, 3, key=NEXT), "signature.key: 'next' is no key"),
        (layer(6, 3, expires_at="2020-01-01T00:00:00Z"), "expires_at: is over"),
        (b"", "an empty payload removes nothing"),
    ):
        report = push(client, bad)
        assert ("rejected", {"device": 5}) == (report["phase"], report["in_force"])
        assert part in report["reason"]
    client.publish(TOPIC, layer(4, 3), retain=True)
    assert 0 == made.stop()
    (made.folder / "state" / "layers.json").unlink()
    client.clear()
    made.start()
    report = client.document("/config/reported", layer="device", revision=4, in_force={})
    assert "rejected" == report["phase"]
    client.publish(TOPIC, layer(5, 2), retain=True)
    assert "applied" == client.document("/config/reported", layer="device", revision=5, in_force={"device": 5})["phase"]


def test_p05_keys_rotate_while_the_device_runs_and_the_agent_stays_small(made: Device, client: Client) -> None:
    push(client, layer(1, 1, trust={"keys": {"next": NEXT.public}}))
    assert "applied" == push(client, layer(2, 2, key=NEXT, trust={"withdraw": ["ops"]}))["phase"]
    assert "'ops' is no key" in push(client, layer(3, 3))["reason"]
    assert made.process is not None
    status = Path(f"/proc/{made.process.pid}/status").read_text()
    assert int(status.split("VmRSS:")[1].split()[0]) < 60_000
    assert made.kill() is None
    made.start()
    assert "applied" == push(client, layer(4, 4, key=NEXT))["phase"]


def test_p05_mutated_layers_change_nothing_while_prompts_flow(made: Device, client: Client) -> None:
    push(client, layer(5, 2))
    draw, good = random.Random(9), layer(6, 4)
    mutated: list[bytes] = [json.dumps({"revision": 6, "settings": {"generation": {"max_tokens": 4}}}).encode()]
    while len(mutated) < 60:
        raw = bytearray(good)
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(7)
        if bytes(raw) != good and bytes(raw).strip():
            mutated.append(bytes(raw))
    client.clear()
    for number, payload in enumerate(mutated):
        client.publish(TOPIC, payload, retain=True)
        assert "a b " == answer(client, made, f"p{number}")

    def reports() -> list[dict[str, Any]]:
        with client._changed:
            return [json.loads(m.payload) for m in client.messages if m.topic.endswith("/config/reported")]

    wait_until(lambda: len(reports()) >= len(mutated), 20, "a report for each layer")
    assert {("rejected", 5)} == {(report["phase"], report["in_force"]["device"]) for report in reports()}
