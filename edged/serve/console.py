"""What the page in the browser asks for: the fleet as it changes, one device, a chat, and config pushes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from edged.core.errors import BadValue, BrokerError, EdgedError
from edged.serve import openai_reply as reply
from edged.serve.bodies import read_object
from edged.serve.broker import Broker
from edged.serve.fleet_state import Device
from edged.serve.layer_pushes import diff_of, push, undo
from edged.serve.merged_layers import layers_of, merged
from edged.serve.prompts import Ended, NoDeviceError, ask, find_device
from edged.serve.until_gone import run_until_gone
from edged.serve.watchers import Watchers

KEEP_ALIVE: Final = 15.0  # seconds without news after which a comment is sent: proxies close silent streams


class Console:
    """The routes below `/console`, on one connection to the broker."""

    def __init__(self, broker: Broker, watchers: Watchers) -> None:
        self._broker = broker
        self._watchers = watchers

    def routes(self) -> list[Route]:
        """Everything that the page uses."""
        return [
            Route("/console/fleet", self.fleet),
            Route("/console/device/{name}", self.device),
            Route("/console/chat", self.chat, methods=["POST"]),
            Route("/console/config/diff", self.diff, methods=["POST"]),
            Route("/console/config/push", self.push, methods=["POST"]),
            Route("/console/config/undo", self.undo, methods=["POST"]),
        ]

    async def fleet(self, _request: Request) -> Response:
        """Server-sent events: all devices, then those that change."""
        return StreamingResponse(self._fleet(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def _fleet(self) -> AsyncIterator[bytes]:
        with self._watchers.watch() as watcher:
            yield self._watchers.whole()
            while True:
                try:
                    yield await asyncio.wait_for(watcher.get(), KEEP_ALIVE)
                except asyncio.TimeoutError:
                    yield b": still here\n\n"

    async def device(self, request: Request) -> Response:
        """Everything about one device."""
        device = self._broker.state.devices.get(request.path_params["name"])
        if device is None:
            return _failed(404, "no device of this name is known")
        return JSONResponse(self._about(device))

    def _about(self, device: Device) -> dict[str, Any]:
        layers = layers_of(self._broker.state, device)
        return {
            "name": device.name, "status": device.status, "health": device.health, "telemetry": device.telemetry,
            "reported": device.reported, "history": device.history, "events": list(device.events)[::-1],
            "readings": [list(_values(reading)) for reading in device.readings], "layers": layers,
            "settings": merged(layers),
        }  # fmt: skip

    async def chat(self, request: Request) -> Response:
        """A prompt with its answer as server-sent events `text`, then `final` or `failed`."""
        try:
            wanted = await read_object(request)
            name = wanted.pop("device", None)
            device = await find_device(self._broker, name if isinstance(name, str) else "")
        except (BadValue, NoDeviceError) as error:
            return _failed(400, str(error))
        except BrokerError as error:
            return _failed(503, str(error))
        events = self._chat(device.name, wanted)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def _chat(self, device: str, body: dict[str, Any]) -> AsyncIterator[bytes]:
        parts = ask(self._broker, device, {**body, "stream": True})
        async with aclosing(parts) as closing:
            try:
                async for part in closing:
                    grown = part.rest if isinstance(part, Ended) else part
                    if grown.text or grown.reasoning:
                        yield _event("text", {"text": grown.text, "reasoning": grown.reasoning})
                    if isinstance(part, Ended):
                        failed = reply.is_error(part.final)
                        message = reply.message_of(part.final) if failed else None
                        yield _event("failed" if failed else "final", {"final": part.final, "message": message})
            except EdgedError as error:
                yield _event("failed", {"message": str(error)})

    async def diff(self, request: Request) -> Response:
        """What a push would change."""
        return await self._config(request, lambda wanted: _immediately(diff_of(self._broker.state, wanted)))

    async def push(self, request: Request) -> Response:
        """Push a layer; what becomes of it is in each device's reported document."""
        return await self._config(request, lambda wanted: push(self._broker, wanted))

    async def undo(self, request: Request) -> Response:
        """Push the settings that a layer had before."""
        return await self._config(request, lambda wanted: undo(self._broker, wanted))

    async def _config(self, request: Request, work: Any) -> Response:
        try:
            done = await run_until_gone(request, work(await read_object(request)))
        except EdgedError as error:
            return _failed(503 if "broker" in type(error).__name__.lower() else 400, str(error))
        return done if isinstance(done, Response) else JSONResponse(done)


async def _immediately(result: dict[str, Any]) -> dict[str, Any]:
    return result


def _values(reading: Any) -> tuple[Any, ...]:
    return tuple(getattr(reading, field) for field in reading.__struct_fields__)


def _event(kind: str, document: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(document, ensure_ascii=False)}\n\n".encode()


def _failed(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message}}, status)
