"""A trial on disk: whatever is lost and whenever the power goes, a start ends in the old config or in the new one."""

from __future__ import annotations

import base64
import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edged.core.golden import GoldenResult
from edged.fleet.desired import DesiredConfig, Postponed, TrialOrder, Update
from edged.wire.topics import Topics
from tests.fleet.signing import Key

TOPICS = Topics("home", "pi", ("kitchen",))
CATALOG = {"gemma": "sha256:" + "a" * 64, "other": "sha256:" + "b" * 64}
OWN = {"generation": {"max_tokens": 100}}
STEPS = ("fetch", "verify", "load", "judge", "probation")


def layer(revision: int, source: str | None = "gemma", **generation: object) -> bytes:
    settings: dict[str, object] = {"model": {"source": source}} if source else {}
    if generation:
        settings["generation"] = generation
    return json.dumps({"revision": revision, "settings": settings}).encode()


def config_in(folder: Path) -> DesiredConfig:
    config = DesiredConfig(OWN, TOPICS, folder / "layers.json", CATALOG)
    config.load(50.0)
    return config


def begun(config: DesiredConfig, payload: bytes = layer(1), name: str = "device") -> TrialOrder:
    order = config.apply(name, payload, 1.0)
    assert isinstance(order, TrialOrder)
    config.begin(order, 2.0)
    return order


def source(config: DesiredConfig) -> str:
    return config.in_force.settings.model.source


DEFAULT = "smollm2-135m-instruct"


