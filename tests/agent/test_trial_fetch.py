"""A layer names an address: fetched in the trial by the real command from a server with faults; the worker is fake."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.models.web import Web
from tests.support import Client, Device, as_json
from tests.tiny import make_gguf

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_gguf(tmp_path_factory.mktemp("fetched") / "m.gguf").read_bytes()


@pytest.fixture
def web(data: bytes) -> Iterator[Web]:
    server = Web()
    server.files["/m.gguf"] = data
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def made(device: Callable[..., Device], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "control").mkdir()
    (tmp_path / "control" / "real-models").touch()
    return device({"trial": {"probation": "300ms"}})


def end(client: Client, made: Device, web: Web, revision: int, data: bytes) -> dict[str, Any]:
    """Push the address, and give the report after the trial."""
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    layer = {"revision": revision, "settings": {"model": {"source": f"{web.url}/m.gguf", "digest": digest}}}
    client.publish(f"{made.root}/config", layer, retain=True)

    def matches(message: Any) -> Any:
        report = as_json(message) if message.topic.endswith("/config/reported") else {}
        return report if report.get("revision") == revision and report["phase"] in {"applied", "rolled_back"} else None

    found: dict[str, Any] = client.wait(matches, 30, f"the end of the trial of revision {revision}")
    return found


def test_p04_a_fetch_with_faults_is_resumed_or_rolled_back_and_the_old_model_serves(
    made: Device, client: Client, web: Web, data: bytes
) -> None:
    web.files["/m.gguf"] = data[:-1] + bytes([data[-1] ^ 1])
    report = end(client, made, web, 1, data)
    assert ("rolled_back", {}) == (report["phase"], report["in_force"])
    assert "could not be fetched: m.gguf from 127.0.0.1 is not the expected file" in report["reason"]
    client.publish(f"{made.root}/prompt/me", {"id": "old", "prompt": "x"})
    assert ("stop", "fake") == (client.final("old")["reason"], client.final("old")["receipt"]["model"])

    web.files["/m.gguf"], web.cuts, web.ranges = data, [1000], []
    assert "applied" == end(client, made, web, 2, data)["phase"]
    assert [None, "bytes=1000-"] == web.ranges
    folder = made.folder / "state" / "models" / f"sha256-{hashlib.sha256(data).hexdigest()}"
    assert data == (folder / "m.gguf").read_bytes()
