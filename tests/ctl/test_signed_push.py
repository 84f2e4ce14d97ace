"""`edgectl keys` and `config push --key` against a real broker and an agent that requires signatures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edged.ctl.main import main
from tests.support import Broker, Client, Device

pytestmark = pytest.mark.broker


@pytest.fixture
def edgectl(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, Any]]:
    """Runs a command with `--json`; gives the exit code and the document."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "operator"))

    def run(*words: str) -> tuple[int, Any]:
        connection = () if words[0] == "keys" else ("--url", broker.url, "--fleet", "test")
        capsys.readouterr()
        code = main([*words, *connection, "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


def test_p05_an_operator_signs_pushes_rotates_and_removes(
    edgectl: Callable[..., tuple[int, Any]],
    device: Callable[..., Device],
    client: Client,
    broker: Broker,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (_, ops), (_, following) = edgectl("keys", "new", "ops"), edgectl("keys", "new", "next")
    made = device({"trust": {"keys": {"ops": ops["public"]}, "require_signature": True}})
    file = tmp_path / "layer.yaml"

    def push(text: str, *options: str) -> tuple[int, dict[str, Any]]:
        file.write_text(text)
        source = () if "--remove" in options else (str(file),)
        code, document = edgectl("config", "push", *source, "--device", "pi", *options)
        return code, document["devices"]["pi"]

    def tokens() -> int:
        client.clear()
        client.publish(f"{made.root}/prompt/me", {"prompt": "a b c d e f"})
        return len(client.any_final("me")["text"].split())

    code, answer = push("generation: {max_tokens: 1}")
    assert (1, "rejected") == (code, answer["phase"])
    assert "--key FILE" in answer["reason"]
    code, answer = push("generation: {max_tokens: 2}", "--key", ops["file"])
    assert (0, "applied", 2) == (code, answer["phase"], tokens())
    text = f"settings: {{generation: {{max_tokens: 3}}}}\ntrust: {{keys: {{next: {following['public']}}}}}"
    code, answer = push(text, "--key", ops["file"])
    assert (0, "applied", 3) == (code, answer["phase"], tokens())
    code, answer = push("settings: {}\ntrust: {withdraw: [ops]}", "--key", following["file"])
    assert (0, "applied", 6) == (code, answer["phase"], tokens())
    code, answer = push("generation: {max_tokens: 1}", "--key", ops["file"])
    assert (1, "rejected") == (code, answer["phase"])
    code, answer = push("", "--remove")
    assert (1, "rejected") == (code, answer["phase"])
    code, answer = push("generation: {max_tokens: 4}", "--key", following["file"])
    assert (0, 4) == (code, tokens())
    code, answer = push("", "--remove", "--key", following["file"])
    assert (0, "applied", 6) == (code, answer["phase"], tokens())
    _, history = edgectl("config", "history")
    keys = [decision["key"] for decision in history["devices"]["pi"]]
    assert ["next", "next", None, None, "next", "ops", "ops", None] == keys  # an unknown key signs nothing
    assert 0 == main(["config", "history", "--url", broker.url, "--fleet", "test"])
    assert "signed by" in capsys.readouterr().out
