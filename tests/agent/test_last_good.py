"""A model in force that cannot be loaded: the last good one serves, and the store keeps both."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import Client, Device, as_json, wait_until

pytestmark = pytest.mark.broker
Make = Callable[..., Device]
QUICK = {"trial": {"probation": "300ms"}}


def adopt(client: Client, made: Device, revision: int, source: str) -> None:
    client.clear()
    push = {"revision": revision, "settings": {"model": {"source": source}}}
    client.publish(f"{made.root}/config", push, retain=True)
    client.document("/config/reported", phase="applied", revision=revision)


def slots(made: Device) -> dict[str, Any]:
    kept: dict[str, Any] = json.loads((made.folder / "state" / "slots.json").read_bytes())["kept"]
    return {name: slot and slot["source"] for name, slot in kept.items()}


def finding(client: Client) -> dict[str, Any]:
    def matches(message: Any) -> Any:
        found = as_json(message).get("findings", []) if message.topic.endswith("/health") else []
        return next((one for one in found if one["code"] == "model_fallback"), None)

    found: dict[str, Any] = client.wait(matches, 20, "the finding model_fallback")
    return found


def answered_by(client: Client, made: Device, prompt_id: str) -> str:
    client.publish(f"{made.root}/prompt/me", {"id": prompt_id, "prompt": "x"})
    return str(client.final(prompt_id)["receipt"]["model"])


def test_p04_a_start_with_a_damaged_model_serves_the_last_good_one_with_a_finding(device: Make, client: Client) -> None:
    """A later push that names a good model ends the fall-back."""
    made = device(QUICK)
    adopt(client, made, 1, "good")
    wait_until(lambda: "good" == slots(made)["in_force"], 10, "the slots are written")
    assert "smollm2-135m-instruct" == slots(made)["last_good"]
    made.stop()
    (made.control / "broken-good").touch()
    client.clear()
    made.start()
    client.status("online")
    assert finding(client)["advice"] == (
        "the model good cannot be loaded, so the last good one serves: the model is broken; remove it; "
        "then restart edged, or push another model"
    )
    assert "fake" == answered_by(client, made, "fallen-back")
    assert b"safe" not in {m.payload for m in list(client.messages) if m.topic.endswith("/status")}
    adopt(client, made, 2, "second")
    client.document("/event", code="finding_ended", finding="model_fallback")
    assert "second" == answered_by(client, made, "after")
    wait_until(lambda: {"in_force": "second", "last_good": "good"} == slots(made), 10, "the slots are written")


def test_an_adopted_model_or_another_keep_starts_the_clean_up_of_the_store_and_a_first_start_does_not(
    device: Make, client: Client
) -> None:
    made = device(QUICK)
    assert not (made.control / "pruned").exists()
    adopt(client, made, 1, "good")
    wait_until((made.control / "pruned").exists, 10, "edged model prune ran")
    (made.control / "pruned").unlink()
    push = {"revision": 2, "settings": {"model": {"source": "good"}, "models": {"keep": 5}}}
    client.publish(f"{made.root}/config", push, retain=True)
    wait_until((made.control / "pruned").exists, 10, "edged model prune ran again")
    assert not [m for m in list(client.messages) if as_json(m).get("phase") == "trial" and as_json(m)["revision"] == 2]
