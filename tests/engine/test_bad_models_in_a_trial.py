"""Models that must not serve, in a trial: each is rolled back with one plain sentence, before much memory is used.

What the agent starts is called here: `edged model show` for the step `verify`, `load_model` for what the worker does.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from edged.agent.model_pull import failure_of
from edged.commands.main import main
from edged.config.schema import build
from edged.core.errors import ModelError
from edged.engine.load import load_model
from edged.fleet import trial_events as t
from edged.fleet.plan import plan
from edged.fleet.trial import Trial
from edged.models.store.pull import pull
from edged.models.store.store import Store
from tests.models.odd import text, value
from tests.models.web import quiet

Try = Callable[[Path], str | None]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("EDGED_STATE_DIR", str(tmp_path / "state"))
    return Store(tmp_path / "state" / "models")


def tried(
    store: Store,
    path: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    between: Callable[[Path], None] = lambda _path: None,
    context: int = 64,
) -> str | None:
    """The trial of a pushed model up to its load; gives the reason of the roll-back, None where it would be judged."""
    model = pull(str(path), store, quiet)
    target = build({"model": {"source": model.digest, "context": context}})
    trial = Trial(plan(build({}), target), target, 0, lambda: 10**12, lambda: 0.0, link_up=True)
    assert [t.Verify()] == trial.start()
    capsys.readouterr()
    code = main(["model", "show", model.digest, "--json"])
    output = capsys.readouterr().out.encode()
    if code:
        actions = trial.process(t.Failed("tampered", failure_of(output, code).message))
    else:
        assert [t.Load()] == trial.process(t.Verified(json.loads(output)["size_bytes"]))
        between(model.path)
        try:
            load_model(model.digest, "native", context=context, threads=1, store_root=store.root)
        except ModelError as error:
            actions = trial.process(t.Failed(error.code, str(error)))
            if actions == [t.Unload(), t.Clear()]:  # beside the old model there is no room: instead of it neither
                trial.process(t.Cleared())
                actions = trial.process(t.Failed(error.code, str(error)))
        else:
            return None
    (undo,) = actions
    assert isinstance(undo, t.Undo)
    assert trial.ended
    assert not [word for word in ("Traceback", "see the log", "\n") if word in undo.reason]
    return undo.reason


def test_a_good_model_would_be_judged(store: Store, tiny_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert None is tried(store, tiny_gguf, capsys)


@pytest.mark.parametrize("share", [0.0001, 0.1, 0.5, 0.9, 0.999])
def test_p06_a_truncated_model_is_rolled_back(
    store: Store, tiny_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], share: float
) -> None:
    data = tiny_gguf.read_bytes()
    short = tmp_path / "short.gguf"
    short.write_bytes(data[: max(4, int(len(data) * share))])
    assert "could not be loaded" in str(tried(store, short, capsys))


def head(metadata: bytes, count: int, tensors: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, count) + metadata


@pytest.mark.parametrize(
    "data",
    [
        head(text("k") + struct.pack("<IQ", 8, 2**30) + b"x", 1),
        head(struct.pack("<Q", 2**30), 1),
        head(text("k") + struct.pack("<IIQ", 9, 8, 2**30), 1),
        head(text("k") + struct.pack("<IIQ", 9, 4, 2**28), 1),
        head(b"", 2**30),
        head(b"", 0, 2**30),
        head(text("general.architecture") + value("llama"), 1, 2**60),
        b"GGUF",
        b"GGUF" + bytes(100),
        b"GGUF" + b"\xff" * 100,
    ],
)
def test_p06_a_header_that_claims_a_gigabyte_costs_no_memory(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes
) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "could not be loaded" in str(tried(store, path, capsys))
    assert 100_000 > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


def test_p06_a_header_of_a_gigabyte_that_is_really_there_costs_no_memory(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A text of 1 GB as the first key's value: a file with a hole, so that the test is quick."""
    path = tmp_path / "large.gguf"
    start = head(text("k") + struct.pack("<IQ", 8, 2**30), 1)
    with path.open("wb") as file:
        file.write(start)
        file.truncate(len(start) + 2**30)
    from edged.models.formats.gguf import open_gguf

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError):
        open_gguf(path)
    assert 200_000 > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


def test_p06_a_family_that_the_engine_does_not_know_is_rolled_back(
    store: Store, tiny_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(tiny_gguf.read_bytes().replace(text("llama"), text("zebra"), 1))
    assert "zebra" in str(tried(store, path, capsys))


@pytest.mark.parametrize("how", ["other bytes", "replaced", "cut", "removed", "link"])
def test_p06_a_model_that_is_swapped_after_its_verification_is_rolled_back(
    store: Store, tiny_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    other = tmp_path / "other"
    other.write_bytes(tiny_gguf.read_bytes()[:-1] + b"!")

    def swap(path: Path) -> None:
        match how:
            case "other bytes":
                with path.open("r+b") as file:
                    file.seek(-1, os.SEEK_END)
                    file.write(b"!")
            case "replaced":
                other.replace(path)
            case "cut":
                os.truncate(path, 5000)
            case "removed":
                path.unlink()
            case _:
                path.unlink()
                path.symlink_to(other)

    assert "could not be loaded" in str(tried(store, tiny_gguf, capsys, between=swap))


def test_p07_a_model_that_needs_more_memory_than_there_is_is_rolled_back(
    store: Store, tiny_gguf: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edged.engine.load.available_bytes", lambda: 1_000_000)
    reason = str(tried(store, tiny_gguf, capsys))
    assert "MB" in reason


def test_p06_a_model_with_another_digest_than_the_layers_is_never_loaded(store: Store, tiny_gguf: Path) -> None:
    model = pull(str(tiny_gguf), store, quiet)
    assert f"sha256:{hashlib.sha256(tiny_gguf.read_bytes()).hexdigest()}" == model.digest
    with pytest.raises(ModelError) as caught:
        load_model(model.digest, "native", digest="sha256:" + "0" * 64, store_root=store.root)
    assert "tampered" == caught.value.code
