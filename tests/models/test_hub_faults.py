"""Faults of a hub or a web server inside a trial: a resumed success, or a roll-back with one plain sentence.

The command is the one that a trial starts (`edged model pull`); its end is given to the trial's machine.
"""

from __future__ import annotations

import hashlib
import json
import re
import urllib.request
from collections.abc import Callable
from email.message import Message
from pathlib import Path

import pytest

from edged.agent.model_pull import failure_of
from edged.commands.main import main
from edged.config.schema import build
from edged.core.errors import ModelError
from edged.fleet import trial_events as t
from edged.fleet.plan import plan
from edged.fleet.trial import Trial
from edged.models.store import download as downloads
from edged.models.store.download import Remote, download
from edged.models.store.store import Store
from tests.models.web import Web, quiet

API, FILE = "/api/models/org/m/revision/main", "/org/m/resolve/c0ffee/q.gguf"
HUB = "hf:org/m/q.gguf"


@pytest.fixture
def data(tiny_gguf: Path) -> bytes:
    return tiny_gguf.read_bytes()


@pytest.fixture
def hub(web: Web, monkeypatch: pytest.MonkeyPatch, data: bytes) -> Web:
    """A hub with one file, which is also at the address `/m.gguf`."""
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    monkeypatch.setattr(downloads, "_wait", lambda _error, _tries: 0.0)
    lfs = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    web.files[API] = json.dumps({"sha": "c0ffee", "siblings": [{"rfilename": "q.gguf", "lfs": lfs}]}).encode()
    web.files[FILE] = web.files["/m.gguf"] = data
    return web


@pytest.fixture
def fetch(
    hub: Web, tmp_path: Path, data: bytes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], str | None]:
    """Runs the step `fetch` of a trial; gives None where the trial goes on, else the reason of the roll-back."""
    monkeypatch.setenv("EDGED_STATE_DIR", str(tmp_path / "state"))
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    config = tmp_path / "edged.yaml"
    config.write_text("{}")

    def step(source: str) -> str | None:
        source = f"{hub.url}/m.gguf" if source == "address" else source
        target = build({"model": {"source": source, "digest": digest}})
        trial = Trial(plan(build({}), target), target, 0, lambda: 10**12, lambda: 0.0, link_up=True)
        assert [t.Fetch()] == trial.start()
        capsys.readouterr()
        code = main(["model", "pull", source, "--json", "--digest", digest, "--config", str(config)])
        output = capsys.readouterr().out.encode()
        store = Store(tmp_path / "state" / "models")
        if code == 0:
            assert [data] == [model.path.read_bytes() for model in store.list()]
            assert [t.Verify()] == trial.process(t.Fetched())
            return None
        assert [] == store.list()
        failure = failure_of(output, code)
        (undo,) = trial.process(t.Failed(failure.code, failure.message))
        assert isinstance(undo, t.Undo)
        assert trial.ended
        assert undo.reason.startswith(f"{source} could not be fetched: ")
        assert not [word for word in ("Traceback", "see the log", "Error(", "\n") if word in undo.reason]
        return undo.reason

    return step


@pytest.mark.parametrize("source", [HUB, "address"])
def test_p04_a_connection_that_breaks_off_in_the_middle_is_resumed(
    hub: Web, fetch: Callable[[str], str | None], source: str
) -> None:
    hub.cuts = [100, 10**6, 1000, 2000, 5000] if source == HUB else [1000, 2000, 5000]  # of the API's answer, first
    assert None is fetch(source)
    assert {"bytes=1000-", "bytes=3000-", "bytes=8000-"} <= set(hub.ranges)


@pytest.mark.parametrize("source", [HUB, "address"])
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("cut", "cannot be (fetched|requested) from 127.0.0.1 .*the connection ended early"),
        ("longer", "cannot be fetched|not the expected file"),
        ("huge", "needs .* MB of disk|not the expected file"),
        ("shorter", "not the expected file"),
        ("bytes", "not the expected file"),
        ("truncated", "not the expected file"),
        ("junk", "not the expected file"),
    ],
)
def test_p06_a_server_that_lies_about_length_or_bytes_is_rolled_back(
    hub: Web, fetch: Callable[[str], str | None], data: bytes, source: str, fault: str, said: str
) -> None:
    path = FILE if source == HUB else "/m.gguf"
    match fault:
        case "cut":
            hub.cuts = [0] * 100
        case "longer" | "huge" | "shorter":
            hub.scoped_length = (path, {"longer": "99999999", "huge": "9" * 16, "shorter": "5000"}[fault])
        case "bytes":
            hub.files[path] = data[:-1] + bytes([data[-1] ^ 1])
        case "truncated":
            hub.files[path] = data[:-1]
        case _:
            hub.files[path] = b"<html>no model</html>"
    assert re.search(said, str(fetch(source)))
    hub.cuts, hub.scoped_length, hub.files[path] = [], None, data
    assert None is fetch(source), "nothing of it is left in the way of the next try"


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (401, {}, "asks for a login"),
        (403, {}, "asks for a login"),
        (404, {}, "does not have"),
        (410, {}, "does not have"),
        (429, {"Retry-After": "1"}, "had too many requests"),
        (429, {"Retry-After": "9" * 30}, "had too many requests"),
        (500, {}, "Internal Server Error"),
        (503, {}, "Service Unavailable"),
        (302, {"Location": "SELF"}, "redirects in a circle"),
        (302, {"Location": "/next/0"}, "redirects in a circle"),
        (302, {"Location": "ftp://127.0.0.1/m.gguf"}, "not encrypted"),
        (302, {"Location": "file:///etc/passwd"}, "to no web address"),
        (302, {"Location": "http://["}, "not valid"),
        (302, {}, "redirects"),
        (304, {}, "redirects"),
    ],
)
@pytest.mark.parametrize("where", [API, FILE, "/m.gguf"])
def test_p04_each_refusal_of_a_server_is_one_plain_sentence(
    hub: Web, fetch: Callable[[str], str | None], where: str, status: int, headers: dict[str, str], said: str
) -> None:
    headers = {name: where if value == "SELF" else value for name, value in headers.items()}
    hub.scripted[where] = [(status, headers)]
    for number in range(9):
        hub.scripted[f"/next/{number}"] = [(302, {"Location": f"/next/{number + 1}"})]
    reason = fetch("address" if where == "/m.gguf" else HUB)
    assert said in str(reason)


