"""The application: routes, errors, and the connection's life."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from edged.config.schema import Mqtt
from edged.serve import metrics
from edged.serve.bodies import read_bytes
from edged.serve.broker import Broker
from edged.serve.console import Console
from edged.serve.errors import error_handlers
from edged.serve.fleet_state import FleetState
from edged.serve.guard import COOKIE, Guard, is_token
from edged.serve.ollama_api import OllamaApi
from edged.serve.openai_api import OpenAiApi
from edged.serve.watchers import Watchers

MAX_LOGIN: Final = 4096  # bytes of the login form
STATIC: Final = Path(__file__).with_name("static")


class ServeOptions(msgspec.Struct, frozen=True):
    """`token` None: loopback alone. `hosts`: further names under which the server is reached. `secure`: over TLS."""

    fleet: str
    requester: str
    token: str | None = None
    hosts: tuple[str, ...] = ()
    secure: bool = False


def make_app(settings: Mqtt, options: ServeOptions) -> ASGIApp:
    """Everything, not connected yet: that happens when the server starts."""
    state = FleetState(options.fleet, time.time)
    watchers = Watchers(state)
    broker = Broker(settings, state, options.requester, watchers.changed)
    watchers.connect(broker)

    @asynccontextmanager
    async def connected(_app: Starlette) -> AsyncIterator[None]:
        broker.start()
        try:
            yield
        finally:
            broker.stop()

    async def page(_request: Request) -> Response:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    async def figures(_request: Request) -> Response:
        return PlainTextResponse(metrics.render(state), media_type=metrics.CONTENT_TYPE)

    async def healthy(_request: Request) -> Response:
        return JSONResponse({"broker": broker.problem or "ok"}, 503 if broker.problem else 200)

    async def described(_request: Request) -> Response:
        return FileResponse(STATIC / "openapi.json", media_type="application/json")

    async def login(request: Request) -> Response:
        return await _login(request, options)

    routes = [
        Route("/", page),
        Route("/login", login, methods=["GET", "POST"]),
        Route("/metrics", figures),
        Route("/healthz", healthy),
        Route("/openapi.json", described),
        *OpenAiApi(broker).routes(),
        *OllamaApi(broker).routes(),
        *Console(broker, watchers).routes(),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    app = Starlette(routes=routes, lifespan=connected, exception_handlers=error_handlers())
    return Guard(app, options.token, options.hosts)


async def _login(request: Request, options: ServeOptions) -> Response:
    if request.method == "GET":
        return FileResponse(STATIC / "login.html")
    given = (await read_bytes(request, MAX_LOGIN)).decode("utf-8", "replace")
    token = dict(pair.partition("=")[::2] for pair in given.split("&")).get("token", "")
    from urllib.parse import unquote_plus

    if options.token is None or not is_token(unquote_plus(token), options.token):
        return RedirectResponse("/login?wrong", 303)
    response = RedirectResponse("/", 303)
    response.set_cookie(COOKIE, options.token, httponly=True, samesite="strict", secure=options.secure)
    return response
