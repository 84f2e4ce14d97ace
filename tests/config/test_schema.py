"""The table of settings: defaults, ranges, owners, merging, showing."""

from __future__ import annotations

from typing import Any

import pytest

from edged.config import keys
from edged.config import schema as s
from edged.core.errors import BadValue

KEY = "A" * 43 + "="
DIGEST = "sha256:" + "a" * 64


def file_refusal(document: object) -> str:
    """What `check_file` or `build` says about a document that it refuses."""
    with pytest.raises(BadValue) as caught:
        s.build(keys.check_file(document))
    return str(caught.value)


def test_the_defaults_are_those_of_the_contract() -> None:
    settings = s.build({})
    assert s.Identity(fleet="home", device=None, groups=()) == settings.identity
    assert "mqtt://127.0.0.1:1883" == settings.mqtt.url
    assert "auto" == settings.mqtt.version
    assert "/var/lib/edged" == settings.state_dir
    assert s.Model("smollm2-135m-instruct", None, "auto", "auto", 2048, None, None) == settings.model
    assert 3 == settings.models.keep
    assert 256 == settings.generation.max_tokens
    assert 0.7 == settings.generation.temperature
    assert s.Limits(queue=64, prompt_bytes=64_000, max_tokens=1024, remember=86400) == settings.limits
    assert 10 == settings.telemetry.interval
    assert s.Log("info", "auto") == settings.log


def test_the_contracts_example_file_is_taken() -> None:
    document = {
        "identity": {"fleet": "home", "device": "pi-1", "groups": ["kitchen"]},
        "mqtt": {
            "url": "mqtts://broker.local",
            "version": "auto",
            "username": "pi-1",
            "password_file": "/p",
            "ca": "/ca",
            "cert": "/c",
            "key": "/k",
            "reply_prefixes": [],
        },
        "state_dir": "/var/lib/edged",
        "model": {
            "source": "smollm2-135m-instruct",
            "digest": DIGEST,
            "bits": "auto",
            "backend": "auto",
            "context": 2048,
            "threads": "auto",
            "keep_alive": "forever",
        },
        "generation": {"max_tokens": 256, "temperature": 0.7, "system": "Be brief."},
        "limits": {"queue": 64, "prompt_bytes": "64KB", "max_tokens": 1024, "remember": "24h"},
        "telemetry": {"interval": "10s"},
        "log": {"level": "info", "format": "auto"},
        "golden": [],
        "models": {"keep": 3},
    }
    settings = s.build(keys.check_file(document))
    assert "Be brief." == settings.generation.system
    assert "pi-1" == settings.mqtt.username
    assert DIGEST == settings.model.digest