@pytest.mark.parametrize("where", [API, FILE, "/m.gguf"])
@pytest.mark.parametrize("status", [429, 503])
def test_p04_a_server_that_is_busy_for_a_moment_is_asked_again(
    hub: Web, fetch: Callable[[str], str | None], where: str, status: int
) -> None:
    hub.scripted[where] = [(status, {"Retry-After": "1"}), (0, {})]
    assert None is fetch("address" if where == "/m.gguf" else HUB)


def test_p04_a_redirect_to_another_place_is_followed(hub: Web, fetch: Callable[[str], str | None]) -> None:
    hub.scripted["/m.gguf"] = [(302, {"Location": FILE})]
    assert None is fetch("address")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"{",
        b"<html>",
        b"[]",
        b"null",
        b"{}",
        b'{"siblings":{}}',
        b'{"siblings":[1]}',
        b'{"siblings":[{"rfilename":1}]}',
        b'{"siblings":[{"rfilename":"q.gguf","size":-1}]}',
        b'{"siblings":[{"rfilename":"q.gguf","lfs":[]}]}',
        b'{"siblings":[{"rfilename":"q.gguf","lfs":{"size":"1"}}]}',
        b'{"siblings":[{"rfilename":"q.gguf","lfs":{"size":1,"sha256":7}}]}',
        b'{"siblings":[{"rfilename":"q.gguf"}],"sha":5}',
        b'{"siblings":[{"rfilename":"q.gguf","lfs":{"size":1000000000000000000}}]}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_p04_an_api_that_answers_junk_is_one_plain_sentence(
    hub: Web, fetch: Callable[[str], str | None], answer: bytes
) -> None:
    hub.files[API] = answer
    assert fetch(HUB) is not None


def test_a_wrong_digest_leaves_nothing_in_the_way_of_the_right_file(
    hub: Web, fetch: Callable[[str], str | None], data: bytes
) -> None:
    """The hub's own SHA-256 belongs to another file; later it has the right one."""
    other, right = b"GGUF" + bytes(len(data) - 4), hub.files[API]
    lfs = {"size": len(other), "sha256": hashlib.sha256(other).hexdigest()}
    hub.files[API] = json.dumps({"sha": "c0ffee", "siblings": [{"rfilename": "q.gguf", "lfs": lfs}]}).encode()
    hub.files[FILE] = other
    assert "correct the digest or the source" in str(fetch(HUB))
    hub.files[API], hub.files[FILE] = right, data
    assert None is fetch(HUB)


def redirected(before: str, after: str, **headers: str) -> urllib.request.Request | None:
    request = urllib.request.Request(before, headers=headers)
    return downloads._Redirects().redirect_request(request, None, 302, "Found", Message(), after)


def test_a_redirect_from_https_to_http_is_not_followed_and_a_login_is_not_given_to_another_host() -> None:
    with pytest.raises(ModelError, match="not encrypted"):
        redirected("https://a/m", "http://a/m")
    for after, kept in (("https://a/n", True), ("https://b/n", False), ("https://a:444/n", False)):
        request = redirected("https://a/m", after, Authorization="Basic x")
        assert request is not None
        assert kept == request.has_header("Authorization")


def test_a_file_without_a_size_is_fetched_while_the_disk_has_room(
    hub: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr(downloads, "_ROOM_STEP", 1000)
    hub.files["/m.gguf"], hub.length = data * 5, "unknown"
    looks: list[int] = []

    def room(size: int) -> None:
        looks.append(size)
        if len(looks) > 1:
            raise ModelError("no_disk", "no room")

    with pytest.raises(ModelError, match="no room"):
        download(Remote(f"{hub.url}/m.gguf", "m", room=room), tmp_path / "part", quiet)
    assert [1000, 1000] == looks
