"""A push changes the model: tried, judged, kept or undone, through a real broker with the fake worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support import Client, Device, as_json

pytestmark = pytest.mark.broker
QUICK = {"trial": {"probation": "300ms"}}


@pytest.fixture
def made(device: Callable[..., Device]) -> Device:
    return device(QUICK)


def push(client: Client, made: Device, revision: int, model: dict[str, Any] | None = None, **settings: Any) -> None:
    client.clear()
    settings = {"model": model or {"source": "good"}, **settings}
    client.publish(f"{made.root}/config", {"revision": revision, "settings": settings}, retain=True)


def end(client: Client, revision: int | None, seconds: float = 20) -> dict[str, Any]:
    """The report after the trial."""

    def matches(message: Any) -> Any:
        report = as_json(message) if message.topic.endswith("/config/reported") else {}
        return report if report.get("revision") == revision and report["phase"] in ("applied", "rolled_back") else None

    found: dict[str, Any] = client.wait(matches, seconds, f"the end of the trial of revision {revision}")
    return found


def steps(client: Client) -> list[str]:
    """The steps that were reported, in order."""
    reports = [as_json(m) for m in list(client.messages) if m.topic.endswith("/config/reported")]
    found = [report["step"] for report in reports if report["phase"] == "trial"]
    return [step for i, step in enumerate(found) if i == 0 or found[i - 1] != step]


def model_of(client: Client, made: Device, prompt_id: str) -> str:
    """The model that answers a prompt."""
    client.publish(f"{made.root}/prompt/me", {"id": prompt_id, "prompt": "x"})
    final = client.final(prompt_id)
    assert "stop" == final["reason"]
    return str(final["receipt"]["model"])


def test_p04_a_new_model_is_fetched_verified_loaded_judged_and_kept(made: Device, client: Client) -> None:
    golden = [{"prompt": "say:Tokyo it is", "expect": ["kyoto", "TOKYO"], "within": "30s"}]
    push(client, made, 1, golden=golden, generation={"max_tokens": 9})
    report = end(client, 1)
    assert ("applied", {"device": 1}) == (report["phase"], report["in_force"])
    assert [("say:Tokyo it is", "Tokyo it is ", True)] == [
        (g["prompt"], g["answer"], g["held"]) for g in report["golden"]
    ]
    assert ["fetch", "verify", "load", "judge", "probation"] == steps(client)
    assert "good" == model_of(client, made, "after")
    history = client.document("/config/history")
    assert ("applied", 1) == (history["decisions"][0]["phase"], history["decisions"][0]["revision"])


def test_p04_a_wrong_answer_is_rolled_back_with_the_answer_in_the_reason(made: Device, client: Client) -> None:
    push(client, made, 1, golden=[{"prompt": "say:Kyoto", "expect": "Tokyo"}])
    report = end(client, 1)
    assert ("rolled_back", {}) == (report["phase"], report["in_force"])
    assert 'the golden prompt "say:Kyoto" was answered "Kyoto", which does not contain "Tokyo"' == report["reason"]
    assert [False] == [result["held"] for result in report["golden"]]
    assert "fake" == model_of(client, made, "after")
    assert client.document("/event", code="config_rolled_back")["revision"] == 1
