"""`edgectl` as a person types it, as far as no broker is needed: what is refused in one sentence, and what is taken."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from edged.config import file as config_file
from edged.core.errors import ConfigError
from edged.ctl import config
from edged.ctl.main import main, parser, settings_of


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("EDGED_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A default file that nobody can open, root neither: its name is too long."""
    path = tmp_path / ("x" * 300)
    monkeypatch.setattr(config_file, "DEFAULT_PATH", path)
    return path


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence with which words are refused as wrong usage."""
    assert 2 == main(words)
    captured = capsys.readouterr()
    assert "" == captured.out
    assert captured.err.startswith("edgectl: ")
    assert 1 == captured.err.count("\n")
    return captured.err


@pytest.mark.parametrize(
    "words",
    [
        ("top",),
        ("top", "--json"),
        ("rollout", "start"),
        ("model", "load", "x"),
        ("simulate", "layer.yaml"),
        ("forget", "pi"),
    ],
)
def test_p08_a_reserved_command_is_refused_and_says_so(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    said = refused(capsys, *words)
    assert ": this version does not " in said
    assert said.endswith(" yet\n")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "COMMAND; see edgectl --help"),
        (("propmt", "x"), "'propmt'"),
        (("config",), "VERB; see edgectl config --help"),
        (("prompt",), "TEXT; see edgectl prompt --help"),
        (("prompt", "x", "--seed", "one"), "--seed: invalid int value: 'one'"),
        (("prompt", "x", "--timeout", "inf"), "--timeout: inf is not a number of seconds"),
        (("status", "--wait", "-1"), "--wait: -1 is not a number of seconds"),
        (("status", "two\nlines"), "two lines"),
        (("prompt", "x", "--url", ""), "--url: "),
        (("prompt", "x", "--fleet", "Home"), "--fleet: "),
        (("prompt", "\udcff", "--device", "pi"), "TEXT: is not valid UTF-8"),
        (("prompt", "x", "--device", "pi", "--system", "\udcff"), "--system: is not valid UTF-8"),
    ],
)
def test_wrong_words_are_one_sentence_that_says_where_to_look(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    assert says in refused(capsys, *words)


def test_standard_input_that_is_no_utf8_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for errors in ("strict", "surrogateescape"):  # Python chooses one by the locale
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), "utf-8", errors))
        assert "standard input: is not valid UTF-8" in refused(capsys, "prompt", "-", "--device", "pi")


def test_a_default_file_that_cannot_be_read_is_told_with_what_to_do(
    capsys: pytest.CaptureFixture[str], unreadable: Path
) -> None:
    for words in ((), ("--url", "mqtt://h"), ("--fleet", "home")):
        said = refused(capsys, "status", *words)
        assert f"{unreadable}: cannot be read (" in said
        assert "give the broker with --url and the fleet with --fleet" in said


def test_broker_and_fleet_as_options_or_variables_need_no_file(
    monkeypatch: pytest.MonkeyPatch, unreadable: Path
) -> None:
    found = settings_of(parser().parse_args(["status", "--url", "mqtt://h", "--fleet", "f"]))
    assert ("mqtt://h", "f") == (found.mqtt.url, found.identity.fleet)
    monkeypatch.setenv("EDGED_MQTT_URL", "mqtt://g")
    monkeypatch.setenv("EDGED_MQTT_USERNAME", "me")
    found = settings_of(parser().parse_args(["status", "--fleet", "f"]))
    assert ("mqtt://g", "me", "f") == (found.mqtt.url, found.mqtt.username, found.identity.fleet)


def test_a_file_that_was_named_must_be_readable(unreadable: Path) -> None:
    words = ["status", "--url", "mqtt://h", "--fleet", "f", "--config", str(unreadable)]
    with pytest.raises(ConfigError, match="cannot be read"):
        settings_of(parser().parse_args(words))


def test_options_win_over_a_default_file_that_can_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "edged.yaml").write_text("mqtt: {url: 'mqtt://a', username: me}\n")
    monkeypatch.setattr(config_file, "DEFAULT_PATH", tmp_path / "edged.yaml")
    found = settings_of(parser().parse_args(["status", "--url", "mqtt://h", "--fleet", "f"]))
    assert ("mqtt://h", "me") == (found.mqtt.url, found.mqtt.username)


def test_what_a_device_says_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets in a reason are no colours."""
    report = {"phase": "rejected", "reason": "[red] is no level", "in_force": {"fleet": 3}}
    config._show(config.Target("home"), 4, {"pi": report})
    shown = capsys.readouterr().out
    assert "[red] is no level" in shown
    assert "fleet:3" in shown
