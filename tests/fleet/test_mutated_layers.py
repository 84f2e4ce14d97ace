"""Layers mutated from good ones: none changes what runs, each is reported. Byte by byte, and in their structure."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from edged.core.errors import BadValue
from edged.fleet import layers
from edged.fleet.desired import DesiredConfig, Update
from edged.wire import strict_json
from edged.wire.topics import Topics
from tests.fleet.signing import Key

MUTATED = 500
OPS = Key("ops", 1)
TOPIC = "edged/v1/home/device/pi/config"
CATALOG = {"gemma": "sha256:" + "a" * 64}
IN_FORCE = {"revision": 5, "settings": {"generation": {"max_tokens": 7}}}
GOOD: list[dict[str, Any]] = [
    {"revision": 6, "settings": {"generation": {"max_tokens": 64, "temperature": 0.5, "stop": ["x"], "system": "s"}}},
    {"revision": 6, "settings": {"model": {"source": "gemma", "context": 1024, "threads": "auto"}}},
    {"revision": 6, "settings": {"model": {"source": "https://host/m.gguf", "digest": "sha256:" + "b" * 64}}},
    {"revision": 6, "settings": {"limits": {"queue": 5, "prompt_bytes": "64KB", "per_requester": {"queue": 2}}}},
    {"revision": 6, "settings": {"golden": [{"prompt": "p", "expect": {"regex": "a+"}, "within": "30s"}]}},
    {"revision": 6, "settings": {"telemetry": {"interval": "5s"}}, "expires_at": "2030-01-01T00:00:00Z"},
]
JUNK: list[Any] = [None, True, -1, 2**53, 1e308, "", "\0", "x" * 70_000, [], {}, [None], {"x": 1}, "gone", 10**300]


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, one in inner for place in places(one, (*at, key)))][0 if at else 1 :]


def restructured(draw: random.Random, good: dict[str, Any]) -> bytes:
    """One value replaced by junk, a key misspelled, or an unknown one added."""
    document = copy.deepcopy(good)
    place = draw.choice(places(document))
    inside: Any = document
    for key in place[:-1]:
        inside = inside[key]
    match draw.randrange(3):
        case 0:
            inside[place[-1]] = draw.choice(JUNK)
        case 1 if isinstance(inside, dict):
            inside[f"{place[-1]}{draw.choice('s _x.')}"] = inside.pop(place[-1])
        case _:
            document["settings"][draw.choice(("mqtt", "identity", "trust", "state_dir", "extra"))] = draw.choice(JUNK)
    return json.dumps(document).encode()


def damaged(draw: random.Random, payload: bytes) -> bytes:
    """Bits flipped, cut short, a part twice, or another byte inside."""
    at, raw = draw.randrange(1, len(payload)), bytearray(payload)
    match draw.randrange(4):
        case 0:
            raw[at] ^= 1 << draw.randrange(8)
        case 1:
            del raw[at:]
        case 2:
            raw[at:at] = raw[max(0, at - draw.randrange(1, 20)) : at]
        case _:
            raw[at] = draw.randrange(256)
    return bytes(raw)


def config_in(folder: Path, *, signed: bool) -> DesiredConfig:
    folder.mkdir(exist_ok=True)
    trust = {"keys": {"ops": OPS.public}, "require_signature": True} if signed else {}
    owner = {"identity": {"fleet": "home", "device": "pi"}, "trust": trust}
    config = DesiredConfig(owner, Topics("home", "pi"), folder / "layers.json", CATALOG)
    config.load()
    first = OPS.sign(TOPIC, IN_FORCE) if signed else json.dumps(IN_FORCE).encode()
    assert isinstance(update := config.apply("device", first, 1.0), Update)
    assert "applied" == update.report.phase
    return config


def says_the_same(payload: bytes, good: dict[str, Any]) -> bool:
    try:
        return bool(strict_json.loads(payload) == good)
    except BadValue:
        return False


@pytest.mark.parametrize("seed", [1])
def test_p05_no_mutated_signed_layer_changes_what_runs_and_each_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr("os.fsync", lambda _handle: None)
    draw, config, reported = random.Random(seed), config_in(tmp_path, signed=True), 0
    while reported < MUTATED:
        good = draw.choice(GOOD)
        signed = OPS.sign(TOPIC, good)
        restructure = draw.random() < 0.3
        payload = restructured(draw, json.loads(signed)) if restructure else damaged(draw, signed)
        if says_the_same(payload, json.loads(signed)):
            continue
        before = config.in_force, config.trust
        update = config.apply("device", payload, 2.0)
        assert isinstance(update, Update), payload
        assert ("rejected", {"device": 5}) == (update.report.phase, update.report.in_force), payload
        assert 0 < len(update.report.reason) < 2000
        assert before == (config.in_force, config.trust)
        reported += 1
    assert config_in(tmp_path / "other", signed=True).in_force.settings == config.in_force.settings


@pytest.mark.parametrize("seed", [1])
def test_p04_no_invalid_layer_changes_what_runs_and_each_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Without signatures a mutated layer may be a valid other one (`max_tokens: 65`): those do not count here."""
    monkeypatch.setattr("os.fsync", lambda _handle: None)
    draw, config, reported = random.Random(seed), config_in(tmp_path, signed=False), 0
    for _ in range(20 * MUTATED):
        good = draw.choice(GOOD)
        payload = damaged(draw, json.dumps(good).encode()) if draw.random() < 0.5 else restructured(draw, good)
        before = config.in_force
        update = pushed_if_invalid(config, payload)
        if update is None:
            continue
        assert ("rejected", {"device": 5}) == (update.report.phase, update.report.in_force), payload
        assert 0 < len(update.report.reason) < 2000
        assert before == config.in_force
        reported += 1
        if reported == MUTATED:
            break
    assert MUTATED == reported


def pushed_if_invalid(config: DesiredConfig, payload: bytes) -> Update | None:
    """What became of a push; None where the layer is valid (it is not applied, so that the next begins alike)."""
    try:
        layers.parse(CATALOG, payload)
    except BadValue:
        update = config.apply("device", payload, 2.0)
        assert isinstance(update, Update), payload
        return update
    return None
