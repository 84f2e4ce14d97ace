"""A client as anyone could write it, with paho alone: sends a few prompts and shows what comes back."""

from __future__ import annotations

import json
import queue
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from screen import Screen

PROMPTS: tuple[dict[str, Any], ...] = (
    {"prompt": "What is the capital of Japan?", "temperature": 0, "max_tokens": 40},
    {"prompt": "Name the capital of France.", "temperature": 0, "max_tokens": 40},
    {
        "prompt": "Is this review good or bad? The food was cold and the waiter was rude.",
        "temperature": 0,
        "max_tokens": 60,
    },
    {"prompt": "Write two sentences about the sea.", "temperature": 0.7, "seed": 7, "max_tokens": 80},
)
ONLINE_WITHIN = 900.0  # a first start fetches the model
ANSWER_WITHIN = 120.0
READING_WITHIN = 30.0


class Failed(Exception):
    """Why the round failed: one sentence."""


class Peer:
    """A paho client whose messages wait in a queue. `ended` gives a sentence once a wait makes no sense any more."""

    def __init__(self, access: dict[str, Any], ended: Callable[[], str | None]) -> None:
        self.ended = ended
        self.inbox: queue.SimpleQueue[mqtt.MQTTMessage] = queue.SimpleQueue()
        self.refused = ""
        parts = urlsplit(access["url"])
        secure = parts.scheme == "mqtts"
        old = access.get("version") == "3.1.1"
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311 if old else mqtt.MQTTv5)
        if access.get("username"):
            file = access.get("password_file")
            password = Path(file).read_text(encoding="utf-8").split("\n")[0].rstrip("\r") if file else None
            self.client.username_pw_set(access["username"], password)
        if secure:
            self.client.tls_set(ca_certs=access.get("ca"), certfile=access.get("cert"), keyfile=access.get("key"))
        self.client.on_connect = self._on_connect
        self.client.on_message = lambda _client, _data, message: self.inbox.put(message)
        self.client.connect(parts.hostname or "127.0.0.1", parts.port or (8883 if secure else 1883))
        self.client.loop_start()

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self.refused = f"the broker refuses the client: {str(reason).lower()}"

    def next(self, until: float, what: str) -> mqtt.MQTTMessage:
        """The next message. Raises Failed at `until`, or when what it waits for has ended."""
        while time.monotonic() < until:
            try:
                return self.inbox.get(timeout=0.5)
            except queue.Empty:
                if why := self.refused or self.ended():
                    raise Failed(why) from None
        raise Failed(f"{what} did not come in time")

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def wait_online(peer: Peer, root: str, screen: Screen) -> dict[str, Any]:
    """Waits for `online`; gives the newest health. Raises Failed on `safe`, with the error in health."""
    health: dict[str, Any] = {}
    until = time.monotonic() + ONLINE_WITHIN
    status = ""
    with screen.console.status("waiting for the model", spinner="dots"):
        while not (status == "online" and health.get("model", {}).get("state") == "online"):
            message = peer.next(until, "status online")
            if message.topic == f"{root}/status":
                status = message.payload.decode()
            elif message.topic == f"{root}/health":
                health = json.loads(message.payload)
            if health.get("model", {}).get("state") == "safe":
                error = health["model"].get("error", {})
                raise Failed(f"no usable model: {error.get('message', 'see the log')}")
    return health


def ask(peer: Peer, base: str, device: str, body: dict[str, Any], screen: Screen) -> dict[str, Any]:
    """Send one prompt, show the answer as it arrives, give the final."""
    prompt_id = f"run-{uuid.uuid4().hex[:12]}"
    topic = f"{base}/reply/first-light/{device}/{prompt_id}"
    peer.client.publish(f"{base}/device/{device}/prompt/first-light", json.dumps({"id": prompt_id, **body}), qos=1)
    screen.console.print(f"\n[bold cyan]›[/] [bold]{escape(body['prompt'])}[/]")
    shown = 0
    until = time.monotonic() + ANSWER_WITHIN
    while True:
        message = peer.next(until, "an answer")
        if message.topic != topic:
            continue
        document = json.loads(message.payload)
        if document.get("final"):
            screen.end(document["text"][shown:])
            return document  # type: ignore[no-any-return]
        if document.get("at") == shown:
            screen.part(document["text"])
            shown += len(document["text"])


def show_receipt(final: dict[str, Any], screen: Screen) -> None:
    usage, timing, receipt = final["usage"], final["timing"], final["receipt"]
    rate = f"{timing['tokens_per_second']} tokens/s · " if timing["tokens_per_second"] else ""
    screen.console.print(
        f"[dim]{final['reason']} · {usage['prompt_tokens']} + {usage['completion_tokens']} tokens · "
        f"{rate}first token {timing['ttft_ms']} ms · {timing['total_ms']} ms in all\n"
        f"{receipt['device']} · {receipt['model']} · {receipt['quantization']} · {receipt['backend']} · "
        f"seed {receipt['seed']} · {receipt['digest'][:19]}…[/]"
    )


def show_device(reading: dict[str, Any], health: dict[str, Any], screen: Screen) -> None:
    table = Table(box=None, show_header=False)
    memory, worker = reading["memory"], reading["worker"]
    degrees = reading.get("temperature_c")
    rows = {
        "processor": f"{reading['cpu'].get('percent', '–')} % of {reading['cpu'].get('count')} cores",
        "memory": f"{memory['used_bytes'] / 1e6:.0f} of {memory['total_bytes'] / 1e6:.0f} MB used",
        "worker": f"{(worker.get('rss_bytes') or 0) / 1e6:.0f} MB",
        "temperature": "no sensor" if degrees is None else f"{degrees} °C",
        "speed": f"{reading['speed']['tokens_per_second'] or 0:.1f} tokens/s",
    }
    for name, value in rows.items():
        table.add_row(f"[dim]{name}[/]", value)
    screen.console.print(Panel(table, title="telemetry", title_align="left", expand=False))
    colour = {"ok": "green", "degraded": "yellow"}.get(health["state"], "red")
    screen.console.print(
        f"health: [{colour}]{health['state']}[/], {health['model']['name']} by {health['model']['backend']}"
    )
    for finding in health["findings"]:
        screen.console.print(f"  [yellow]{finding['code']}[/]: {escape(finding['advice'])}")


def round_trip(
    access: dict[str, Any], fleet: str, device: str, ended: Callable[[], str | None], screen: Screen
) -> None:
    """Every prompt once, then a reading. `access`: the config's `mqtt`. Raises Failed, OSError."""
    base = f"edged/v1/{fleet}"
    root = f"{base}/device/{device}"
    peer = Peer(access, ended)
    try:
        peer.client.subscribe([(f"{root}/status", 1), (f"{root}/health", 1), (f"{base}/reply/first-light/#", 1)])
        health = wait_online(peer, root, screen)
        for body in PROMPTS:
            final = ask(peer, base, device, body, screen)
            if "error" in final:
                raise Failed(f"{final['reason']}: {final['error']['message']}")
            show_receipt(final, screen)
        peer.client.subscribe(f"{root}/telemetry")
        until = time.monotonic() + READING_WITHIN
        screen.console.print()
        while (message := peer.next(until, "a telemetry reading")).topic != f"{root}/telemetry":
            if message.topic == f"{root}/health":
                health = json.loads(message.payload)
        show_device(json.loads(message.payload), health, screen)
    finally:
        peer.close()
