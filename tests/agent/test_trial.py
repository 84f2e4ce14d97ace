"""A push changes the model: tried, judged, kept or undone, through a real broker with the fake worker."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import Broker, Client, Device, as_json, running, wait_until

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
        done = report.get("phase") in ("applied", "rolled_back")
        return report if done and report["revision"] == revision else None

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


# ---- the switch ------------------------------------------------------------------------------------------------------


def test_p01_no_prompt_is_lost_while_the_model_changes_and_receipts_name_it(made: Device, client: Client) -> None:
    (made.control / "hold-pull").touch()
    client.publish(f"{made.root}/prompt/me", {"id": "long", "prompt": "a wait:go b"})
    push(client, made, 1)
    client.document("/config/reported", phase="trial", step="fetch")
    client.publish(f"{made.root}/prompt/me", {"id": "meanwhile", "prompt": "x"})
    assert "fake" == client.final("meanwhile")["receipt"]["model"]
    (made.control / "hold-pull").unlink()
    for number in range(10):
        client.publish(f"{made.root}/prompt/me", {"id": f"p{number}", "prompt": "y"})
    (made.control / "go").touch()
    assert "applied" == end(client, 1)["phase"]
    finals = [client.final(f"p{number}") for number in range(10)] + [client.final("long")]
    assert {"stop"} == {final["reason"] for final in finals}
    assert {"fake", "good"} >= {final["receipt"]["model"] for final in finals}
    assert "good" == model_of(client, made, "after")


def test_p07_a_model_that_does_not_fit_beside_the_old_one_is_loaded_instead_of_it(made: Device, client: Client) -> None:
    """Prompts wait meanwhile; where it fails they are answered by the old model."""
    (made.control / "size").write_text(str(10**15))
    (made.control / "load").unlink(missing_ok=True)
    push(client, made, 1, {"source": "wait"}, golden=[{"prompt": "say:no", "expect": "yes"}])
    client.document("/config/reported", phase="trial", step="load")
    client.publish(f"{made.root}/prompt/me", {"id": "waits", "prompt": "x"})
    client.document("pi/waits", accepted=True)
    (made.control / "load").touch()
    assert "rolled_back" == end(client, 1)["phase"]
    assert "fake" == client.final("waits")["receipt"]["model"]


def test_p04_a_new_worker_that_dies_while_it_serves_is_rolled_back_and_its_prompts_are_answered(
    made: Device, client: Client
) -> None:
    push(client, made, 1, {"source": "dies-late"}, trial={"probation": "60s"})
    client.document("/config/reported", phase="trial", step="probation")
    client.publish(f"{made.root}/prompt/me", {"id": "kills", "prompt": "x"})
    report = end(client, 1)
    assert "the worker process with the new model was killed by SIGKILL during the step probation" == report["reason"]
    assert ("stop", "fake") == (client.final("kills")["reason"], client.final("kills")["receipt"]["model"])


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ("no-pull", "good could not be fetched: pull failed as the test asked"),
        ("no-show", "good could not be verified: show failed as the test asked"),
    ],
)
def test_p06_a_model_that_cannot_be_fetched_or_verified_changes_nothing(
    made: Device, client: Client, held: str, said: str
) -> None:
    (made.control / held).touch()
    push(client, made, 1)
    report = end(client, 1)
    assert ("rolled_back", said, {}) == (report["phase"], report["reason"], report["in_force"])
    assert "fake" == model_of(client, made, "after")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("broken", "broken could not be loaded: the model is broken; remove it"),
        ("crash", "the worker process with the new model ended with exit code 3 during the step load"),
    ],
)
def test_p04_a_model_that_cannot_be_loaded_changes_nothing(
    made: Device, client: Client, source: str, said: str
) -> None:
    push(client, made, 1, {"source": source})
    assert said == end(client, 1)["reason"]
    assert "fake" == model_of(client, made, "after")


def test_a_push_that_comes_while_the_first_model_is_loaded_waits_for_it(
    device: Callable[..., Device], client: Client
) -> None:
    made = device({**QUICK, "model": {"source": "wait"}}, until="starting")
    push(client, made, 1)
    report = client.document("/config/reported", phase="waiting")
    assert (1, {}, "the device loads its present model first") == (
        report["revision"],
        report["in_force"],
        report["reason"],
    )
    (made.control / "load").touch()
    assert "applied" == end(client, 1)["phase"]
    assert "good" == model_of(client, made, "after")


def test_two_layers_that_come_while_the_first_model_is_loaded_are_both_tried(
    device: Callable[..., Device], client: Client
) -> None:
    made = device({**QUICK, "model": {"source": "wait"}}, until="starting")
    push(client, made, 1)
    client.document("/config/reported", phase="waiting", layer="device")
    fleet = "edged/v1/test/config"
    client.publish(fleet, {"revision": 5, "settings": {"model": {"context": 99}}}, retain=True)
    client.document("/config/reported", phase="waiting", layer="fleet")
    (made.control / "load").touch()

    def both(message: Any) -> bool:
        report = as_json(message) if message.topic.endswith("/config/reported") else {}
        return {"fleet": 5, "device": 1} == report.get("in_force")

    client.wait(both, 20, "both layers in force")
    client.publish(fleet, b"", retain=True)


def test_p04_a_device_without_a_usable_model_gets_one_by_a_push(device: Callable[..., Device], client: Client) -> None:
    made = device({**QUICK, "model": {"source": "broken"}}, until="safe")
    push(client, made, 1)
    assert "applied" == end(client, 1)["phase"]
    client.status("online")
    assert "good" == model_of(client, made, "after")


def test_p04_a_broker_that_goes_away_during_the_probation_rolls_back(tmp_path: Path) -> None:
    broker = Broker(tmp_path).start()
    client = Client(broker.port).subscribe("edged/v1/test/#")
    made = Device(tmp_path, broker, patches=("edged.fleet.trial:LINK_GRACE=1.0",))
    try:
        with running(made):
            client.status("online", 30)
            push(client, made, 1, trial={"probation": "60s"})
            client.document("/config/reported", phase="trial", step="probation")
            client.close()
            broker.stop()
            wait_until(lambda: b"rolled_back" in made.log.read_bytes(), 20, "the end of the trial")
            broker.start()
            client = Client(broker.port).subscribe("edged/v1/test/#")
            report = client.document("/config/reported", revision=1)
            assert ("rolled_back", {}) == (report["phase"], report["in_force"])
            assert "the broker could not be reached for 1 s with the new model" == report["reason"]
            assert "fake" == model_of(client, made, "after")
    finally:
        client.close()
        broker.stop()


# ---- restarts --------------------------------------------------------------------------------------------------------

HELD_STEPS = ("fetch", "verify", "load", "judge", "probation")


def hold_in(step: str, client: Client, made: Device) -> None:
    """A trial that stays in this step."""
    for name in ("load", "go"):
        (made.control / name).unlink(missing_ok=True)
    if step in ("fetch", "verify"):
        (made.control / {"fetch": "hold-pull", "verify": "hold-show"}[step]).touch()
    golden = [{"prompt": "wait:go x"}] if step == "judge" else []
    push(client, made, 1, {"source": "wait" if step == "load" else "good"}, golden=golden, trial={"probation": "60s"})
    client.document("/config/reported", phase="trial", step=step)


def release(made: Device) -> None:
    for name in ("hold-pull", "hold-show"):
        (made.control / name).unlink(missing_ok=True)


@pytest.mark.parametrize("how", ["kill -9", "stop"])
@pytest.mark.parametrize("step", HELD_STEPS)
def test_p04_a_restart_of_the_agent_in_any_step_is_a_failure(made: Device, client: Client, step: str, how: str) -> None:
    hold_in(step, client, made)
    client.publish(f"{made.root}/prompt/me", {"id": "waits", "prompt": "x"})
    client.document("pi/waits", accepted=True)
    if how == "stop":
        made.stop()
    else:
        made.kill()
    release(made)
    client.clear()
    made.start()
    report = end(client, 1)
    assert ("rolled_back", {}) == (report["phase"], report["in_force"])
    assert f"the agent or the machine restarted during the trial, at the step {step}" == report["reason"]
    assert "fake" == model_of(client, made, "after")
    assert not [report for report in client.messages if b'"phase":"trial"' in report.payload]


@pytest.mark.parametrize("step", ["load", "judge", "probation"])
def test_p04_a_kill_of_the_new_worker_in_any_step_rolls_back(made: Device, client: Client, step: str) -> None:
    before = set(made.worker_pids())
    hold_in(step, client, made)
    new = set(made.worker_pids()) - before
    for pid in new:
        os.kill(pid, signal.SIGKILL)
    report = end(client, 1)
    assert f"the worker process with the new model was killed by SIGKILL during the step {step}" == report["reason"]
    assert "fake" == model_of(client, made, "after")


@pytest.mark.parametrize("step", ["fetch", "load", "judge"])
def test_p04_a_kill_of_the_old_worker_does_not_disturb_the_trial(made: Device, client: Client, step: str) -> None:
    before = set(made.worker_pids())
    hold_in(step, client, made)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    client.document("/event", code="worker_died")
    assert "fake" == model_of(client, made, "meanwhile")
    push(client, made, 2, {"source": "second"})
    release(made)
    for name in ("load", "go"):
        (made.control / name).touch()
    assert "applied" == end(client, 2)["phase"]
    assert "second" == model_of(client, made, "after")


# ---- what an operator does meanwhile ---------------------------------------------------------------------------------


def test_a_newer_push_ends_the_trial_and_is_tried_instead(made: Device, client: Client) -> None:
    hold_in("fetch", client, made)
    release_after = made.control / "hold-pull"
    client.publish(f"{made.root}/config", {"revision": 2, "settings": {"model": {"source": "second"}}}, retain=True)
    report = end(client, 1)
    assert ("rolled_back", "the layer came as revision 2 during the trial") == (report["phase"], report["reason"])
    release_after.unlink()
    assert "applied" == end(client, 2)["phase"]


def test_the_removal_of_the_layer_is_a_trial_of_the_model_below(made: Device, client: Client) -> None:
    push(client, made, 1)
    end(client, 1)
    client.clear()
    client.publish(f"{made.root}/config", b"", retain=True)
    report = end(client, None)
    assert ("applied", "the layer was removed", {}) == (report["phase"], report["reason"], report["in_force"])
    assert "fake" == model_of(client, made, "after")


def test_the_new_model_is_loaded_after_a_restart(made: Device, client: Client) -> None:
    push(client, made, 1)
    end(client, 1)
    made.kill()
    client.clear()
    made.start()
    client.status("online")
    assert "good" == model_of(client, made, "after")
    assert {"device": 1} == client.document("/config/reported")["in_force"]


@pytest.mark.parametrize(
    ("expect", "prompt", "said"),
    [
        ({"regex": r"^Tok.o"}, "say:Tokyo", None),
        ({"regex": r"^Kyo"}, "say:Tokyo", "which does not match the pattern ^Kyo"),
        ({"regex": r"^(a+)+$"}, "say:" + "a" * 60 + "!", "matching the regex took longer than"),
        ({"schema": {"type": "object", "required": ["a"]}}, 'say:{"a":1}', None),
        ({"schema": {"type": "object", "required": ["b"]}}, 'say:{"a":1}', "which does not obey the schema"),
        ({"schema": {"type": "object"}}, "say:{", "which is not JSON"),
    ],
)
def test_p04_patterns_and_schemas_judge_the_answer_and_cannot_hang_the_device(
    made: Device, client: Client, expect: dict[str, Any], prompt: str, said: str | None
) -> None:
    push(client, made, 1, golden=[{"prompt": prompt, "expect": expect}])
    report = end(client, 1)
    assert ("applied" if said is None else "rolled_back") == report["phase"]
    assert (said or "") in report["reason"]
