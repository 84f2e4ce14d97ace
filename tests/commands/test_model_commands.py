"""`edged` in this process: what it fetches by itself, and what it says where the system refuses something."""

from __future__ import annotations

import errno
import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from edged.commands import model
from edged.commands.main import main
from edged.models.store.catalog import catalog
from edged.models.store.store import Store
from tests.models.web import Web
from tests.tiny import make_gguf

UNREADABLE = "/proc/self/mem"  # its first bytes are nobody's to read, root's neither


@pytest.fixture(autouse=True)
def _state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGED_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def failed(capsys: pytest.CaptureFixture[str], *words: str, code: int = 1) -> tuple[str, Any]:
    """The sentence of a command that fails, and its one document."""
    capsys.readouterr()
    assert code == main([*words, "--json"])
    captured = capsys.readouterr()
    (said,) = [line for line in captured.err.splitlines() if line.startswith("edged: ")]
    assert captured.err.endswith(f"{said}\n")
    return said, json.loads(captured.out) if captured.out else None


@pytest.mark.parametrize("words", [("generate", "smollm2-135m-instruct", "hi"), ("model", "pull", "hf:a/b")])
def test_a_state_folder_that_cannot_be_made_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("EDGED_STATE_DIR", "/dev/null/x")
    said, document = failed(capsys, *words)
    assert "/dev/null/x/models cannot be written (Not a directory)" in said
    assert "no_disk" == document["error"]["code"]


@pytest.mark.parametrize("words", [("model", "pull", UNREADABLE), ("generate", UNREADABLE, "hi")])
def test_a_model_that_cannot_be_read_is_told(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    said, document = failed(capsys, *words)
    assert UNREADABLE in said
    assert "Input/output error" in said
    assert "unreachable" == document["error"]["code"]


def test_a_model_that_cannot_be_removed_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert 0 == main(["model", "pull", str(make_gguf(tmp_path / "tiny.gguf"))])

    def refuse(**_: object) -> str:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    said, document = failed(capsys, "model", "remove", "tiny.gguf")
    assert "tiny.gguf is not removed: " in said
    assert "cannot be written (Read-only file system)" in said
    assert "no_disk" == document["error"]["code"]


def test_a_damaged_model_is_shown_in_one_document(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert 0 == main(["model", "pull", str(make_gguf(tmp_path / "tiny.gguf"))])
    (kept,) = Store(tmp_path / "state" / "models").list()
    with kept.path.open("r+b") as file:
        file.write(b"GARBAGE")
    said, document = failed(capsys, "model", "show", "tiny.gguf")
    assert "run: edged model remove tiny.gguf" in said
    assert ("tiny.gguf", False) == (document["name"], document["whole"])
    assert "tampered" == document["error"]["code"]


def test_what_no_command_foresaw_of_the_system_is_a_sentence_but_for_the_daemon(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A defect of the daemon is logged with its traceback."""

    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EIO, "Input/output error", "/a/file")

    monkeypatch.setattr("edged.commands.model.model_list", refuse)
    monkeypatch.setattr("edged.agent.startup.run", refuse)
    assert failed(capsys, "model", "list")[0].startswith("edged: model failed (Input/output error: /a/file); ")
    with pytest.raises(OSError, match="/a/file"):
        main(["run"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("generate", "x.gguf", "caf\udce9"), "TEXT: is not valid UTF-8"),
        (("model", "pull", "hf:a/\udce9"), "the source: is not valid UTF-8"),
    ],
)
def test_words_that_are_no_utf8_are_wrong_usage(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    assert says in failed(capsys, *words, code=2)[0]


@pytest.mark.parametrize(
    ("source", "fetched"),
    [
        ("smollm2-135m-instruct", True),
        ("hf:a/b", True),
        ("hf:a/b/m.gguf@main", True),
        ("http://127.0.0.1:1/m.gguf", True),
        ("m.gguf", False),
        ("/models/m", False),
        ("sha256:" + "0" * 64, False),
    ],
)
def test_generate_fetches_what_is_not_on_this_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, fetched: bool
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(model, "pull", lambda source, *_, **_options: asked.append(source))
    model.fetch_missing(source, tmp_path)
    assert asked == ([source] if fetched else [])


def test_generate_fetches_from_the_hub_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = make_gguf(tmp_path / "tiny.gguf").read_bytes()
    server = Web()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    sibling = {"rfilename": "m.gguf", "lfs": {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    server.files["/api/models/org/m/revision/main"] = json.dumps({"sha": "c0ffee", "siblings": [sibling]}).encode()
    server.files["/org/m/resolve/c0ffee/m.gguf"] = data
    words = ["generate", "hf:org/m/m.gguf", "hi", "--max-tokens", "2", "--json"]
    try:
        for _ in range(2):
            capsys.readouterr()
            assert 0 == main(words)
            assert 2 == json.loads(capsys.readouterr().out)["usage"]["completion_tokens"]
        assert 2 == len(server.ranges)  # what the repository has, and the file
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_list_says_which_models_fit_this_board(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By the memory that is available: 400 MB are enough for SmolLM2-135M and Gemma 3 270M, not for Llama 3.2 1B."""
    monkeypatch.setattr("edged.commands.model.available_bytes", lambda: 400_000_000)
    assert 0 == main(["model", "pull", str(make_gguf(tmp_path / "tiny.gguf"))])
    capsys.readouterr()
    assert 0 == main(["model", "list", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert 400_000_000 == document["available_bytes"]
    assert ["tiny.gguf"] == [kept["name"] for kept in document["models"]]
    offered = {entry["name"]: entry for entry in document["catalog"]}
    fit = {name: offered[name]["fits"] for name in ("smollm2-135m-instruct", "gemma3-270m", "llama3.2-1b-instruct")}
    assert {"smollm2-135m-instruct": True, "gemma3-270m": True, "llama3.2-1b-instruct": False} == fit
    assert (None, True) == tuple(offered["qwen3-0.6b"][key] for key in ("digest", "size_approximate"))
    assert offered["gemma3-270m"]["digest"].startswith("sha256:a5fd3b62230aa5ec")


@pytest.mark.parametrize(("columns", "licence"), [("160", True), ("80", False)])
def test_the_list_is_readable_on_terminals_of_any_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str, licence: bool
) -> None:
    monkeypatch.setattr("edged.commands.model.available_bytes", lambda: 400_000_000)
    monkeypatch.setenv("COLUMNS", columns)
    assert 0 == main(["model", "list"])
    printed = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in printed.splitlines() if line.strip()}
    assert ["no", "98", "MB", "246", "MB", "yes"] == rows["smollm2-135m-instruct"][1:7]
    assert ["no", "about", "808", "MB", "975", "MB", "no"] == rows["llama3.2-1b-instruct"][1:8]
    assert licence == ("Apache-2.0" in printed)
    assert "400 MB are available" in printed


def test_the_guide_lists_the_catalog_as_it_is() -> None:
    guide = (Path(__file__).parents[2] / "docs/how-to/choose-a-model.md").read_text("utf-8")
    for entry in catalog().values():
        about = "≈ " if entry.approximate else ""
        assert f"| `{entry.name}` | {about}{entry.size / 1e6:,.0f} MB | {entry.memory / 1e6:,.0f} MB |" in guide
