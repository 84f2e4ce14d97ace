"""A roll-out on one device: who begins when, and that everyone ends in the right settings whatever happens between."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from edged.fleet.desired import DesiredConfig, Postponed, TrialOrder, Update
from edged.fleet.named_models import named_models
from edged.fleet.rollout import Moment, delay, within
from edged.wire.layers import parse_layer
from edged.wire.rollouts import Rollout, belongs, position
from edged.wire.topics import Topics
from tests.fleet.signing import Key

TOPICS = Topics("home", "pi")
CATALOG = {"gemma": "sha256:" + "a" * 64, "other": "sha256:" + "b" * 64}
PERCENT = 60.0  # of the seed "s" the device "pi" is among the first 60, and not among the first 30
OLD, NEW = {"generation": {"max_tokens": 10}}, {"generation": {"max_tokens": 20}}


def layer(revision: int, settings: dict[str, Any] = NEW, **rollout: Any) -> bytes:
    document: dict[str, Any] = {"revision": revision, "settings": settings}
    if rollout:
        document["rollout"] = {"id": "r1", "seed": "s", **rollout}
    return json.dumps(document).encode()


def config_in(folder: Path, minute: int = 0, owner: dict[str, Any] | None = None) -> DesiredConfig:
    folder.mkdir(exist_ok=True)
    config = DesiredConfig(owner or {}, TOPICS, folder / "layers.json", CATALOG, lambda _now: minute)
    config.load(50.0)
    return config


def tokens(config: DesiredConfig) -> int:
    return config.in_force.settings.generation.max_tokens


def phase(config: DesiredConfig) -> tuple[str, int | None]:
    return config.report.phase, config.report.revision


# ---- the order of the devices ---------------------------------------------------------------------------------------


def test_the_position_is_the_first_8_bytes_of_the_digest_as_a_share() -> None:
    digest = hashlib.sha256(b"seedpi-1").digest()
    assert int.from_bytes(digest[:8], "big") / 2**64 * 100 == pytest.approx(float(position("seed", "pi-1")))
    assert not belongs("seed", "pi-1", 0.0)
    assert belongs("seed", "pi-1", 100.0)


def test_a_later_stage_contains_the_earlier_ones_and_the_shares_are_met() -> None:
    devices = [f"pi-{number}" for number in range(4000)]
    stages = [{d for d in devices if belongs("x", d, percent)} for percent in (0, 1, 5, 25, 100)]
    assert all(earlier <= later for earlier, later in itertools.pairwise(stages))
    shares = [len(stage) / len(devices) for stage in stages]
    assert [0, 0.01, 0.05, 0.25, 1] == pytest.approx(shares, abs=0.02)
    assert {d for d in devices if belongs("y", d, 5)} != stages[2]


def test_the_test_device_is_where_the_other_tests_need_it() -> None:
    assert (False, True) == (belongs("s", "pi", 30), belongs("s", "pi", PERCENT))


# ---- the decision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("percent", [0.0, PERCENT, 100.0])
@pytest.mark.parametrize("halted", [False, True])
@pytest.mark.parametrize("not_before", [None, 99.0, 101.0])
@pytest.mark.parametrize("window", [None, (0, 60), (60, 120)])
@pytest.mark.parametrize("busy", [False, True])
def test_a_device_begins_only_where_nothing_delays_it(
    percent: float, halted: bool, not_before: float | None, window: tuple[int, int] | None, busy: bool
) -> None:
    of = Rollout("r1", percent, "s", not_before, window, halted)
    begins = percent >= PERCENT and not halted and not_before != 101.0 and window != (60, 120) and not busy
    assert begins == (delay(of, "pi", Moment(100.0, 30, busy)) is None)


@pytest.mark.parametrize(
    ("window", "inside", "outside"),
    [((120, 240), (120, 239), (119, 240, 0)), ((1380, 60), (1380, 0, 59), (60, 1379, 700))],
)
def test_a_window_may_pass_midnight(window: tuple[int, int], inside: tuple[int, ...], outside: tuple[int, ...]) -> None:
    assert all(within(window, minute) for minute in inside)
    assert not any(within(window, minute) for minute in outside)


@pytest.mark.parametrize(
    ("rollout", "why"),
    [
        ({"percent": 1, "seed": "s"}, "rollout.id: is required"),
        ({"id": "a/b", "percent": 1, "seed": "s"}, "rollout.id: must be"),
        ({"id": "a", "percent": 101, "seed": "s"}, "rollout.percent: must be between 0 and 100"),
        ({"id": "a", "percent": 1, "seed": "s", "window": "2-4"}, "rollout.window: must be two times of the day"),
        ({"id": "a", "percent": 1, "seed": "s", "window": "02:00-02:00"}, "rollout.window: begins and ends at 02:00"),
        ({"id": "a", "percent": 1, "seed": "s", "not_before": "soon"}, "rollout.not_before: must be a UTC time"),
        ({"id": "a", "percent": 1, "seed": "s", "previous": {"mqtt": {}}}, "rollout.previous.mqtt:"),
        ({"id": "a", "percent": 1, "seed": "s", "previous": {"model": {"source": "x"}}}, "rollout.previous.model.sour"),
        ({"id": "a", "percent": 1, "seed": "s", "stage": 1}, "rollout.stage: unknown key"),
    ],
)
def test_a_roll_out_that_cannot_be_read_is_rejected_with_its_key(
    tmp_path: Path, rollout: dict[str, Any], why: str
) -> None:
    config = config_in(tmp_path)
    config.apply("fleet", json.dumps({"revision": 3, "settings": {}, "rollout": rollout}).encode(), 1.0)
    assert ("rejected", 3) == phase(config)
    assert config.report.reason.startswith(why)


# ---- on a device ----------------------------------------------------------------------------------------------------


def test_a_device_outside_the_share_keeps_its_settings_and_reports_waiting(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    config.apply("fleet", layer(1, OLD), 1.0)
    config.apply("fleet", layer(2, percent=30, previous=OLD), 2.0)
    assert (10, ("waiting", 2), {"fleet": 1}) == (tokens(config), phase(config), config.report.in_force)
    assert "the roll-out r1 is at 30 % of the devices, without this one" == config.report.reason
    assert None is config.apply("fleet", layer(2, percent=30, previous=OLD), 3.0)  # sent again at a reconnect
    config.apply("fleet", layer(3, percent=PERCENT, previous=OLD), 4.0)
    assert (20, ("applied", 3), {"fleet": 3}) == (tokens(config), phase(config), config.report.in_force)


def test_a_device_that_joins_meanwhile_has_the_settings_of_before(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    config.apply("fleet", layer(2, percent=30, previous=OLD), 2.0)
    assert (10, ("waiting", 2), {}) == (tokens(config), phase(config), config.report.in_force)
    again = config_in(tmp_path)
    assert (10, ("waiting", 2), {}) == (tokens(again), phase(again), again.report.in_force)
    again.apply("fleet", layer(3, percent=100, previous=OLD), 4.0)
    assert (20, ("applied", 3), {"fleet": 3}) == (tokens(again), phase(again), again.report.in_force)


def test_a_device_that_was_offline_for_weeks_takes_the_settings_of_before(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    config.apply("fleet", layer(1, {"generation": {"max_tokens": 5}}), 1.0)
    config.apply("fleet", layer(9, percent=0, previous=OLD), 2.0)
    assert (10, ("waiting", 9)) == (tokens(config), phase(config))


def test_a_halt_stops_who_has_not_begun_and_changes_nothing_for_who_has(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    config.apply("fleet", layer(2, percent=PERCENT, previous=OLD), 1.0)
    config.apply("fleet", layer(3, percent=PERCENT, previous=OLD, halted=True), 2.0)
    assert (20, ("applied", 3)) == (tokens(config), phase(config))
    other = config_in(tmp_path / "other")
    other.apply("fleet", layer(3, percent=PERCENT, previous=OLD, halted=True), 2.0)
    assert (10, ("waiting", 3)) == (tokens(other), phase(other))
    assert [] == other.due(1e9, busy=False)
    other.apply("fleet", layer(4, percent=PERCENT, previous=OLD), 3.0)
    assert (20, ("applied", 4)) == (tokens(other), phase(other))


def test_a_window_and_prompts_delay_and_the_device_begins_by_itself_also_after_a_restart(tmp_path: Path) -> None:
    payload = layer(2, percent=100, window="02:00-04:00")
    config = config_in(tmp_path, minute=60)
    config.apply("fleet", payload, 1.0)
    assert "the roll-out r1 waits for 02:00 local time" == config.report.reason
    assert [] == config.due(2.0, busy=False)
    config = config_in(tmp_path, minute=120)
    assert [("fleet", payload)] == config.due(3.0, busy=True)
    config.apply("fleet", payload, 3.0, busy=True)
    assert "prompts are answered first, for at most 10m" == config.report.reason
    assert [] == config.due(602.0, busy=True)
    assert [("fleet", payload)] == config.due(603.0, busy=True)
    config.apply("fleet", payload, 603.0, busy=True)
    assert (20, ("applied", 2)) == (tokens(config), phase(config))
    assert [] == config.due(604.0, busy=False)


def test_a_push_without_a_roll_out_ends_the_wait(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    config.apply("fleet", layer(1, OLD), 1.0)
    config.apply("fleet", layer(2, percent=0), 2.0)
    config.apply("fleet", layer(1, OLD), 3.0)
    assert (10, ("applied", 1)) == (tokens(config), phase(config))
    config.apply("fleet", layer(3, percent=0), 4.0)
    config.apply("fleet", b"", 5.0)
    assert (256, []) == (tokens(config), config.due(6.0, busy=False))


def test_whatever_happens_on_the_way_a_device_ends_in_the_right_settings(tmp_path: Path) -> None:
    """Every sequence of three among stages, halts, a restart and other layers; then the last stage, or a way back."""
    moves = ("low", "high", "halted", "restart", "own")
    for number, sequence in enumerate(itertools.product(moves, repeat=3)):
        folder = tmp_path / str(number)
        config, begun = config_in(folder), False
        for revision, move in enumerate(sequence, start=2):
            if move == "restart":
                config = config_in(folder)
            elif move == "own":
                config.apply("device", layer(revision, {"limits": {"queue": 3}}), 1.0)
            else:
                percent = {"low": 30, "high": PERCENT, "halted": 100}[move]
                config.apply("fleet", layer(revision, percent=percent, previous=OLD, halted=move == "halted"), 1.0)
                begun |= move == "high"
                assert (20 if begun else 10) == tokens(config), sequence
                assert (("applied" if begun else "waiting"), revision) == phase(config), sequence
        before = (tokens(config), config.in_force.revisions)
        config = config_in(folder)
        assert before == (tokens(config), config.in_force.revisions), sequence
        config.apply("fleet", layer(8, percent=100, previous=OLD), 1.0)
        assert (20, 8) == (tokens(config), config.in_force.revisions["fleet"]), sequence
        config.apply("fleet", layer(9, OLD), 1.0)
        assert (10, 9) == (tokens(config), config.in_force.revisions["fleet"]), sequence


# ---- with trials ----------------------------------------------------------------------------------------------------

MODEL = {"model": {"source": "gemma"}}
BEFORE = {"model": {"source": "other"}}


def begun(config: DesiredConfig, payload: bytes) -> TrialOrder:
    order = config.apply("fleet", payload, 1.0)
    assert isinstance(order, TrialOrder)
    config.begin(order, 2.0)
    return order


def source(config: DesiredConfig) -> str:
    return config.in_force.settings.model.source


def test_a_stage_during_the_trial_lets_it_go_on_and_needs_no_other(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    begun(config, layer(2, MODEL, percent=PERCENT))
    for revision, stage in ((3, {"percent": 100}), (4, {"percent": 100, "halted": True})):
        assert Postponed(None) == config.apply("fleet", layer(revision, MODEL, **stage), 3.0)
    config.commit((), 4.0)
    for name, payload in config.take_postponed().items():
        assert isinstance(config.apply(name, payload, 5.0), Update)
    assert ("gemma", ("applied", 4)) == (source(config), phase(config))


def test_p04_a_later_stage_does_not_try_again_what_was_rolled_back(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    begun(config, layer(2, MODEL, percent=PERCENT, previous={}))
    config.roll_back("no", (), 3.0)
    assert isinstance(config.apply("fleet", layer(3, MODEL, percent=100, previous={}), 4.0), Update)
    assert ("rolled_back", 3) == phase(config)
    again = config_in(tmp_path)
    assert None is again.apply("fleet", layer(3, MODEL, percent=100, previous={}), 5.0)
    assert isinstance(again.apply("fleet", layer(4, BEFORE, percent=100), 5.0), TrialOrder)


def test_p04_a_restart_in_the_trial_of_a_layer_that_waited_is_a_failure(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    payload = layer(2, MODEL, percent=100, not_before="1970-01-01T00:00:10Z", previous=OLD)
    config.apply("fleet", payload, 1.0)
    assert [("fleet", payload)] == config.due(11.0, busy=False)
    order = config.apply("fleet", payload, 11.0)
    assert isinstance(order, TrialOrder)
    config.begin(order, 12.0)
    again = config_in(tmp_path)
    assert (10, ("rolled_back", 2)) == (tokens(again), phase(again))
    for name, due in again.due(60.0, busy=False):
        assert None is again.apply(name, due, 60.0)
    assert [] == again.due(61.0, busy=False)


def test_the_settings_of_before_are_tried_too_where_they_name_another_model(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    payload = layer(2, MODEL, percent=30, previous=BEFORE)
    order = begun(config, payload)
    assert ("other", True) == (order.target.model.source, order.previous)
    assert "the settings of before the roll-out are on trial" == config.report.reason
    config.commit((), 3.0)
    assert ("other", ("waiting", 2), {}) == (source(config), phase(config), config.report.in_force)
    again = config_in(tmp_path)
    assert ("other", ("waiting", 2)) == (source(again), phase(again))
    begun(again, layer(3, MODEL, percent=100, previous=BEFORE))
    again.commit((), 4.0)
    assert ("gemma", ("applied", 3)) == (source(again), phase(again))


@pytest.mark.parametrize("restart", [False, True])
def test_p04_settings_of_before_that_do_not_hold_are_no_failure_of_the_roll_out(tmp_path: Path, restart: bool) -> None:
    config = config_in(tmp_path)
    begun(config, layer(2, MODEL, percent=30, previous=BEFORE))
    if restart:
        config = config_in(tmp_path)
    else:
        config.roll_back("no", (), 3.0)
    assert ("waiting", 2) == phase(config)
    assert config.report.reason.startswith("the settings of before the roll-out did not hold: ")
    assert not isinstance(config.apply("fleet", layer(3, MODEL, percent=30, previous=BEFORE), 4.0), TrialOrder)
    assert isinstance(config.apply("fleet", layer(4, MODEL, percent=100, previous=BEFORE), 5.0), TrialOrder)


def test_p04_a_power_cut_in_the_trial_of_what_waited_under_the_same_bytes_is_a_failure(tmp_path: Path) -> None:
    payload = layer(2, MODEL, percent=100, window="02:00-04:00", previous=BEFORE)
    config = config_in(tmp_path, minute=0)
    begun(config, payload)
    config.commit((), 3.0)
    config = config_in(tmp_path, minute=130)
    begun(config, payload)
    again = config_in(tmp_path, minute=130)
    assert ("other", ("rolled_back", 2)) == (source(again), phase(again))


# ---- signed ---------------------------------------------------------------------------------------------------------


def test_p05_an_earlier_stage_cannot_replace_a_halt_where_signatures_are_required(tmp_path: Path) -> None:
    key = Key("ops")
    owner = {"trust": {"keys": {"ops": key.public}, "require_signature": True}}
    topic = TOPICS.root + "/config"

    def signed(revision: int, **rollout: Any) -> bytes:
        return key.sign(topic, json.loads(layer(revision, **rollout)))

    config = config_in(tmp_path, owner=owner)
    config.apply("fleet", signed(4, percent=0, previous=OLD), 1.0)
    config.apply("fleet", signed(5, percent=100, halted=True, previous=OLD), 2.0)
    config = config_in(tmp_path, owner=owner)
    config.apply("fleet", signed(4, percent=100, previous=OLD), 3.0)
    assert ("rejected", 4, 10) == (*phase(config), tokens(config))
    assert "revision: 4 is not above 5, which waits on this device; push a revision above 5" == config.report.reason
    config.apply("fleet", signed(6, percent=100, previous=OLD), 4.0)
    assert ("applied", 6, 20) == (*phase(config), tokens(config))
    config.apply("fleet", signed(5, percent=100, halted=True, previous=OLD), 5.0)
    assert ("rejected", 5, 20) == (*phase(config), tokens(config))


def test_a_layer_that_expires_while_it_waits_is_rejected_and_waits_no_longer(tmp_path: Path) -> None:
    document = json.loads(layer(2, percent=100, not_before="1970-01-01T00:00:10Z"))
    payload = json.dumps({**document, "expires_at": "1970-01-01T00:00:05Z"}).encode()
    config = config_in(tmp_path)
    config.apply("fleet", payload, 1.0)
    assert [("fleet", payload)] == config.due(11.0, busy=False)
    config.apply("fleet", payload, 11.0)
    assert (("rejected", 2), []) == (phase(config), config.due(12.0, busy=False))


def test_the_layer_has_its_roll_out() -> None:
    parsed = parse_layer(layer(1, percent=2.5, not_before="1970-01-01T00:00:10Z", window="23:00-01:00", previous=OLD))
    assert Rollout("r1", 2.5, "s", 10.0, (1380, 60), False, OLD) == parsed.rollout


def test_a_waiting_layer_of_a_group_that_the_owner_left_is_forgotten(tmp_path: Path) -> None:
    kitchen = Topics("home", "pi", ("kitchen",))
    config = DesiredConfig({}, kitchen, tmp_path / "layers.json", CATALOG, lambda _now: 0)
    config.load(50.0)
    config.apply("group:kitchen", layer(1, percent=100, not_before="2100-01-01T00:00:00Z"), 60.0)
    assert ("waiting", 1) == phase(config)
    left = config_in(tmp_path)
    assert [] == list(left.due(5e9, busy=False))
    assert left.apply("device", layer(1), 5e9) is not None


def test_the_models_of_a_waiting_layer_are_not_removed(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    waits = layer(1, {"model": {"source": "gemma"}}, percent=100, not_before="2100-01-01T00:00:00Z")
    config.apply("device", waits, 60.0)
    assert ("waiting", 1) == phase(config)
    assert "gemma" in named_models({}, tmp_path, TOPICS)
