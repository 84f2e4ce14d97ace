"""Work for a client that may go away in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

T = TypeVar("T")


async def run_until_gone(request: Request, work: Awaitable[T]) -> T | Response:
    """The result of `work`. It is cancelled when the client disconnects; the response that nobody reads is empty."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        return Response(status_code=499)
    finally:
        for task in (working, gone):
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


async def _gone(request: Request) -> None:
    """Returns when the client has disconnected. The body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
