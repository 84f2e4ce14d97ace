"""Errors outside a handler: unknown paths, wrong methods, bodies that are too large, and defects of our own.

Each in the shape of the API that its path belongs to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from edged.serve.bodies import MAX_BODY, TooLargeError


def error_handlers() -> Mapping[Any, Any]:
    """By exception, for the application."""
    return {
        HTTPException: _http, TooLargeError: _too_large, ClientDisconnect: _gone, Exception: _defect,
    }  # fmt: skip


async def _http(request: Request, error: HTTPException) -> Response:
    sentences = {
        404: f"there is nothing at {request.url.path[:200]}",
        405: f"{request.method} is not supported here",
    }
    message = sentences.get(error.status_code, error.detail)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "refused")
    return _shaped(request, error.status_code, "invalid_request_error", code, message, error.headers)


async def _too_large(request: Request, _error: Exception) -> Response:
    message = f"the request has more than {MAX_BODY:,} bytes"
    return _shaped(request, 413, "invalid_request_error", "too_large", message, {"Connection": "close"})


async def _gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _defect(request: Request, _error: Exception) -> Response:
    return _shaped(request, 500, "server_error", "internal", "edgectl serve has a defect; its log has the details")


def _shaped(
    request: Request, status: int, kind: str, code: str, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": message}, status, headers)
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": code}}, status, headers)
