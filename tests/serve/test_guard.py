"""Who reaches the server: names, origins, the token."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from edged.serve.guard import Guard

TOKEN = "a-token-of-some-length"
LOCAL = {"host": "127.0.0.1:8080"}


def client(token: str | None = None, hosts: tuple[str, ...] = ()) -> TestClient:
    return TestClient(Guard(PlainTextResponse("reached"), token, hosts), follow_redirects=False)


def status(of: TestClient, headers: dict[str, str], method: str = "GET", path: str = "/v1/models") -> int:
    return int(of.request(method, path, headers={**LOCAL, **headers}).status_code)


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost:8080", "[::1]:8080", "LOCALHOST"])
def test_names_of_the_loopback_are_served(host: str) -> None:
    assert 200 == status(client(), {"host": host})


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::1", "2130706433", "localhost@evil"])
def test_another_name_is_refused_without_a_token(host: str) -> None:
    assert 421 == status(client(), {"host": host})


def test_a_named_host_is_served() -> None:
    assert 200 == status(client(hosts=("board.lan",)), {"host": "board.lan:8080"})


@pytest.mark.parametrize(
    ("method", "headers", "expected"),
    [
        ("POST", {"origin": "http://127.0.0.1:8080"}, 200),
        ("POST", {}, 200),  # a program, not a browser
        ("POST", {"origin": "http://evil.example"}, 403),
        ("POST", {"origin": "null"}, 403),
        ("POST", {"origin": "http://127.0.0.1:9999"}, 403),
        ("POST", {"sec-fetch-site": "cross-site"}, 403),
        ("GET", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ("GET", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 200),
        ("GET", {"sec-fetch-site": "same-origin"}, 200),
    ],
)
def test_a_page_of_another_site_reaches_nothing(method: str, headers: dict[str, str], expected: int) -> None:
    assert expected == status(client(), headers, method)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 401),
        ({"authorization": f"Bearer {TOKEN}"}, 200),
        ({"authorization": f"bearer {TOKEN}"}, 200),
        ({"authorization": f"Bearer {TOKEN}x"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"cookie": f"edged_token={TOKEN}"}, 200),
        ({"cookie": "edged_token=wrong"}, 401),
        ({"cookie": "=;,é"}, 401),
        ({"accept": "text/html"}, 303),
    ],
)
def test_every_request_carries_the_token(headers: dict[str, str], expected: int) -> None:
    raw: Any = [(key.encode(), value.encode()) for key, value in {"host": "board.lan", **headers}.items()]
    assert expected == client(TOKEN).get("/v1/models", headers=raw).status_code


def test_only_the_login_page_is_open() -> None:
    assert [200, 401, 401] == [
        status(client(TOKEN), {}, path=path) for path in ("/login", "/login/x", "/static/app.js")
    ]


def test_answers_carry_the_headers_that_bind_a_browser() -> None:
    headers = client().get("/", headers=LOCAL).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "script-src 'self'" in headers["content-security-policy"]
    assert ("nosniff", "DENY") == (headers["x-content-type-options"], headers["x-frame-options"])
