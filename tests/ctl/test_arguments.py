"""`edgectl` as a person types it, as far as no broker is needed: what is refused in one sentence, and what is taken."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from edged.config import file as config_file
from edged.core.errors import ConfigError
from edged.ctl import config
from edged.ctl.main import main, parser
from edged.ctl.options import settings_of
from edged.ctl.prompt_options import options_of
from tests.terminal import Terminal


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
        ("model", "list"),
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
        (("prompt", "x", "--top-p", "2"), "--top-p: "),
        (("prompt", "x", "--stop", ""), "--stop[0]: "),
        (("prompt", "x", "--priority", "10"), "priority: "),
        (("prompt", "x", "--format", "/nowhere"), "/nowhere: cannot be read"),
        (("prompt", "x", "--messages", "/nowhere"), "/nowhere: cannot be read"),
        (("prompt", "x", "--all", "--device", "pi"), "not allowed with argument"),
        (("prompt", "x", "--pool", "Fast"), "--pool: "),
        (("prompt", " "), "prompt: is empty"),
        (("top", "--url", "mqtt://h"), "top needs a terminal"),
        (("command", "reboot"), "invalid choice: 'reboot'"),
        (("command", "drain", "--output", "x"), "--output: only diagnostics has a file"),
        (("forget", "Pi"), "DEVICE: "),
        (("cancel",), "give the ID of a prompt, or --all"),
        (("cancel", "x", "--all"), "give the ID of a prompt, or --all"),
        (("cancel", "a/b"), "ID: "),
        (("status", "--ca", "x", "--url", "mqtt://h"), "certificates need a URL that starts with mqtts://"),
        (("status", "--cert", "x", "--url", "mqtts://h"), "give both or neither"),
        (("prompt", "\udcff", "--device", "pi"), "TEXT: is not valid UTF-8"),
        (("prompt", "x", "--device", "pi", "--system", "\udcff"), "--system: is not valid UTF-8"),
    ],
)
def test_wrong_words_are_one_sentence_that_says_where_to_look(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    assert says in refused(capsys, *words)


def test_no_words_at_all_are_exit_2_with_the_help_on_a_terminal() -> None:
    terminal = Terminal(sys.executable, "-m", "edged.ctl.main")
    terminal.read_until("send a prompt to a device")
    assert 2 == terminal.wait()


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


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[", "is not valid JSON"),
        ("5", "must be a list of turns"),
        ("[]", "messages: is empty"),
        ('[{"role": "robot", "content": "x"}]', "messages[0].role: "),
        ('[{"role": "user", "role": "user", "content": "x"}]', "role"),
    ],
)
def test_a_file_of_turns_that_no_device_would_accept_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, says: str
) -> None:
    path = tmp_path / "turns.json"
    path.write_text(text)
    said = refused(capsys, "prompt", "--messages", str(path), "--device", "pi")
    assert f"{path}: " in said
    assert says in said


def test_a_format_is_a_format_or_a_bare_schema(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "format.json"
    for text, found in (
        ('{"type": "choice", "choices": ["a"]}', {"type": "choice", "choices": ["a"]}),
        ('{"type": "array"}', {"type": "json_schema", "schema": {"type": "array"}}),
        ("{}", {"type": "json_schema", "schema": {}}),
    ):
        path.write_text(text)
        arguments = parser().parse_args(["prompt", "x", "--format", str(path)])
        assert {"format": found} == options_of(arguments)
    for text in ("[]", '{"type": "choice", "choices": []}', '{"type": "array", "itemz": 1}'):
        path.write_text(text)
        assert f"{path}: " in refused(capsys, "prompt", "x", "--format", str(path))


def test_options_of_the_connection_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "edged.yaml"
    path.write_text("mqtt: {url: 'mqtts://a', username: me, ca: old}\n")
    words = ["--username", "you", "--password-file", "p", "--ca", "c", "--cert", "d", "--key", "k"]
    found = settings_of(parser().parse_args(["prompt", "x", "--config", str(path), *words])).mqtt
    assert ("you", "p", "c", "d", "k") == (found.username, found.password_file, found.ca, found.cert, found.key)
    words = ["config", "push", "x", "--config", str(path), "--cert", "d", "--tls-key", "k", "--key", "signing"]
    arguments = parser().parse_args(words)
    assert ("k", Path("signing")) == (settings_of(arguments).mqtt.key, arguments.key)
