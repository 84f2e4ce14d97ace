"""Who may reach the server: Host and Origin checks, the token, and the headers that bind the browser.

Without a token only names of the loopback are served, so that a web page elsewhere cannot reach it under a name of its
own (DNS rebinding). With one, every request but that of the login page carries it.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE: Final = "edged_token"
LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
OPEN_PATHS: Final = frozenset({"/login", "/static/login.css", "/static/style.css"})
SECURITY: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """An ASGI application around another. `token` None: loopback alone; `hosts`: further names that are served."""

    def __init__(self, app: ASGIApp, token: str | None, hosts: Collection[str] = ()) -> None:
        self._app = app
        self._token = token
        self._hosts = LOOPBACK | set(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope["method"], scope["path"], Headers(scope=scope))
        app: ASGIApp = self._app if refusal is None else refusal
        await app(scope, receive, _with_headers(send))

    def _refusal(self, method: str, path: str, headers: Headers) -> Response | None:
        host = _host(headers.get("host", ""))
        if self._token is None and host not in self._hosts:
            return _refused(421, f"this server answers to {', '.join(sorted(self._hosts))} alone")
        if not _same_origin(headers, strict=method not in {"GET", "HEAD"}):
            return _refused(403, "a page of another site may not use this server")
        if self._token is None or path in OPEN_PATHS or self._has_token(headers):
            return None
        if method == "GET" and "text/html" in headers.get("accept", ""):
            return RedirectResponse("/login", 303)
        return _refused(401, "give the token: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})

    def _has_token(self, headers: Headers) -> bool:
        assert self._token is not None  # noqa: S101 asked before
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = _cookie(headers.get("cookie", ""))
        return is_token(given, self._token)


def is_token(given: str, token: str) -> bool:
    """Whether a text is the token; takes the same time whatever it is."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def _host(header: str) -> str:
    try:
        return (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return ""


def _same_origin(headers: Headers, *, strict: bool) -> bool:
    """Whether a request comes from our own page or from no page. Browsers send `Origin` with every POST."""
    origin = headers.get("origin")
    if origin is not None:
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return parts.scheme in {"http", "https"} and parts.netloc.lower() == headers.get("host", "").lower()
    site = headers.get("sec-fetch-site")
    if site is None or site in {"same-origin", "none"}:
        return True
    return not strict and headers.get("sec-fetch-mode") == "navigate"


def _cookie(header: str) -> str:
    try:
        morsel = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return "" if morsel is None else morsel.value


def _refused(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": "refused"}}
    return JSONResponse(body, status, headers)


def _with_headers(send: Send) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY.items():
                headers.setdefault(name, value)
        await send(message)

    return with_headers
