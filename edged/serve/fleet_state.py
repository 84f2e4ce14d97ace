"""What is known of a fleet: the newest documents of each device, its last events and an hour of readings.

Owned by the event loop. Whatever devices publish is data of strangers: every size is bounded, every shape is checked.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from edged.config.checks import NAME
from edged.core.errors import BadValue
from edged.wire import strict_json

MAX_DEVICES: Final = 20_000
# Bytes of a document that is kept, by its kind; several times what a device publishes.
MAX_DOCUMENT: Final = {
    "health": 64_000, "telemetry": 32_000, "event": 16_000, "config/reported": 64_000, "config/history": 256_000,
}  # fmt: skip
MAX_LAYER: Final = 262_144  # bytes: what a device reads
MAX_LAYERS: Final = 1000
MAX_EVENT_KEYS: Final = 20
MAX_EVENT_TEXT: Final = 600
MAX_EVENTS: Final = 100
MAX_READINGS: Final = 720  # an hour at the default interval of 10 s, twice over
READINGS_FOR: Final = 3600.0  # seconds
STATUSES: Final = ("starting", "online", "safe", "draining", "offline")

Document = dict[str, Any]


class Reading(msgspec.Struct, frozen=True, array_like=True):
    """One point of a device's curves. `at` is Unix time; None where the board does not report the value."""

    at: float
    tokens_per_second: float | None
    temperature_c: float | None
    memory_used: float | None
    cpu_percent: float | None
    open_prompts: float | None
    answered: float | None = None  # prompts since the device's daemon started


class Device:
    """The newest of everything that one device published. `seen_at`: Unix time of its last telemetry, 0 before any."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.status = "unknown"
        self.health: Document = {}
        self.telemetry: Document = {}
        self.reported: Document = {}
        self.history: list[Document] = []
        self.events: deque[Document] = deque(maxlen=MAX_EVENTS)
        self.readings: deque[Reading] = deque(maxlen=MAX_READINGS)
        self.seen_at = 0.0

    @property
    def connected(self) -> bool:
        """Whether the device is at the broker and takes prompts, now or soon."""
        return self.status in {"online", "starting"}

    @property
    def model(self) -> str:
        """The name of its model, empty where it is not known."""
        name = self._part(self.health, "model").get("name")
        return name if isinstance(name, str) else ""

    @property
    def open_prompts(self) -> float:
        """Prompts that wait or run, as last reported."""
        queue = self._part(self.telemetry, "queue") or self._part(self.health, "queue")
        return number(queue.get("open")) or 0.0

    def take_telemetry(self, document: Document, now: float) -> None:
        """Keep a reading, and drop those that are older than an hour."""
        self.telemetry = document
        self.seen_at = now
        memory, speed = self._part(document, "memory"), self._part(document, "speed")
        self.readings.append(
            Reading(
                now,
                number(speed.get("tokens_per_second")),
                number(document.get("temperature_c")),
                number(memory.get("used_bytes")),
                number(self._part(document, "cpu").get("percent")),
                self.open_prompts,
                number(self._part(document, "queue").get("answered")),
            )
        )
        while self.readings and self.readings[0].at < now - READINGS_FOR:
            self.readings.popleft()

    @staticmethod
    def _part(document: Document, key: str) -> Document:
        part = document.get(key)
        return part if isinstance(part, dict) else {}


class FleetState:
    """See the module. `layers`: the payload of every retained config layer by its name; `wall` returns Unix time."""

    def __init__(self, fleet: str, wall: Callable[[], float]) -> None:
        self.fleet = fleet
        self.devices: dict[str, Device] = {}
        self.layers: dict[str, bytes] = {}
        self.changed: set[str] = set()  # devices that changed since a reader last cleared it
        self._root = f"edged/v1/{fleet}/"
        self._wall = wall

    def subscriptions(self) -> tuple[str, ...]:
        """Topic filters of everything that `apply` reads."""
        device = f"{self._root}device/+/"
        kinds = ("status", "health", "telemetry", "event", "config", "config/reported", "config/history")
        return (f"{self._root}config", f"{self._root}group/+/config", *(device + kind for kind in kinds))

    def apply(self, topic: str, payload: bytes) -> None:
        """One message. Anything that is not a document of a device or a layer is passed over."""
        if not topic.startswith(self._root):
            return
        what = topic[len(self._root) :]
        if what == "config" or (what.startswith("group/") and what.endswith("/config")):
            group = what.split("/")[1] if what != "config" else ""
            if what == "config" or NAME.match(group):
                self._apply_layer(f"group:{group}" if group else "fleet", payload)
            return
        parts = what.split("/", 2)
        if len(parts) != 3 or parts[0] != "device" or not NAME.match(parts[1]):
            return
        _, name, kind = parts
        if kind == "config":
            self._apply_layer(f"device:{name}", payload)
        elif kind == "status" and not payload:
            self._forget(name)
        elif payload and (device := self._device(name)) is not None:
            self._apply_to(device, kind, payload)
        self.changed.add(name)

    def _device(self, name: str) -> Device | None:
        device = self.devices.get(name)
        if device is None and len(self.devices) < MAX_DEVICES:
            device = self.devices[name] = Device(name)
        return device

    def _forget(self, name: str) -> None:
        self.devices.pop(name, None)

    def _apply_layer(self, name: str, payload: bytes) -> None:
        known = name in self.layers or len(self.layers) < MAX_LAYERS
        if payload and len(payload) <= MAX_LAYER and known:
            self.layers[name] = payload
        else:
            self.layers.pop(name, None)

    def _apply_to(self, device: Device, kind: str, payload: bytes) -> None:
        if kind == "status":
            word = payload[:16].decode("ascii", "replace")
            device.status = word if word in STATUSES else "unknown"
            return
        document = parsed(payload, MAX_DOCUMENT.get(kind, 0))
        if document is None:
            return
        if kind == "health":
            device.health = document
        elif kind == "telemetry":
            device.take_telemetry(document, self._wall())
        elif kind == "event":
            device.events.append({"at": self._wall(), **_short(document)})
        elif kind == "config/reported":
            device.reported = document
        elif kind == "config/history":
            decisions = document.get("decisions")
            device.history = [one for one in decisions if isinstance(one, dict)] if isinstance(decisions, list) else []


def parsed(payload: bytes, most: int) -> Document | None:
    """The JSON object of a payload, None where it is anything else or has more than `most` bytes."""
    if len(payload) > most:
        return None
    try:
        document = strict_json.loads(payload)  # no NaN, no lone surrogates: one device must not stop the page of all
    except BadValue:
        return None
    return document if isinstance(document, dict) else None


def _short(event: Document) -> Document:
    """The texts and numbers of an event, without what it nests."""
    kept = [(key[:40], value) for key, value in event.items() if value is None or isinstance(value, (str, int, float))]
    return {key: value[:MAX_EVENT_TEXT] if isinstance(value, str) else value for key, value in kept[:MAX_EVENT_KEYS]}


def number(value: object) -> float | None:
    """A finite number, None for anything else that a device may publish in its place."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        converted = float(value)
    except OverflowError:
        return None
    return converted if math.isfinite(converted) else None