@pytest.mark.parametrize(
    ("section", "key", "good", "bad"),
    [
        ("identity", "fleet", ["home", "a", "0-9", "a" * 63], ["", "Home", "-a", "a" * 64, "a/b", "a_b", 5, "a\n"]),
        ("identity", "device", ["pi-1"], ["pi 1", "ä", None]),
        ("identity", "groups", [[], ["a", "b"]], ["a", ["A"], ["a", "a"], [1]]),
        ("identity", "pools", [[], ["a", "b"]], ["a", ["A"], ["a", "a"], [1]]),
        ("commands", "allow", [[], ["ops", "A_1-z"]], ["ops", ["a b"], ["a", "a"], [1], ["x" * 65]]),
        (
            "mqtt",
            "url",
            ["mqtt://h", "mqtt://h:1", "mqtt://h:65535/", "mqtts://10.0.0.1:8883", "mqtt://[::1]:1883"],
            [
                "h:1883",
                "http://h",
                "mqtt://",
                "mqtt://h/path",
                "mqtt://u:p@h",
                "mqtt://h:99999",
                "mqtt://h:0",
                "mqtt://h:abc",
                "mqtt://h h",
                "mqtt://h:",
                1883,
            ],
        ),
        ("mqtt", "version", ["auto", "5", 5, "3.1.1"], ["4", "3.1", 3.1, True]),
        (
            "mqtt",
            "reply_prefixes",
            [[], ["ha/", "a/b/"]],
            ["ha/", ["ha"], ["edged/v1/x/"], ["edged/"], ["edged/v1/"], ["$SYS/"], ["a/+/"], ["a/#/"], [""]],
        ),
        ("model", "source", ["smollm2-135m-instruct", "/models/x.gguf", "hf:a/b@main"], ["", 5]),
        ("model", "digest", [DIGEST], ["sha256:abc", DIGEST.upper(), "md5:" + "a" * 64]),
        ("model", "bits", ["auto", "4", 4, 8], ["16", 3, True]),
        ("model", "backend", ["auto", "native", "torch"], ["onnx"]),
        ("model", "context", [16, 8192], [0, 15, -1, 2.5, "2048", 2_000_000]),
        ("model", "threads", ["auto", 1, 8], [0, -1, "two", 1.5, True]),
        ("model", "keep_alive", ["forever", "0s", "10s", "5m", "365d"], ["never", "10", 0, 60, "366d", "-1s", None]),
        ("models", "keep", [1, 3, 1000], [0, -1, 1001, "3", True]),
        ("model", "template", ["auto", "chatml", "/models/t.jinja", "t.jinja"], ["chatlm", "", 5]),
        ("generation", "max_tokens", [1, 1024], [0, -1, 1.5, True, "5", 2**60]),
        ("generation", "temperature", [0, 0.7, 5], [-0.1, 5.1, "0.7", False]),
        ("generation", "top_k", [0, 40], [-1, 0.5]),
        ("generation", "top_p", [0, 1], [-0.1, 1.1]),
        ("generation", "min_p", [0, 1], [1.01]),
        ("generation", "repetition_penalty", [0.5, 2], [0.4, 2.1]),
        ("generation", "seed", [0, 2**53 - 1], [-1, 2**53, 1.0]),
        ("generation", "stop", [[], ["a"] * 8, ["a" * 300], ["\0"]], ["a", ["a"] * 9, [""], [1]]),
        ("generation", "system", ["Be kind."], [5, ""]),
        ("limits", "queue", [1, 64], [0, -1, 1.5, True]),
        ("limits", "prompt_bytes", ["64KB", "1MiB", "64B"], [64000, "1B", "1GB"]),
        ("limits", "max_tokens", [1], [0]),
        ("limits", "raw", [True, False], [0, "true"]),
        ("limits", "remember", ["1s", "24h", "365d"], ["0s", 86400, "366d"]),
        ("telemetry", "interval", ["100ms", "10s", "1d"], ["0s", "50ms", 10, "2d"]),
        ("trial", "probation", ["100ms", "60s", "1d"], ["99ms", "0s", 60, "25h"]),
        ("log", "level", ["debug", "info", "warning", "error"], ["trace", "INFO"]),
        ("log", "format", ["auto", "console", "json"], ["xml"]),
        (
            "trust",
            "keys",
            [{}, {"ops-2026": KEY}],
            [{"ops": "x"}, {"a b": KEY}, {"a": KEY, "b": KEY}, [KEY], {"ops": KEY[:-1]}],
        ),
        ("trust", "require_signature", [False], [True, 0, 0.0, "false"]),
        (
            "integrations",
            "home_assistant",
            [{}, {"prefix": "homeassistant"}, {"prefix": "a/b"}],
            [{"prefix": bad} for bad in ("edged", "edged/v1", "", "a//b", "/a", "a/", "+", "a/#", 5, None)],
        ),
    ],
)
def test_every_key_takes_its_range_and_refuses_the_rest_by_name(
    section: str, key: str, good: list[Any], bad: list[Any]
) -> None:
    for value in good:
        s.build(keys.check_file({section: {key: value}}))
    for value in bad:
        assert file_refusal({section: {key: value}}).startswith(f"{section}.{key}"), value