def test_p04_a_change_of_the_model_is_written_down_before_anything_is_in_force(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    order = begun(config)
    assert (DEFAULT, "gemma") == (source(config), order.target.model.source)
    assert ("trial", "fetch", {}) == (config.report.phase, config.report.step, config.report.in_force)
    running = json.loads((tmp_path / "trials.json").read_bytes())["kept"]["running"]
    assert layer(1) == base64.b64decode(running["payload"])


def test_p04_after_a_commit_the_layer_is_in_force_also_after_a_restart(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    begun(config)
    result = GoldenResult("p", "a", True, 1.0)
    update = config.commit((result,), 3.0)
    assert ("applied", {"device": 1}, (result,)) == (update.report.phase, update.report.in_force, update.report.golden)
    again = config_in(tmp_path)
    assert ("gemma", config.report) == (source(again), again.report)
    assert None is again.apply("device", layer(1), 4.0)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("pushed", [layer(1), b""])
def test_p04_a_power_cut_in_any_step_is_a_failure_and_is_not_tried_again(
    tmp_path: Path, step: str, pushed: bytes
) -> None:
    """The state folder as it was synced last; the broker then sends the retained layer once more."""
    config = config_in(tmp_path)
    before = DEFAULT
    if not pushed:
        begun(config, layer(7))
        config.commit((), 3.0)
        before = "gemma"
    begun(config, pushed)
    config.progress(step, 0.5, (), 4.0)
    again = config_in(tmp_path)
    assert (before, "rolled_back", 50.0) == (source(again), again.report.phase, again.report.at)
    assert f"the agent or the machine restarted during the trial, at the step {step}" == again.report.reason
    assert ("rolled_back", again.report.reason) == (again.history.decisions[0].phase, again.history.decisions[0].reason)
    if pushed:
        assert None is again.apply("device", pushed, 60.0)
        assert ("rolled_back", 1) == (again.report.phase, again.report.revision)
        assert isinstance(again.apply("device", layer(2), 61.0), TrialOrder)
    third = config_in(tmp_path)
    assert (before, again.report) == (source(third), third.report)


def test_p04_a_power_cut_between_commit_and_the_removal_of_the_record_keeps_the_new_config(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    begun(config)
    shutil.copy(tmp_path / "trials.json", tmp_path / "kept")
    config.commit((), 3.0)
    shutil.copy(tmp_path / "kept", tmp_path / "trials.json")
    again = config_in(tmp_path)
    assert ("gemma", "applied") == (source(again), again.report.phase)
    assert "applied" == config_in(tmp_path).report.phase


def test_p04_a_full_disk_at_the_begin_starts_no_trial(tmp_path: Path, fill: Callable[[], None]) -> None:
    config = config_in(tmp_path)
    order = config.apply("device", layer(1), 1.0)
    assert isinstance(order, TrialOrder)
    fill()
    with pytest.raises(OSError, match="No space"):
        config.begin(order, 2.0)
    assert None is config.trial
    assert DEFAULT == source(config)


@pytest.fixture
def fill(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    return lambda: monkeypatch.setattr("os.fsync", full)


def test_p04_a_full_disk_at_the_commit_changes_nothing_and_a_restart_rolls_back(
    tmp_path: Path, fill: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_in(tmp_path)
    begun(config)
    fill()
    with pytest.raises(OSError, match="No space"):
        config.commit((), 3.0)
    assert DEFAULT == source(config)
    update = config.roll_back("the settings could not be stored", (), 4.0)
    assert ("rolled_back", {}) == (update.report.phase, update.report.in_force)
    assert update.storage_error is not None
    monkeypatch.undo()
    again = config_in(tmp_path)
    assert (DEFAULT, "rolled_back") == (source(again), again.report.phase)
    assert None is again.apply("device", layer(1), 60.0)


def test_p04_a_failed_push_is_not_tried_again_until_it_changes(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    begun(config)
    config.roll_back("it answered Kyoto", (), 3.0)
    assert None is config.apply("device", layer(1), 4.0)
    config.apply("fleet", layer(5, None, max_tokens=7), 5.0)
    update = config.apply("device", b" " + layer(1), 6.0)
    assert isinstance(update, Update)
    assert "not tried again until it changes: it answered Kyoto" == update.report.reason
    assert {"fleet": 5} == update.report.in_force
    begun(config, layer(1, temperature=0.5))
    config.commit((), 7.0)
    assert "gemma" == source(config)


def test_a_change_in_place_during_a_trial_holds_before_and_after_it(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    begun(config)
    assert isinstance(config.apply("fleet", layer(5, None, max_tokens=7), 5.0), Update)
    assert 7 == config.in_force.settings.generation.max_tokens
    update = config.commit((), 6.0)
    assert {"fleet": 5, "device": 1} == update.report.in_force
    assert 7 == config.in_force.settings.generation.max_tokens


def test_another_push_for_the_model_waits_and_one_to_the_same_layer_ends_the_trial(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    begun(config)
    assert None is config.apply("device", layer(1), 3.0)
    assert Postponed(None) == config.apply("group:kitchen", b'{"revision":3,"settings":{"model":{"context":64}}}', 3.0)
    newer = config.apply("device", layer(2, "other"), 4.0)
    assert Postponed("the layer came as revision 2 during the trial") == newer
    assert Postponed("the layer was removed during the trial") == config.apply("device", b"", 5.0)
    assert ["group:kitchen", "device"] == list(config.take_postponed())
    assert {} == config.take_postponed()


def test_a_trial_that_a_newer_push_ended_may_be_pushed_again(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    begun(config)
    config.roll_back("the layer came as revision 2 during the trial", (), 3.0, again=True)
    assert isinstance(config.apply("device", layer(1), 4.0), TrialOrder)


@pytest.mark.parametrize("text", ["", "[]", "garbage", '{"kept":{},"sha256":"x"}'])
@pytest.mark.parametrize("name", ["trials.json", "history.json"])
def test_damaged_records_keep_nothing_from_starting(tmp_path: Path, name: str, text: str) -> None:
    config = config_in(tmp_path)
    begun(config)
    config.commit((), 3.0)
    (tmp_path / name).write_text(text)
    again = config_in(tmp_path)
    assert "gemma" == source(again)
    assert None is again.apply("device", layer(1), 4.0)


def test_the_history_is_bounded_and_keeps_short_settings(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    for revision in range(30):
        config.apply("device", layer(revision, None, max_tokens=revision + 1), float(revision))
    config.apply("device", layer(30, None, system="x" * 10_000), 30.0)
    config.apply("device", b"{", 31.0)
    again = config_in(tmp_path)
    assert config.history.decisions == again.history.decisions
    assert [None, 30, *range(29, 11, -1)] == [one.revision for one in again.history.decisions]
    assert [None, None, '{"generation":{"max_tokens":30}}'] == [one.settings for one in again.history.decisions[:3]]


def test_p05_the_floor_rises_when_a_trial_is_adopted_and_not_before(tmp_path: Path) -> None:
    ops = Key("ops", 1)
    own = {**OWN, "trust": {"keys": {"ops": ops.public}, "require_signature": True}}
    topic = f"{TOPICS.own}/config"

    def started() -> DesiredConfig:
        config = DesiredConfig(own, TOPICS, tmp_path / "layers.json", CATALOG)
        config.load(50.0)
        return config

    config = started()
    begun(config, ops.sign(topic, json.loads(layer(5))))
    assert {} == config.trust.record.floors
    config.roll_back("it answered Kyoto", (), 3.0)
    assert {} == started().trust.record.floors
    begun(config, ops.sign(topic, json.loads(layer(4))))
    config.commit((), 4.0)
    for there in (config, started()):
        assert {topic: 4} == {name: floor.revision for name, floor in there.trust.record.floors.items()}
        assert ["ops", "ops"] == [one.key for one in there.history.decisions]
    low = config.apply("device", ops.sign(topic, json.loads(layer(3))), 5.0)
    assert isinstance(low, Update)
    assert "rejected" == low.report.phase
