"""The open pages: each gets the devices that changed, at most twice a second, encoded once for all.

A page that does not read loses its queue and gets the whole fleet instead; it never makes the server keep more.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from edged.serve.broker import Broker
from edged.serve.fleet_state import Device, FleetState

EVERY: Final = 0.5  # seconds between two updates
MAX_GOLDEN: Final = 8  # answers to golden prompts in an update; the device's page has all
MAX_QUEUED: Final = 8  # updates of a page that does not read


class Watchers:
    """See the module. Owned by the event loop."""

    def __init__(self, state: FleetState) -> None:
        self._state = state
        self._broker: Broker | None = None
        self._queues: set[asyncio.Queue[bytes]] = set()
        self._due = False

    def connect(self, broker: Broker) -> None:
        """Where the state of the connection is read from."""
        self._broker = broker

    def changed(self) -> None:
        """Something changed: the next update is due soon."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_later(EVERY, self._send)

    @contextmanager
    def watch(self) -> Iterator[asyncio.Queue[bytes]]:
        """A queue of the updates for one page."""
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._queues.add(queue)
        try:
            yield queue
        finally:
            self._queues.discard(queue)

    def whole(self) -> bytes:
        """The event that sets the whole fleet."""
        return self._event("fleet", sorted(self._state.devices))

    def _send(self) -> None:
        self._due = False
        changed, self._state.changed = self._state.changed, set()
        if not self._queues:
            return
        update = self._event("change", sorted(changed))
        whole: bytes | None = None
        for queue in self._queues:
            if queue.qsize() < MAX_QUEUED:
                queue.put_nowait(update)
                continue
            whole = whole or self.whole()
            while not queue.empty():
                queue.get_nowait()
            queue.put_nowait(whole)

    def _event(self, kind: str, names: list[str]) -> bytes:
        devices = {name: self._state.devices.get(name) for name in names}
        document = {
            "fleet": self._state.fleet,
            "problem": self._broker.problem if self._broker is not None else "",
            "refused": list(self._broker.refused) if self._broker is not None else [],
            "devices": {name: None if device is None else summary(device) for name, device in devices.items()},
        }
        return f"event: {kind}\ndata: {json.dumps(document, ensure_ascii=False)}\n\n".encode()


def summary(device: Device) -> dict[str, Any]:
    """What the table shows of a device."""
    health, telemetry, reported = device.health, device.telemetry, device.reported
    golden = reported.get("golden")
    return {
        "status": device.status,
        "health": health.get("state"),
        "findings": health.get("findings") if isinstance(health.get("findings"), list) else [],
        "model": device.model,
        "telemetry": {key: telemetry.get(key) for key in ("temperature_c", "memory", "speed", "queue", "throttled")},
        "reported": reported | {"golden": golden[:MAX_GOLDEN] if isinstance(golden, list) else []},
        "seen_at": device.seen_at,
    }