def test_signatures_can_only_be_required_where_there_is_a_key() -> None:
    assert file_refusal({"trust": {"require_signature": True}}).startswith("trust.require_signature: needs a key")
    settings = s.build(keys.check_file({"trust": {"keys": {"ops": KEY}, "require_signature": True}}))
    assert s.Trust({"ops": KEY}, True) == settings.trust


def test_only_the_owner_allows_raw_prompts() -> None:
    with pytest.raises(BadValue, match=r"limits\.raw: is the owner's"):
        keys.check_layer({"limits": {"raw": True}})


def test_it_is_known_which_sampling_keys_nobody_set() -> None:
    made = s.build(keys.check_file({"generation": {"temperature": 0.7}})).generation
    assert ("top_k", "top_p", "min_p", "repetition_penalty") == made.unset
    assert ("top_k", "min_p", "repetition_penalty") == made.unset_by({"top_p": 1.0, "seed": 1})
    assert "unset" not in s.show(s.build({}))["generation"]


SHARES = {"queue": (1, 100_000), "running": (1, 1024), "priority": (0, 9), "prompts_per_minute": (1, 1_000_000)}


@pytest.mark.parametrize(("key", "low", "high"), [(key, *bounds) for key, bounds in SHARES.items()])
def test_what_one_requester_may_have(key: str, low: int, high: int) -> None:
    """For all, and by name; a name takes what it does not set itself from all."""
    for value in (low, high):
        share = {key: value, "by_name": {"hub": {"running": 7}}}
        made = s.build(keys.check_file({"limits": {"per_requester": share}})).limits.per_requester
        assert value == getattr(made.of("anyone"), key)
        assert (7 if key == "running" else value) == getattr(made.of("hub"), key)
        named = s.build(keys.check_file({"limits": {"per_requester": {"by_name": {"hub": {key: value}}}}}))
        assert value == getattr(named.limits.per_requester.of("hub"), key)
    for value in (low - 1, high + 1, "many"):
        assert file_refusal({"limits": {"per_requester": {key: value}}}).startswith(f"limits.per_requester.{key}")
        refused = file_refusal({"limits": {"per_requester": {"by_name": {"hub": {key: value}}}}})
        assert refused.startswith(f"limits.per_requester.by_name.hub.{key}")


@pytest.mark.parametrize("names", [{"a b": {}}, {"hub": {"speed": 1}}, [], {"hub": 3}, {"": {}}])
def test_names_of_requesters_and_their_keys_are_checked(names: object) -> None:
    assert file_refusal({"limits": {"per_requester": {"by_name": names}}}).startswith("limits.per_requester.by_name")


def test_what_one_requester_may_have_is_shown_and_merged() -> None:
    base = keys.check_file({"limits": {"per_requester": {"queue": 3, "by_name": {"a": {"queue": 5}}}}})
    layer = keys.check_layer({"limits": {"per_requester": {"by_name": {"a": {"running": 1}}}}})
    made = s.build(s.merge(base, layer))
    assert (5, 1) == (made.limits.per_requester.of("a").queue, made.limits.per_requester.of("a").running)
    assert {"queue": 5, "running": 1} == s.show(made)["limits"]["per_requester"]["by_name"]["a"]


