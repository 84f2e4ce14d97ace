"""The OpenAI-compatible API below `/v1`: models, chat completions, completions."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from edged.core.errors import BadValue, BrokerError, EdgedError
from edged.serve import openai_reply as reply
from edged.serve.bodies import read_object
from edged.serve.broker import Broker
from edged.serve.openai_request import chat_prompt, completion_prompt, wants_usage
from edged.serve.prompts import Ended, NoDeviceError, Part, ask, find_device, models_of
from edged.serve.until_gone import run_until_gone

Prompt = Callable[[dict[str, Any]], dict[str, Any]]


class OpenAiApi:
    """The routes, on one connection to the broker."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._started = int(time.time())

    def routes(self) -> list[Route]:
        """Everything below `/v1`."""
        return [
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
        ]

    async def models(self, _request: Request) -> Response:
        """Every device that takes prompts, and `fleet` for any of them."""
        if self._broker.problem:
            return reply.error(503, "server_error", "unavailable", f"no broker: {self._broker.problem}")
        await self._broker.settle()
        return JSONResponse({"object": "list", "data": [self._model(name) for name in models_of(self._broker.state)]})

    async def model(self, request: Request) -> Response:
        """One of them."""
        try:
            await find_device(self._broker, request.path_params["name"])
        except NoDeviceError as error:
            return _no_device(error)
        except BrokerError as error:
            return reply.error(503, "server_error", "unavailable", str(error))
        return JSONResponse(self._model(request.path_params["name"]))

    async def chat(self, request: Request) -> Response:
        """`chat/completions`."""
        return await self._answer(request, chat_prompt, chat=True)

    async def completions(self, request: Request) -> Response:
        """`completions`: raw text."""
        return await self._answer(request, completion_prompt, chat=False)

    def _model(self, name: str) -> dict[str, Any]:
        device = self._broker.state.devices.get(name)
        about = {} if device is None else {"edged": {"model": device.model, "status": device.status}}
        return {"id": name, "object": "model", "created": self._started, "owned_by": "edged", **about}

    async def _answer(self, request: Request, prompt: Prompt, *, chat: bool) -> Response:
        try:
            wanted = await read_object(request)
            name = wanted.get("model")
            if not isinstance(name, str):
                raise BadValue("model", "must be the name of a device, or fleet")
            body = prompt(wanted)
            device = await find_device(self._broker, name)
        except BadValue as error:
            return reply.error(400, "invalid_request_error", "invalid", str(error), param=error.path)
        except NoDeviceError as error:
            return _no_device(error)
        except BrokerError as error:
            return reply.error(503, "server_error", "unavailable", str(error))
        answer_id = f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}"
        shapes = reply.Shapes(answer_id, name, int(time.time()), chat=chat)
        streams = wanted.get("stream") is True
        parts = ask(self._broker, device.name, {**body, "stream": streams})
        try:
            if streams:
                return await _streamed(request, parts, shapes, first_event=chat, with_usage=wants_usage(wanted))
            return await run_until_gone(request, _whole(parts, shapes))
        except EdgedError as error:
            return reply.error(503, "server_error", "unavailable", str(error))


async def _streamed(
    request: Request, parts: AsyncGenerator[Part], shapes: reply.Shapes, *, first_event: bool, with_usage: bool
) -> Response:
    """A stream, or an error with a status of its own where no text came before it."""
    first = await run_until_gone(request, anext(parts))
    if isinstance(first, Response):
        return first
    if isinstance(first, Ended) and reply.is_error(first.final):
        return reply.error_of(first.final)
    events = _events(first, parts, shapes, first_event=first_event, with_usage=with_usage)
    return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _whole(parts: AsyncGenerator[Part], shapes: reply.Shapes) -> Response:
    async with aclosing(parts) as closing:
        async for part in closing:
            if isinstance(part, Ended):
                failed = reply.is_error(part.final)
                return reply.error_of(part.final) if failed else JSONResponse(shapes.whole(part.final))
    raise BrokerError("the answer ended early")


async def _events(
    first: Part, parts: AsyncGenerator[Part], shapes: reply.Shapes, *, first_event: bool, with_usage: bool
) -> AsyncIterator[bytes]:
    """Server-sent events. Closing it (the client is gone) closes `parts`, which cancels the prompt."""
    async with aclosing(parts) as closing:
        if first_event:
            yield _event(shapes.first())
        part = first
        try:
            while not isinstance(part, Ended):
                yield _event(shapes.grown(part))
                part = await anext(closing)
        except EdgedError as error:
            yield _event({"error": reply.error_body("server_error", "failed", str(error))})
            return
        if reply.is_error(part.final):
            _, kind, code = reply.ERRORS.get(str(part.final.get("reason")), reply.ERRORS["failed"])
            yield _event({"error": reply.error_body(kind, code, reply.message_of(part.final))})
            return
        if part.rest.text or part.rest.reasoning:
            yield _event(shapes.grown(part.rest))
        for event in shapes.ends(part.final):
            yield _event(event)
        if with_usage:
            yield _event(shapes.usage(part.final))
        yield b"data: [DONE]\n\n"


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _no_device(error: NoDeviceError) -> JSONResponse:
    if error.known:
        return reply.error(503, "server_error", "unavailable", str(error))
    return reply.error(404, "invalid_request_error", "model_not_found", str(error), param="model")
