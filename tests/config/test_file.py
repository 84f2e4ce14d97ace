"""The owner's file: every refusal names file, line, key and the nearest known key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from edged.config import file as config_file
from edged.core.errors import ConfigError


def refusal(source: str) -> str:
    """What is said about a file of this text."""
    with pytest.raises(ConfigError) as caught:
        config_file.parse(source, "edged.yaml")
    return str(caught.value)


def test_an_empty_file_means_the_defaults() -> None:
    assert {} == config_file.parse("", "f")
    assert {} == config_file.parse("# nothing\n", "f")


def test_values_are_checked_and_converted() -> None:
    values = config_file.parse("limits: {prompt_bytes: 1KB, remember: 2h}\nmodel: {bits: 4}\n", "f")
    assert {"limits": {"prompt_bytes": 1000, "remember": 7200.0}, "model": {"bits": "4"}} == values


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (
            "identity: {fleet: home}\ngeneration:\n  max_token: 5\n",
            'edged.yaml:3: generation.max_token: unknown key (did you mean "max_tokens"?)',
        ),
        ("# one\n\nmodell: {}\n", 'edged.yaml:3: modell: unknown key (did you mean "model"?)'),
        ("limits:\n  queue: lots\n", "edged.yaml:2: limits.queue: must be a whole number, not 'lots'"),
        ("limits:\n  queue: true\n", "edged.yaml:2: limits.queue: must be a whole number, not true"),
        ("limits:\n  queue: 0\n", "edged.yaml:2: limits.queue: must be between 1 and 100000, not 0"),
        ("telemetry:\n  interval: 10\n", "edged.yaml:2: telemetry.interval: must be a duration such as 10s"),
        ("limits:\n  prompt_bytes: 64\n", "edged.yaml:2: limits.prompt_bytes: must be a size such as 64KB"),
        ("identity:\n  groups:\n    - a\n    - B\n", "edged.yaml:4: identity.groups[1]: must be 1 to 63 of a-z"),
        ("generation:\n  seed:\n", "edged.yaml:2: generation.seed: must not be null"),
        ("model:\n", "edged.yaml:1: model: must not be null"),
        ("- a\n- b\n", "edged.yaml:1: must be a mapping"),
        ("hello\n", "edged.yaml:1: must be a mapping"),
        ("model: {source: 5}\n", "edged.yaml:1: model.source: must be text, not 5; put it in quotes"),
        (
            "model:\n  keep_alive: never\n",
            "edged.yaml:2: model.keep_alive: must be forever or a duration such as 10s, 5m or 24h, not 'never'",
        ),
        ("golden: [{prompt: x, within: 0s}]\n", "edged.yaml:1: golden[0].within: must be between 100ms and 1h"),
        ("trust: {keys: {ops: x}}\n", "edged.yaml:1: trust.keys.ops: must be an Ed25519 public key"),
        ('generation: {system: "\\uD800"}\n', "edged.yaml:1: generation.system: must be text, not half a character"),
        ("limits: {queue: 0x" + "F" * 6000 + "}\n", "edged.yaml:1: limits.queue: must be between 1 and 100000"),
    ],
)
def test_a_bad_value_is_named_by_file_line_and_key(source: str, says: str) -> None:
    assert refusal(source).startswith(says)


def test_a_key_that_is_set_twice_is_refused_with_both_lines() -> None:
    source = "limits:\n  queue: 5\n  queue: 6\n"
    assert "edged.yaml:3: limits.queue: is set twice (first in line 2); keep one" == refusal(source)
    assert refusal("log: {}\nmodel: {}\nlog: {}\n").startswith("edged.yaml:3: log: is set twice (first in line 1)")


@pytest.mark.parametrize(
    "source",
    [
        "model: &m {source: x}\n",
        "generation: &g {}\nmodel: *g\n",
        "a: &a [1]\nb: [*a,*a]\n",
        "generation: {<<: {seed: 1}}\n",
    ],
)
def test_anchors_aliases_and_merge_keys_are_refused(source: str) -> None:
    said = refusal(source)
    assert said.startswith("edged.yaml:1: ")
    assert "not allowed; write the" in said


@pytest.mark.parametrize(
    "source",
    [
        "a: [1,\n",
        "\tmodel: {}\n",
        "model: {source: x\n",
        "a: !!python/object/apply:os.system [echo]\n",
        "a: 1\n---\nb: 2\n",
        "? [a]\n: b\n",
        "a: \x01\n",
        "a: 2024-99-99\n",
        "? {a: 1}\n: 2\n",
        "x: " + "[" * 600 + "]" * 600,
        "x: !!int abc\n",
        "x: !!bool perhaps\n",
        "x: !!timestamp now\n",
        "x: !!binary ====\n",
        "1: 2\n",
        "null: 2\n",
        "%YAML 9.9\n---\na: 1\n",
    ],
)
def test_what_is_no_plain_yaml_is_refused_in_one_line(source: str) -> None:
    said = refusal(source)
    assert said.startswith("edged.yaml:")
    assert "\n" not in said


@given(st.text(alphabet=st.sampled_from("abm:{}[]- \n\"'&*!|>%#,?1.\t"), max_size=40))
def test_no_text_breaks_the_reader(source: str) -> None:
    """Any text is either taken or refused with a sentence; nothing else is raised."""
    try:
        config_file.parse(source, "f")
    except ConfigError as error:
        assert str(error).startswith("f:")  # noqa: PT017  - taken or refused: both are right


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    )
)
def test_no_document_breaks_the_reader(document: Any) -> None:
    try:
        config_file.parse(yaml.safe_dump({"generation": document}, allow_unicode=True), "f")
    except ConfigError as error:
        assert str(error).startswith("f:")  # noqa: PT017  - taken or refused: both are right


def test_a_file_that_cannot_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read \(No such file.*--config"):
        config_file.load(tmp_path / "nowhere.yaml", {})
    with pytest.raises(ConfigError, match="cannot be read"):
        config_file.load(tmp_path, {})
    (tmp_path / "latin").write_bytes(b"model: {source: \xe4}\n")
    with pytest.raises(ConfigError, match=r"latin: is not UTF-8 text \(byte 16\)"):
        config_file.load(tmp_path / "latin", {})
    (tmp_path / "huge").write_bytes(b"#" * 1_000_001)
    with pytest.raises(ConfigError, match="huge: is larger than 1MB"):
        config_file.load(tmp_path / "huge", {})


def test_the_default_file_may_be_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config_file, "DEFAULT_PATH", tmp_path / "edged.yaml")
    assert {} == config_file.load(None, {})
    (tmp_path / "edged.yaml").write_text("limits: {queue: 3}\n")
    assert {"limits": {"queue": 3}} == config_file.load(None, {})
    monkeypatch.setattr(config_file, "DEFAULT_PATH", tmp_path / "edged.yaml" / "below-a-file")
    assert {} == config_file.load(None, {})


def test_a_default_file_that_may_not_be_read_is_not_taken_as_absent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Root may read everything, but nobody opens a name of 300 letters."""
    monkeypatch.setattr(config_file, "DEFAULT_PATH", tmp_path / ("x" * 300))
    with pytest.raises(config_file.Unreadable, match=r"cannot be read \(.*\); run this with sudo, or .* --config"):
        config_file.load(None, {})


def test_a_variable_overrides_a_single_key_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "edged.yaml"
    path.write_text("limits: {queue: 3, max_tokens: 9}\n")
    assert {"limits": {"queue": 7, "max_tokens": 9}} == config_file.load(path, {"EDGED_LIMITS_QUEUE": "7"})


def test_what_contradicts_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "edged.yaml"
    path.write_text("mqtt: {url: 'mqtts://h', cert: /c}\n")
    with pytest.raises(ConfigError, match=r"edged\.yaml: mqtt\.cert: needs mqtt\.key beside it"):
        config_file.load(path, {})
