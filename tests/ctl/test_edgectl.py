"""`edgectl` against a real broker and a real agent: answers, tables, pushes, exit codes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from edged.ctl.answer import Printer
from edged.ctl.main import main
from edged.link import session
from edged.wire.topics import Topics
from tests.support import Broker, Client, Device, running

pytestmark = pytest.mark.broker
FLEET = "ctl"


@pytest.fixture(scope="module")
def ctl_device(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """A fleet of one device."""
    watcher = Client(broker.port).subscribe(f"edged/v1/{FLEET}/#")
    made = Device(
        tmp_path_factory.mktemp("ctl"),
        broker,
        {"identity": {"fleet": FLEET, "device": "pi", "groups": ["kitchen"]}, "telemetry": {"interval": "200ms"}},
    )
    with running(made):
        watcher.status("online", 30)
        yield made
    for topic in ("status", "health", "config", "config/reported", "config/history"):
        watcher.publish(f"edged/v1/{FLEET}/device/pi/{topic}", b"", retain=True)
    watcher.publish(f"edged/v1/{FLEET}/config", b"", retain=True)
    watcher.close()
    broker.forget_session(f"edged-{FLEET}-pi")


@pytest.fixture
def edgectl(ctl_device: Device, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command of the operator's, as from a shell without any variables."""
    for name in ("EDGED_MQTT_URL", "EDGED_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)

    def run(*words: str) -> int:
        return main([*words, "--url", broker.url, "--fleet", FLEET])

    return run


def test_prompt_prints_the_answer_and_a_summary_on_stderr(edgectl: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == edgectl("prompt", "say:Tokyo it is")
    captured = capsys.readouterr()
    assert "Tokyo it is \n" == captured.out
    assert "stop" in captured.err
    assert "fake on pi" in captured.err


def test_prompt_with_json_prints_one_final_and_nothing_else(edgectl: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == edgectl("prompt", "a b c", "--json", "--device", "pi", "--max-tokens", "2")
    final = json.loads(capsys.readouterr().out)
    assert (True, "a b ", "length") == (final["final"], final["text"], final["reason"])


def test_prompt_that_is_refused_is_exit_1_with_the_devices_sentence(
    edgectl: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 1 == edgectl("prompt", "long")
    captured = capsys.readouterr()
    assert "" == captured.out
    assert captured.err.startswith("edgectl: too_long: the prompt has 99 tokens")


def test_prompt_without_an_answer_in_time_is_exit_4(edgectl: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert 4 == edgectl("prompt", "wait:never", "--timeout", "0.5")
    assert "no answer came in time" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_named_at_once(edgectl: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert 1 == edgectl("prompt", "x", "--device", "nope", "--timeout", "1000")
    said = capsys.readouterr().err
    assert "no device nope of the fleet ctl is known" in said
    assert "connected are: pi" in said


def test_a_device_is_asked_although_nobody_shows_its_status(
    edgectl: Any, broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    """A requester may have no right to read it; the broker then delivers nothing, and gives no error."""
    assert 4 == main(["prompt", "x", "--device", "pi", "--url", broker.url, "--fleet", "nobody", "--timeout", "0.3"])
    waits, late = capsys.readouterr().err.splitlines()
    assert "or its user may not read their status; waiting for an answer of pi" in waits
    assert "no answer came in time; no device of the fleet nobody is known" in late


def test_an_offline_device_is_reported_at_once_and_does_not_count_as_one_to_choose(
    edgectl: Any, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    status = f"{Topics(FLEET, 'away').own}/status"
    client.publish(status, b"offline", retain=True)
    try:
        assert 1 == edgectl("prompt", "x", "--device", "away", "--timeout", "1000")
        assert "the device away is offline; connected are: pi" in capsys.readouterr().err
        assert 0 == edgectl("prompt", "say:hello")
        client.publish(status, b"online", retain=True)
        assert 1 == edgectl("prompt", "x")
        assert "the fleet has several devices (away, pi); name one with --device" in capsys.readouterr().err
    finally:
        client.publish(status, b"", retain=True)


def test_a_prompt_may_set_turns_format_and_sampling_by_options(
    edgectl: Any, client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns, schema = tmp_path / "turns.json", tmp_path / "schema.json"
    turns.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}')
    schema.write_text('{"type": "object", "properties": {"name": {"type": "string"}}}')
    client.subscribe(f"{Topics(FLEET, 'pi').own}/prompt/+")
    words = ("--messages", str(turns), "--format", str(schema), "--system", "say:system", "--requester", "options")
    assert 0 == edgectl("prompt", "say:c", *words, "--top-p", "0.5", "--seed", "7", "--device", "pi")
    sent = client.wait(lambda m: m.topic.endswith("/prompt/options") and json.loads(m.payload))
    assert ["a", "b", "say:c"] == [turn["content"] for turn in sent["messages"]]
    assert {"type": "json_schema", "schema": json.loads(schema.read_text())} == sent["format"]
    assert ("say:system", 0.5, 7) == (sent["system"], sent["top_p"], sent["seed"])
    assert 0 == edgectl("prompt", "a", "--stop", "x", "--stop", "y", "--requester", "stops")
    sent = client.wait(lambda m: m.topic.endswith("/prompt/stops") and json.loads(m.payload))
    assert ["x", "y"] == sent["stop"]


def test_many_devices_are_asked_at_once(edgectl: Any, ctl_device: Device, capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == edgectl("prompt", "say:Tokyo", "--all")
    table = capsys.readouterr().out.splitlines()
    assert ["device", "answer", "tokens/s", "seconds"] == table[0].split()
    assert ["pi", "Tokyo"] == table[1].split()[:2]
    assert 0 == edgectl("prompt", "say:Tokyo", "--group", "kitchen", "--json")
    assert "Tokyo " == json.loads(capsys.readouterr().out)["devices"]["pi"]["text"]
    assert 1 == edgectl("prompt", "x", "--group", "garden")
    assert "no device of the fleet ctl is in the group garden; the groups are: kitchen" in capsys.readouterr().err
    assert 4 == edgectl("prompt", "wait:never", "--all", "--timeout", "0.3")
    assert "pi did not answer in time" in capsys.readouterr().err


def test_prompts_are_cancelled_by_id_and_all_together(
    edgectl: Any, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.subscribe(f"edged/v1/{FLEET}/reply/#")
    for prompt_id in ("c-1", "c-2", "c-3"):
        topic = f"{Topics(FLEET, 'pi').own}/prompt/canceller"
        client.publish(topic, {"id": prompt_id, "prompt": "wait:never"})
        client.wait(lambda m, i=prompt_id: m.topic.endswith(f"/{i}"))
    assert 0 == edgectl("cancel", "c-2", "--requester", "canceller")
    assert "pi: c-2 — cancelled" in capsys.readouterr().out
    assert 0 == edgectl("cancel", "--all", "--requester", "canceller", "--json", "--device", "pi")
    document = json.loads(capsys.readouterr().out)
    assert (["pi"], {"c-1", "c-3"}) == (document["devices"], {final["id"] for final in document["cancelled"]})
    assert 1 == edgectl("cancel", "c-2", "--requester", "canceller", "--wait", "0.3")
    assert "no prompt of canceller ended on pi" in capsys.readouterr().out
    assert 0 == edgectl("cancel", "--all", "--requester", "canceller", "--wait", "0.3")


def test_a_prompt_that_nobody_waits_for_any_more_is_cancelled(edgectl: Any, client: Client) -> None:
    client.subscribe(f"edged/v1/{FLEET}/reply/impatient/#")
    assert 4 == edgectl("prompt", "wait:never", "--timeout", "0.5", "--requester", "impatient")
    assert "cancelled" == client.any_final("impatient")["reason"]


def test_a_push_that_nobody_answers_is_exit_4(edgectl: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The broker keeps the layer for the device; a script sees that none has applied it."""
    layer = tmp_path / "layer.yaml"
    layer.write_text("generation: {max_tokens: 2}\n")
    for words in ((str(layer),), ("--remove",)):
        assert 4 == edgectl("config", "push", *words, "--device", "nope", "--wait", "0.3")
        captured = capsys.readouterr()
        assert "device: re" in captured.out
        assert "no device has answered yet" in captured.err


def test_only_devices_of_the_group_are_waited_for(
    edgectl: Any, client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The broker retains a report and the groups of a device that is in another group."""
    layer = tmp_path / "layer.yaml"
    layer.write_text("generation: {max_tokens: 2}\n")
    other = Topics(FLEET, "other").own
    client.publish(f"{other}/config/reported", {"phase": "applied", "in_force": {}}, retain=True)
    client.publish(f"{other}/health", {"groups": ["cellar"]}, retain=True)
    try:
        for words in ((str(layer),), ("--remove",)):
            assert 0 == edgectl("config", "push", *words, "--group", "kitchen", "--wait", "1000")
            assert 4 == edgectl("config", "push", *words, "--group", "nobody", "--wait", "1000")
            said = capsys.readouterr()
            assert "group:nobody: re" in said.out
            assert "no known device is in the group nobody; devices that join get the layer" in said.err
    finally:
        for what in ("config/reported", "health"):
            client.publish(f"{other}/{what}", b"", retain=True)


@pytest.mark.parametrize(
    "words",
    [
        ("prompt", "x", "--requester", "a b"),
        ("prompt", "x", "--device", "Pi"),
        ("prompt", "x", "--temperature", "9"),
        ("prompt", "x", "--config", "/nowhere/edged.yaml"),
        ("config", "push"),
        ("config", "push", "/nowhere/layer.yaml"),
    ],
)
def test_wrong_words_are_exit_2_with_one_sentence(
    edgectl: Any, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert 2 == edgectl(*words)
    said = capsys.readouterr().err
    assert said.startswith("edgectl: ")
    assert 1 == said.count("\n")


def test_a_broker_that_is_not_there_is_exit_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert 3 == main(["prompt", "x", "--device", "pi", "--url", "mqtt://127.0.0.1:1"])
    said = capsys.readouterr().err
    assert "cannot be reached: no broker listens there" in said
    assert "--url" not in said


def test_a_default_broker_that_is_not_there_is_an_error_that_names_the_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "DEFAULT_URL", "mqtt://127.0.0.1:1")
    assert 3 == main(["prompt", "x", "--device", "pi", "--url", "mqtt://127.0.0.1:1"])
    assert "; name another with --url or EDGED_MQTT_URL" in capsys.readouterr().err


def test_a_fleet_without_devices_is_told(edgectl: Any, broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    assert 1 == main(["prompt", "x", "--url", broker.url, "--fleet", "nobody"])
    assert "no device of the fleet nobody is known" in capsys.readouterr().err


def test_garbage_on_the_reply_topic_does_not_confuse_prompt(
    edgectl: Any, client: Client, ctl_device: Device, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever may write there can disturb, but not crash it."""
    client.subscribe(f"{Topics(FLEET, 'pi').own}/prompt/+")

    def disturb() -> None:
        asked = client.wait(lambda m: m.topic.endswith("/prompt/noisy") and json.loads(m.payload))
        for payload in (b"\xff", b"[]", b"5", b'{"text":5,"at":"x"}', b'{"text":"x"}', b""):
            client.publish(Topics(FLEET, "pi").reply("noisy", asked["id"]), payload)
        (ctl_device.control / "noisy-go").touch()

    thread = threading.Thread(target=disturb)
    thread.start()
    assert 0 == edgectl("prompt", "wait:noisy-go done", "--device", "pi", "--requester", "noisy")
    thread.join()
    assert capsys.readouterr().out.endswith("done \n")


def test_status_shows_every_device_and_its_config(edgectl: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == edgectl("status", "--json", "--wait", "5")
    document = json.loads(capsys.readouterr().out)
    assert "online" == document["pi"]["status"]
    assert "fake" == document["pi"]["health"]["model"]["name"]
    assert 64 == document["pi"]["telemetry"]["queue"]["limit"]
    assert 0 == edgectl("status", "--wait", "5")
    table = capsys.readouterr().out
    assert "pi" in table
    assert "online" in table


def test_push_shows_what_became_of_a_layer_and_get_shows_it(
    edgectl: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("generation: {max_tokens: 2}\n")
    bad.write_text("generation: {max_token: 2}\n")
    assert 0 == edgectl("config", "push", str(good), "--device", "pi", "--json")
    pushed = json.loads(capsys.readouterr().out)
    assert "applied" == pushed["devices"]["pi"]["phase"]
    assert 1 == pushed["revision"]
    assert 0 == edgectl("prompt", "a b c")
    assert "a b \n" == capsys.readouterr().out
    assert 2 == edgectl("config", "push", str(bad), "--device", "pi")
    assert "max_token" in capsys.readouterr().err
    assert 0 == edgectl("config", "get", "--json")
    shown = json.loads(capsys.readouterr().out)
    assert {"revision": 1, "settings": {"generation": {"max_tokens": 2}}} == shown["layers"]["device/pi"]
    assert {"device": 1} == shown["reported"]["pi"]["in_force"]
    assert 0 == edgectl("config", "get")
    assert "in force: device:1" in capsys.readouterr().out
    assert 0 == edgectl("config", "push", "--remove", "--device", "pi")
    capsys.readouterr()
    edgectl("config", "get", "--json")
    assert {} == json.loads(capsys.readouterr().out)["layers"]


def test_a_push_of_what_is_in_force_is_done_although_the_device_rightly_stays_silent(
    edgectl: Any, ctl_device: Device, client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A device that rejected the layer says so again."""
    layer = tmp_path / "layer.yaml"
    layer.write_text("revision: 7\nsettings: {generation: {max_tokens: 3}}\n")
    push = ("config", "push", str(layer), "--device", "pi", "--json")
    assert 0 == edgectl(*push)
    assert "already" not in capsys.readouterr().out
    assert 0 == edgectl(*push, "--wait", "60")  # nobody is waited for
    answer = json.loads(capsys.readouterr().out)["devices"]["pi"]
    assert ("applied", 7, {"device": 7}) == (answer["phase"], answer["revision"], answer["in_force"])
    assert "in force already" in answer["reason"]
    bad = tmp_path / "bad.yaml"
    bad.write_text("revision: 7\nsettings: {model: {source: other}}\n")
    for _ in range(2):
        assert 1 == edgectl(*push[:2], str(bad), *push[3:])
    assert "rejected" in capsys.readouterr().out
    assert 0 == edgectl(*push)  # and back: the device says anew that it has this one
    assert "already" not in capsys.readouterr().out
    assert 0 == edgectl("config", "push", "--remove", "--device", "pi")


def test_a_layer_that_the_broker_forgot_is_in_force_where_no_device_objects() -> None:
    from edged.ctl.config import Target, _settled

    target, payload = Target("f", device="pi"), b'{"revision":7,"settings":{"generation":{"seed":1}}}'
    report = {"phase": "applied", "layer": "device", "revision": 7, "in_force": {"device": 7}}
    spaced, other = payload.replace(b":", b": "), payload.replace(b'"seed":1', b'"seed":2')
    for current in (payload, spaced, b""):
        assert "applied" == _settled(target, payload, current, {"pi": report})["pi"]["phase"]
    for current in (other, b"garbage"):
        assert {} == _settled(target, payload, current, {"pi": report})
    fleet = {**report, "layer": "fleet", "phase": "rejected"}  # of another layer
    assert "applied" == _settled(target, payload, payload, {"pi": fleet})["pi"]["phase"]
    for odd in ({**report, "phase": "rejected"}, {**report, "in_force": {"device": 6}}, {**report, "in_force": 5}):
        assert {} == _settled(target, payload, payload, {"pi": odd})
    assert {} == _settled(target, b"", payload, {"pi": report})


def test_push_of_a_layer_that_the_device_rejects_is_exit_1(
    edgectl: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = tmp_path / "layer.json"
    layer.write_text('{"revision": 3, "settings": {"model": {"source": "other"}}}')
    assert 1 == edgectl("config", "push", str(layer))
    assert "rejected" in capsys.readouterr().out
    assert 0 == edgectl("config", "push", "--remove")


def pushed_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "layer.yaml"
    path.write_text(text)
    return str(path)


def test_p04_a_trial_is_watched_to_its_end_and_undone(
    edgectl: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = "trial: {probation: 200ms}\n"
    path = pushed_file(tmp_path, quick + "generation: {max_tokens: 7}\n")
    assert 0 == edgectl("config", "push", path, "--device", "pi")
    path = pushed_file(tmp_path, quick + "model: {source: good}\ngolden: [{prompt: 'say:Tokyo', expect: tokyo}]\n")
    assert 0 == edgectl("config", "push", path, "--device", "pi", "--watch")
    said = capsys.readouterr()
    assert ["pi: fetch", "pi: verify", "pi: load", "pi: judge", "pi: probation"] == said.err.splitlines()
    assert "applied" in said.out
    assert "pi: golden: held: 'say:Tokyo' -> 'Tokyo '" in said.out
    path = pushed_file(tmp_path, quick + "model: {source: good, context: 99}\ngolden: [{prompt: x, expect: y}]\n")
    assert 1 == edgectl("config", "push", path, "--device", "pi", "--watch", "--json")
    report = json.loads(capsys.readouterr().out)["devices"]["pi"]
    assert ("rolled_back", {"device": 2}) == (report["phase"], report["in_force"])
    assert 'was answered "x", which does not contain "y"' in report["reason"]
    path = pushed_file(tmp_path, json.dumps({"revision": 3, "settings": yaml.safe_load(Path(path).read_text())}))
    assert 1 == edgectl("config", "push", path, "--device", "pi", "--watch", "--wait", "5")
    capsys.readouterr()
    assert 0 == edgectl("config", "history", "--json")
    decisions = json.loads(capsys.readouterr().out)["devices"]["pi"]
    assert [("rolled_back", 3), ("applied", 2), ("applied", 1)] == [(d["phase"], d["revision"]) for d in decisions[:3]]
    assert 0 == edgectl("config", "history")
    assert "rolled_back" in capsys.readouterr().out
    for revision, model in ((4, "good"), (5, None)):  # back to what was in force, then to what was before that
        assert 0 == edgectl("config", "undo", "--device", "pi", "--watch", "--json")
        assert {"device": revision} == json.loads(capsys.readouterr().out)["devices"]["pi"]["in_force"]
        edgectl("config", "get", "--json")
        layer = json.loads(capsys.readouterr().out)["layers"]["device/pi"]
        assert (revision, model) == (layer["revision"], layer["settings"].get("model", {}).get("source"))
    assert 0 == edgectl("config", "push", "--remove", "--device", "pi")


def test_a_diff_names_what_a_push_would_change_and_where(
    edgectl: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = pushed_file(tmp_path, "generation: {max_tokens: 7}\n")
    assert 0 == edgectl("config", "push", path, "--device", "pi")
    capsys.readouterr()
    assert 0 == edgectl("config", "diff", path, "--device", "pi")
    assert "nothing would change" in capsys.readouterr().out
    path = pushed_file(tmp_path, "generation: {max_tokens: 8}\nmodel: {source: good}\n")
    assert 0 == edgectl("config", "diff", path, "--device", "pi", "--json")
    document = json.loads(capsys.readouterr().out)
    assert [("generation.max_tokens", 7, 8), ("model.source", None, "good")] == [
        (change["key"], change["before"], change["after"]) for change in document["changes"]
    ]
    assert (True, ["pi"]) == (document["trial"], document["devices"])
    assert 0 == edgectl("config", "diff", path, "--device", "pi")
    assert "device: is tried on pi" in capsys.readouterr().out
    assert 0 == edgectl("config", "push", "--remove", "--device", "pi")


def test_an_undo_without_a_history_is_exit_2(edgectl: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert 2 == edgectl("config", "undo", "--group", "nobody")
    assert "the history of the layer group:nobody has no other settings" in capsys.readouterr().err


class Screen:
    """A stream that keeps what was written."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        return


@pytest.mark.parametrize(
    ("chunks", "final", "shown"),
    [
        ([(0, "a "), (2, "b ")], "a b c", "a b c\n"),
        ([], "whole", "whole\n"),
        ([(0, "a "), (4, "later")], "a b later", "a b later\n"),
        ([(0, "first try"), (0, "second"), (6, " one")], "second one", "first try\nsecond one\n"),
        ([(0, "so far"), (0, "so far and on")], "so far and on.", "so far and on.\n"),
        ([(2, "lost the first")], "x lost the first", "x lost the first\n"),
    ],
)
def test_an_answer_is_printed_as_it_grows(chunks: list[tuple[int, str]], final: str, shown: str) -> None:
    screen = Screen()
    printer = Printer(screen)  # type: ignore[arg-type]
    for at, text in chunks:
        printer.chunk(at, text)
    printer.final(final)
    assert shown == screen.text
