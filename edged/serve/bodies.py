"""Request bodies."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request

from edged.core.errors import BadValue
from edged.wire import strict_json

MAX_BODY: Final = 2_000_000  # bytes


class TooLargeError(Exception):
    """The body is over MAX_BODY."""


async def read_object(request: Request) -> dict[str, Any]:
    """The body's JSON object. Raises BadValue, TooLargeError."""
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY:
            raise TooLargeError
        chunks.append(chunk)
    document = strict_json.loads(b"".join(chunks))
    if not isinstance(document, dict):
        raise BadValue("body", "must be a JSON object")
    return document
