"""Request bodies."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request

from edged.core.errors import BadValue
from edged.wire import strict_json

MAX_BODY: Final = 2_000_000  # bytes


class TooLargeError(Exception):
    """The body has more bytes than are read."""


async def read_bytes(request: Request, most: int = MAX_BODY) -> bytes:
    """The body, of at most `most` bytes. Raises TooLargeError."""
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise TooLargeError
        chunks.append(chunk)
    return b"".join(chunks)


async def read_object(request: Request) -> dict[str, Any]:
    """The body's JSON object. Raises BadValue, TooLargeError."""
    document = strict_json.loads(await read_bytes(request))
    if not isinstance(document, dict):
        raise BadValue("body", "must be a JSON object")
    return document