def test_every_settable_key_is_in_the_table_above() -> None:
    """A key that is added later needs its range tested too."""
    tested = test_every_key_takes_its_range_and_refuses_the_rest_by_name.pytestmark[0].args[1]  # type: ignore[attr-defined]
    paths = ({f"{section}.{key}" for section, key, _, _ in tested} - {"integrations.home_assistant"}) | {
        "integrations.home_assistant.prefix",
        # paths of files: any text
        "state_dir",
        "golden",
        *(f"limits.per_requester.{key}" for key in (*SHARES, "by_name")),
        "mqtt.username",
        "mqtt.password_file",
        "mqtt.ca",
        "mqtt.cert",
        "mqtt.key",
    }
    assert paths == set(keys.known_keys())


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"generaton": {}}, 'generaton: unknown key (did you mean "generation"?)'),
        ({"generation": {"temprature": 1}}, 'generation.temprature: unknown key (did you mean "temperature"?)'),
        ({"generation": None}, "generation: must not be null"),
        ({"generation": []}, "generation: must be a mapping"),
        ({"generation": {"seed": None}}, "generation.seed: must not be null"),
        ([], "must be a mapping"),
        ({"golden": {"prompt": "x"}}, "golden: must be a list"),
        ({"golden": [{"prompt": "x", "expects": "y"}]}, 'golden[0].expects: unknown key (did you mean "expect"?)'),
        ({"trial": {"probation": "0s"}}, "trial.probation: must be between 100ms and 1d"),
        ({"mqtt": {"cert": "/c", "url": "mqtts://h"}}, "mqtt.cert: needs mqtt.key beside it"),
        ({"mqtt": {"ca": "/ca"}}, "mqtt.ca: certificates need a URL that starts with mqtts://"),
    ],
)
def test_a_bad_file_is_refused_with_the_key_and_a_sentence(document: object, says: str) -> None:
    assert file_refusal(document).startswith(says)


@pytest.mark.parametrize("key", ["identity", "mqtt", "trust", "commands", "state_dir"])
def test_p04_a_layer_may_not_touch_what_is_the_owners(key: str) -> None:
    with pytest.raises(BadValue, match=f"{key}: is the owner's: it can only be set in the device's own file"):
        keys.check_layer({key: {}})


def test_a_layer_takes_the_fleets_keys() -> None:
    assert {"generation": {"max_tokens": 64}} == keys.check_layer({"generation": {"max_tokens": 64}})


def test_mappings_merge_by_key_while_lists_and_scalars_replace() -> None:
    base = {"generation": {"max_tokens": 1, "stop": ("a", "b")}, "state_dir": "/a"}
    over = {"generation": {"stop": ("c",), "seed": 3}}
    assert {"generation": {"max_tokens": 1, "stop": ("c",), "seed": 3}, "state_dir": "/a"} == s.merge(base, over)
    assert {"generation": {"max_tokens": 1, "stop": ("a", "b")}, "state_dir": "/a"} == base


def test_a_prompts_own_values_are_laid_over_the_defaults_within_the_limit() -> None:
    generation, limits = s.Generation(max_tokens=500, temperature=0.2), s.Limits(max_tokens=100)
    assert 100 == generation.sampling({}, limits).max_tokens
    assert 7 == generation.sampling({"max_tokens": 7}, limits).max_tokens
    assert 0 == generation.sampling({"temperature": 0.0}, limits).temperature
    assert 0.2 == generation.sampling({}, limits).temperature


def test_shown_settings_are_a_file_that_means_the_same() -> None:
    changed = {
        "identity": {"device": "pi", "groups": ["a", "b"]},
        "generation": {"stop": ["x"], "seed": 5, "system": "s"},
        "limits": {"prompt_bytes": "1MiB", "remember": "90s"},
        "telemetry": {"interval": "100ms"},
        "model": {"threads": 2},
        "golden": [
            {"prompt": "p", "system": "s", "expect": "a", "within": "1500ms", "max_tokens": 5},
            {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}], "max_tokens": 128},
            {"prompt": "q", "expect": {"regex": "a+"}, "min_tokens_per_second": 1.5, "max_tokens": 128},
            {"prompt": "r", "expect": {"schema": {"type": "integer"}}, "max_tokens": 128},
            {"prompt": "t", "expect": ["a", "b"], "max_tokens": 128},
        ],
        "trial": {"probation": "5m"},
    }
    for document in ({}, changed):
        settings = s.build(keys.check_file(document))
        shown = s.show(settings)
        listed = {
            k: {a: list(b) if isinstance(b, tuple) else b for a, b in v.items()} if isinstance(v, dict) else v
            for k, v in shown.items()
        }
        assert settings == s.build(keys.check_file(listed))
