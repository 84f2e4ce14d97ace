"""The decision about a push is pure and does not depend on the order in which layers arrive."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.config.schema import build
from edged.fleet import layers as fleet
from edged.fleet.layer_store import NOTHING_PUSHED
from edged.fleet.layers import Layers
from edged.wire.layers import Layer, Reported

ORDER = ("fleet", "group:a", "group:b", "device")
OWN: dict[str, Any] = {"generation": {"max_tokens": 100, "stop": ("own",)}}
CATALOG = ("smollm2-135m-instruct", "gemma-3-270m")

Push = tuple[str, bytes]


def layer(revision: int, **generation: Any) -> bytes:
    return json.dumps({"revision": revision, "settings": {"generation": generation} if generation else {}}).encode()


def after(pushes: list[Push]) -> tuple[Layers, Reported]:
    """The layers and the report after these pushes, one by one."""
    kept: Layers = {}
    reported = NOTHING_PUSHED
    for name, payload in pushes:
        decision = fleet.decide(CATALOG, kept, reported, name, payload)
        kept, reported = decision.layers, decision.reported
    return kept, reported


def test_before_any_push_the_owners_file_is_in_force() -> None:
    assert fleet.effective(OWN, {}, ORDER) == build(OWN)
    assert (NOTHING_PUSHED.layer, NOTHING_PUSHED.revision, NOTHING_PUSHED.in_force) == (None, None, {})


def test_device_wins_over_group_over_fleet_and_groups_stand_in_the_owners_order() -> None:
    kept, reported = after(
        [
            ("device", layer(4, max_tokens=4)),
            ("group:b", layer(3, max_tokens=3, seed=3, top_k=3)),
            ("group:a", layer(2, max_tokens=2, seed=2, top_k=2, temperature=2)),
            ("fleet", layer(1, max_tokens=1, seed=1, top_k=1, temperature=1, top_p=0.1)),
        ]
    )
    generation = fleet.effective(OWN, kept, ORDER).generation
    assert (generation.max_tokens, generation.seed, generation.top_k) == (4, 3, 3)
    assert (generation.temperature, generation.top_p) == (2, 0.1)
    assert reported == Reported(
        "applied", "fleet", 1, "the layer is in force", {"device": 4, "group:b": 3, "group:a": 2, "fleet": 1}
    )


def test_a_list_in_a_layer_replaces_the_one_below_it() -> None:
    kept, _ = after([("fleet", layer(1, stop=["x"]))])
    assert fleet.effective(OWN, kept, ORDER).generation.stop == ("x",)


def test_p04_a_rejected_layer_changes_nothing_and_says_what_still_runs() -> None:
    kept, reported = after([("device", layer(1, max_tokens=7)), ("device", layer(2, max_tokens=0))])
    assert fleet.effective(OWN, kept, ORDER).generation.max_tokens == 7
    assert (reported.phase, reported.layer, reported.revision) == ("rejected", "device", 2)
    assert reported.reason.startswith("generation.max_tokens: must be between 1")
    assert reported.in_force == {"device": 1}


def test_what_cannot_be_parsed_is_rejected_without_a_revision() -> None:
    _, reported = after([("fleet", b"{nonsense")])
    assert (reported.phase, reported.layer, reported.revision) == ("rejected", "fleet", None)


@pytest.mark.parametrize("repeat", [layer(1, seed=1), b' {"settings": {"generation": {"seed": 1}}, "revision": 1}'])
def test_the_same_revision_and_content_again_is_nothing_to_do(repeat: bytes) -> None:
    kept, reported = after([("fleet", layer(1, seed=1))])
    decision = fleet.decide(CATALOG, kept, reported, "fleet", repeat)
    assert not decision.changed
    assert (decision.layers, decision.reported) == (kept, reported)


def test_the_same_revision_with_other_content_applies() -> None:
    kept, reported = after([("fleet", layer(1, seed=1)), ("fleet", layer(1, seed=2))])
    assert fleet.effective(OWN, kept, ORDER).generation.seed == 2
    assert reported.phase == "applied"


def test_an_older_revision_applies_too_since_no_signed_floor_forbids_it() -> None:
    kept, _ = after([("fleet", layer(9, seed=9)), ("fleet", layer(3, seed=3))])
    assert fleet.effective(OWN, kept, ORDER).generation.seed == 3


def test_the_good_layer_again_clears_the_report_of_its_rejection() -> None:
    good = layer(1, seed=1)
    _, reported = after([("fleet", good), ("fleet", b"{"), ("fleet", good)])
    assert (reported.phase, reported.revision, reported.in_force) == ("applied", 1, {"fleet": 1})


def test_a_repeat_of_another_layer_does_not_hide_a_rejection() -> None:
    good = layer(1, seed=1)
    _, reported = after([("fleet", good), ("device", b"{"), ("fleet", good)])
    assert (reported.phase, reported.layer) == ("rejected", "device")


def test_an_empty_payload_removes_a_layer_and_restores_what_is_below() -> None:
    kept, reported = after([("fleet", layer(1, max_tokens=1)), ("device", layer(2, max_tokens=2)), ("device", b"")])
    assert fleet.effective(OWN, kept, ORDER).generation.max_tokens == 1
    assert reported == Reported("applied", "device", None, "the layer was removed", {"fleet": 1})
    kept, _ = after([("fleet", layer(1, max_tokens=1)), ("fleet", b"")])
    assert fleet.effective(OWN, kept, ORDER) == build(OWN)


DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"source": "gemma-3-270m", "context": 4096, "threads": 2, "bits": "4"}, None),
        ({"source": DIGEST}, None),
        ({"source": "hf:owner/name/file.gguf", "digest": DIGEST}, None),
        ({"source": "https://host:8443/m.gguf?x=1", "digest": DIGEST}, None),
        ({"source": "http://127.0.0.1:8080/m.gguf", "digest": DIGEST}, None),
        ({"context": 4096}, None),
        ({"source": "hf:owner/name"}, "model.digest: is required beside 'hf:owner/name'"),
        ({"source": "gemma-3"}, "model.source: 'gemma-3' is not in this device's catalog (did you mean"),
        ({"source": "sha256:abc"}, "model.source: must be sha256: and 64 hex digits"),
        ({"source": "/etc/shadow"}, "model.source: '/etc/shadow' can only be named in the device's own file"),
        ({"template": "/etc/shadow"}, "model.template: a file can only be named in the device's own file"),
        ({"source": "a.gguf"}, "model.source: 'a.gguf' can only be named in the device's own file"),
        ({"source": "https://x/y.gguf"}, "model.digest: is required beside 'https://x/y.gguf'"),
        ({"source": "http://x/y.gguf", "digest": DIGEST}, "model.source: 'http://x/y.gguf' is not encrypted"),
        ({"source": "https://me:pw@x/y.gguf", "digest": DIGEST}, "model.source: must not have a user name or password"),
        ({"source": "https:///y.gguf", "digest": DIGEST}, "model.source: must be https://HOST/FILE"),
        ({"source": "https://x:99999/y", "digest": DIGEST}, "model.source: must be https://HOST/FILE"),
        ({"source": "https://[x/y", "digest": DIGEST}, "model.source: must be https://HOST/FILE"),
        ({"source": "https://x/y z", "digest": DIGEST}, "model.source: must be https://HOST/FILE"),
    ],
)
def test_p04_a_layer_names_the_catalog_a_digest_or_the_hub_with_a_digest(
    model: dict[str, Any], said: str | None
) -> None:
    payload = json.dumps({"revision": 5, "settings": {"model": model}}).encode()
    kept, reported = after([("device", payload)])
    assert ("rejected" if said else "applied", 5) == (reported.phase, reported.revision)
    assert reported.reason.startswith(said or "")
    assert bool(said) == (kept == {})


def test_another_source_does_not_keep_the_digest_of_the_one_below() -> None:
    own = {"model": {"source": "/m.gguf", "digest": DIGEST, "context": 64}}
    kept, _ = after([("device", b'{"revision":1,"settings":{"model":{"source":"gemma-3-270m"}}}')])
    model = fleet.effective(own, kept, ORDER).model
    assert ("gemma-3-270m", None, 64) == (model.source, model.digest, model.context)


PAYLOADS = st.sampled_from(
    [
        b"",
        b"{",
        layer(1),
        layer(1, max_tokens=5),
        layer(2, max_tokens=6, stop=["x"]),
        layer(3, seed=7),
        layer(4, temperature=9),
        layer(5, temperature=0.5, system="s"),
        b'{"revision":6,"settings":{"model":{"source":"other"}}}',
        b'{"revision":7,"settings":{"limits":{"queue":3},"telemetry":{"interval":"1s"}}}',
    ]
)


@given(st.dictionaries(st.sampled_from(ORDER), PAYLOADS).flatmap(lambda d: st.permutations(list(d.items()))))
def test_layers_in_any_order_end_in_the_same_state(pushes: list[Push]) -> None:
    kept, reported = after(pushes)
    expected, expected_report = after(sorted(pushes))
    assert dict(kept) == dict(expected)
    assert reported.in_force == expected_report.in_force
    assert fleet.effective(OWN, kept, ORDER) == fleet.effective(OWN, expected, ORDER)


@given(st.dictionaries(st.sampled_from(ORDER), st.lists(PAYLOADS, max_size=4)), st.randoms())
def test_repeats_and_interleavings_end_in_the_same_state(queues: dict[str, list[bytes]], draw: random.Random) -> None:
    """Each topic keeps its order (MQTT does); everything else may be late, repeated or mixed."""
    tidy = [(name, payload) for name in ORDER for payload in queues.get(name, [])]
    waiting = {name: list(payloads) for name, payloads in queues.items() if payloads}
    mixed: list[Push] = []
    while waiting:
        name = draw.choice(sorted(waiting))
        payload = waiting[name].pop(0)
        mixed += [(name, payload)] * draw.choice([1, 1, 2])
        waiting = {n: p for n, p in waiting.items() if p}
    kept, reported = after(mixed)
    expected, expected_report = after(tidy)
    assert dict(kept) == dict(expected)
    assert reported.in_force == expected_report.in_force
    assert fleet.effective(OWN, kept, ORDER) == fleet.effective(OWN, expected, ORDER)


def test_kept_layers_that_this_file_or_version_does_not_accept_are_dropped_at_start() -> None:
    kept = {
        "fleet": layer(1, seed=1),
        "group:gone": layer(2, seed=2),
        "group:a": b'{"revision":3,"settings":{"model":{"source":"other"}}}',
        "device": b"{torn",
    }
    valid = fleet.parse_stored(CATALOG, kept, ORDER)
    assert {"fleet": layer(1, seed=1)} == {name: pushed.payload for name, pushed in valid.items()}


def test_a_layer_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often its settings are merged and its revision is reported."""
    parsed: list[bytes] = []
    parse = fleet.parse_layer

    def counted(payload: bytes) -> Layer:
        parsed.append(payload)
        return parse(payload)

    monkeypatch.setattr(fleet, "parse_layer", counted)
    pushes = [("fleet", layer(1, seed=1)), ("device", layer(2, seed=2)), ("fleet", layer(3, seed=3))]
    kept, _ = after(pushes)
    fleet.effective(OWN, kept, ORDER)
    fleet.revisions(kept)
    assert [payload for _, payload in pushes] == parsed
