"""The options of `edgectl serve`, and the document that describes what is served."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from starlette.routing import Route

from edged.commands import edgectl
from edged.config.schema import Mqtt, Settings
from edged.core.errors import ConfigError
from edged.serve import app, main


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    main.add_options(parser)
    return parser.parse_args(words)


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("a-token-of-some-length\n")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("listen", ["0.0.0.0:8080", "[::]:8080", "192.0.2.1:80", "board.lan:80"])
def test_another_address_than_the_loopback_needs_a_token(listen: str) -> None:
    with pytest.raises(ConfigError, match="needs --token-file"):
        main.serve(Settings(), options("--listen", listen), "me")


@pytest.mark.parametrize("listen", ["8080", ":8080", "127.0.0.1:", "127.0.0.1:99999", "127.0.0.1:x"])
def test_an_address_that_is_none_is_refused(listen: str) -> None:
    with pytest.raises(ConfigError, match="must be ADDRESS:PORT"):
        main.serve(Settings(), options("--listen", listen), "me")


def test_certificate_and_key_belong_together() -> None:
    with pytest.raises(ConfigError, match="--https-cert and --https-key together"):
        main.serve(Settings(), options("--https-cert", "cert.pem"), "me")


def test_a_token_that_others_can_read_or_that_is_short_is_refused(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listen = ("--listen", "0.0.0.0:0", "--token-file", str(token), "--https-key", "stops-here")
    with pytest.raises(ConfigError, match="together"):  # the token is accepted
        main.serve(Settings(), options(*listen), "me")
    token.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        main.serve(Settings(), options(*listen), "me")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(token.parent))
    with pytest.raises(ConfigError, match="together"):
        main.serve(Settings(), options(*listen), "me")
    token.write_text("short")
    with pytest.raises(ConfigError, match="16 or more"):
        main.serve(Settings(), options(*listen), "me")


def test_its_options_and_those_of_the_broker_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[argparse.Namespace] = []
    monkeypatch.setattr(edgectl, "serve", lambda _settings, arguments, _requester: given.append(arguments) or 0)
    words = ["edgectl", "serve", "--url", "mqtts://h", "--cert", "a", "--key", "b", "--https-cert", "c"]
    monkeypatch.setattr("sys.argv", [*words, "--https-key", "d"])
    assert 0 == edgectl.main()
    assert (Path("c"), Path("d")) == (given[0].https_cert, given[0].https_key)


def test_the_published_document_has_every_path_of_the_apis() -> None:
    document = json.loads((app.STATIC / "openapi.json").read_text(encoding="utf-8"))
    served = app.make_app(Mqtt(), app.ServeOptions("home", "me"))
    routes = [route for route in served._app.routes if isinstance(route, Route)]  # type: ignore[attr-defined]
    paths = {
        (route.path.replace(":path", ""), method)
        for route in routes
        for method in (route.methods or set()) - {"HEAD"}
        if not route.path.startswith("/console") and route.path not in {"/", "/login", "/openapi.json"}
    }
    described = {(path, method.upper()) for path, inner in document["paths"].items() for method in inner}
    assert paths == described
