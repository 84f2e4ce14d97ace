"""`EDGED_…` variables: each sets one key, and an unknown or bad one is refused by its name."""

from __future__ import annotations

import pytest

from edged.config.environment import from_environment
from edged.core.errors import ConfigError


def variable_refusal(name: str, value: str) -> str:
    """What is said about a variable."""
    with pytest.raises(ConfigError) as caught:
        from_environment({name: value})
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "written", "section", "key", "value"),
    [
        ("EDGED_MQTT_URL", "mqtt://h:1", "mqtt", "url", "mqtt://h:1"),
        ("EDGED_GENERATION_SYSTEM", "5", "generation", "system", "5"),
        ("EDGED_GENERATION_SYSTEM", "a: b", "generation", "system", "a: b"),
        ("EDGED_GENERATION_TEMPERATURE", "0", "generation", "temperature", 0.0),
        ("EDGED_GENERATION_STOP", '["a", "b"]', "generation", "stop", ("a", "b")),
        ("EDGED_GENERATION_SYSTEM", "see *a", "generation", "system", "see *a"),
        ("EDGED_IDENTITY_GROUPS", "[kitchen]", "identity", "groups", ("kitchen",)),
        ("EDGED_LIMITS_PROMPT_BYTES", "1MB", "limits", "prompt_bytes", 1_000_000),
        ("EDGED_TELEMETRY_INTERVAL", "2s", "telemetry", "interval", 2.0),
        ("EDGED_MODEL_THREADS", "auto", "model", "threads", None),
        ("EDGED_MODEL_BITS", "8", "model", "bits", "8"),
        ("EDGED_TRUST_REQUIRE_SIGNATURE", "true", "trust", "require_signature", True),
        ("EDGED_TRUST_KEYS", "{ops: " + "A" * 43 + "=}", "trust", "keys", {"ops": "A" * 43 + "="}),
    ],
)
def test_a_variable_is_read_as_its_key_wants_it(name: str, written: str, section: str, key: str, value: object) -> None:
    assert {section: {key: value}} == from_environment({name: written})


def test_state_dir_has_a_variable_and_other_variables_are_left_alone() -> None:
    assert {"state_dir": "/x"} == from_environment({"EDGED_STATE_DIR": "/x", "PATH": "/bin"})


@pytest.mark.parametrize(
    ("name", "written", "says"),
    [
        ("EDGED_MQTT_URI", "x", 'EDGED_MQTT_URI: unknown variable (did you mean "EDGED_MQTT_URL"?)'),
        ("EDGED_", "x", "EDGED_: unknown variable"),
        ("EDGED_LIMITS_QUEUE", "many", "EDGED_LIMITS_QUEUE: must be a whole number, not 'many'"),
        ("EDGED_LIMITS_QUEUE", "", "EDGED_LIMITS_QUEUE: must be a whole number"),
        ("EDGED_LIMITS_QUEUE", "[1", "EDGED_LIMITS_QUEUE: must be a whole number"),
        ("EDGED_LIMITS_QUEUE", "2024-99-99", "EDGED_LIMITS_QUEUE: must be a whole number"),
        ("EDGED_LIMITS_QUEUE", "[" * 600, "EDGED_LIMITS_QUEUE: must be a whole number"),
        ("EDGED_LIMITS_QUEUE", "!!bool perhaps", "EDGED_LIMITS_QUEUE: YAML tags are not allowed"),
        ("EDGED_LIMITS_QUEUE", "!!int '5'", "EDGED_LIMITS_QUEUE: YAML tags are not allowed"),
        ("EDGED_GENERATION_STOP", "[&a x, *a]", "EDGED_GENERATION_STOP: YAML anchors and aliases are not allowed"),
        ("EDGED_IDENTITY_GROUPS", "&a [x]", "EDGED_IDENTITY_GROUPS: YAML anchors and aliases are not allowed"),
        ("EDGED_LIMITS_QUEUE", "9" * 5000, "EDGED_LIMITS_QUEUE: must be "),
        ("EDGED_TELEMETRY_INTERVAL", "10", "EDGED_TELEMETRY_INTERVAL: must be a duration"),
        ("EDGED_MODEL_SOURCE", "", "EDGED_MODEL_SOURCE: must have 1 to 4096 characters"),
        ("EDGED_MODEL_SOURCE", "\udcff", "EDGED_MODEL_SOURCE: must be text"),
        ("EDGED_TRUST_KEYS", "{ops: x}", "EDGED_TRUST_KEYS: must be an Ed25519 public key"),
        ("EDGED_TRUST_REQUIRE_SIGNATURE", "yes please", "EDGED_TRUST_REQUIRE_SIGNATURE: must be true or false"),
        ("EDGED_TRUST_REQUIRE_SIGNATURE", "0", "EDGED_TRUST_REQUIRE_SIGNATURE: must be true or false, not 0"),
    ],
)
def test_a_bad_variable_is_refused_by_name(name: str, written: str, says: str) -> None:
    assert variable_refusal(name, written).startswith(says)
