"""`edged check`: exit 0 with the effective config, or exit 2 with one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from edged import __version__
from edged.commands.main import main


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EDGED_MQTT_URL", "EDGED_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "edged.yaml"
    path.write_text(text)
    return str(path)


def test_a_good_file_is_shown_as_it_will_be_in_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGED_LIMITS_QUEUE", "7")
    file = written(tmp_path, "identity: {device: pi}\nlimits: {prompt_bytes: 1MB}\ngeneration: {stop: [a]}\n")
    assert 0 == main(["check", "--config", file])
    shown = yaml.safe_load(capsys.readouterr().out)
    share = {"queue": 16, "running": 4, "priority": 0, "by_name": {}}
    limits = {"queue": 7, "prompt_bytes": "1MB", "max_tokens": 1024, "remember": "1d", "raw": False}
    limits["per_requester"] = share
    assert limits == shown["limits"]
    assert "pi" == shown["identity"]["device"]
    assert ["a"] == shown["generation"]["stop"]
    assert "smollm2-135m-instruct" == shown["model"]["source"]


def test_what_is_shown_is_a_file_that_means_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, "identity: {device: pi, groups: [a]}\ntelemetry: {interval: 500ms}\n")
    main(["check", "--config", file])
    first = capsys.readouterr().out
    assert 0 == main(["check", "--config", written(tmp_path, first)])
    assert first == capsys.readouterr().out


def test_json_prints_one_document_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == main(["check", "--json", "--config", written(tmp_path, "")])
    captured = capsys.readouterr()
    assert "mqtt://127.0.0.1:1883" == json.loads(captured.out)["mqtt"]["url"]
    assert "" == captured.err


def test_a_warning_names_files_that_are_not_there_beside_a_good_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "password").write_text("secret")
    named = f"{{username: pi, password_file: {tmp_path}/password, url: mqtts://broker, ca: {tmp_path}/ca.pem}}"
    file = written(tmp_path, f"mqtt: {named}\nmodel: {{source: {tmp_path}/model.gguf}}\n")
    assert 0 == main(["check", "--config", file])
    captured = capsys.readouterr()
    assert f"{tmp_path}/ca.pem" == yaml.safe_load(captured.out)["mqtt"]["ca"]
    first, second = captured.err.splitlines()
    assert first.startswith(f"edged: warning: mqtt.ca: {tmp_path}/ca.pem cannot be found here; the daemon needs it")
    assert second.startswith(
        f"edged: warning: model.source: {tmp_path}/model.gguf cannot be found here; the daemon needs it"
    )


def test_a_device_without_a_name_is_shown_the_one_it_will_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Raspberry Pi")
    monkeypatch.setattr("edged.commands.configured.machine_id", lambda: "beef0000")
    main(["check", "--json", "--config", written(tmp_path, "")])
    assert "raspberry-pi-beef" == json.loads(capsys.readouterr().out)["identity"]["device"]


def test_a_bad_file_is_exit_2_and_one_sentence_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, "limits:\n  queu: 5\n")
    assert 2 == main(["check", "--config", file])
    captured = capsys.readouterr()
    assert "" == captured.out
    assert f'edged: {file}:2: limits.queu: unknown key (did you mean "queue"?)\n' == captured.err


def test_a_bad_variable_is_exit_2_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGED_MQTT_URI", "x")
    assert 2 == main(["check", "--config", written(tmp_path, "")])
    assert 'edged: EDGED_MQTT_URI: unknown variable (did you mean "EDGED_MQTT_URL"?)\n' == capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["chekc"], "'chekc'"),
        ([], "COMMAND; see edged --help"),
        (["check", "--no-such-word"], "--no-such-word"),
        (["run", "extra"], "extra"),
        (["model"], "VERB; see edged model --help"),
        (["generate", "x", "y", "--max-tokens", "many"], "--max-tokens: invalid int value: 'many'"),
        (["bench", "x", "--threads", "0"], "--threads: '0' is not a whole number from 1 to 1000000"),
    ],
)
def test_wrong_words_are_exit_2_and_one_sentence(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 2 == main(words)
    captured = capsys.readouterr()
    assert "" == captured.out
    assert captured.err.startswith("edged: ")
    assert 1 == captured.err.count("\n")
    assert says in captured.err


def test_a_default_file_that_cannot_be_read_is_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `/etc/edged` is for users who are not of its group; here by a name that is too long for anyone."""
    monkeypatch.setattr("edged.config.file.DEFAULT_PATH", tmp_path / ("x" * 300))
    assert 2 == main(["check"])
    said = capsys.readouterr().err
    assert "cannot be read (" in said
    assert 1 == said.count("\n")


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert 0 == ended.value.code
    assert f"edged {__version__}\n" == capsys.readouterr().out


def test_a_plan_prints_the_steps_to_a_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, f"identity: {{device: pi}}\nstate_dir: {tmp_path}/state\nmodel: {{source: /m.gguf}}\n")
    layer = tmp_path / "layer.yaml"
    for text, steps in (
        ("model: {source: smollm2-135m-instruct}", ["fetch", "verify", "load", "judge", "probation", "adopt"]),
        ("model: {context: 64}", ["load", "judge", "probation", "adopt"]),
        (f"model: {{source: 'sha256:{'a' * 64}'}}", ["verify", "load", "judge", "probation", "adopt"]),
        ("generation: {max_tokens: 3}", ["apply"]),
        ("{}", []),
    ):
        layer.write_text(text)
        assert 0 == main(["check", "--config", file, "--plan", str(layer), "--json"])
        assert steps == [step["step"] for step in json.loads(capsys.readouterr().out)["steps"]]
    assert 0 == main(["check", "--config", file, "--plan", str(layer)])
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["model: {source: /etc/passwd}", "mqtt: {url: x}", "[1]", "a: b: c"])
def test_a_plan_of_what_no_layer_may_say_is_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    layer = tmp_path / "layer.yaml"
    layer.write_text(text)
    assert 2 == main(["check", "--config", written(tmp_path, ""), "--plan", str(layer)])
    assert str(layer) in capsys.readouterr().err
