"""A client as anyone could write it, with paho alone: sends a few prompts and shows what comes back.

`first_light_client.py URL FLEET DEVICE DAEMON_PID` exits 0 when every prompt got a good final and telemetry came.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import time
import uuid
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

PROMPTS: tuple[dict[str, Any], ...] = (
    {"prompt": "What is the capital of Japan?", "temperature": 0, "max_tokens": 40},
    {"prompt": "Name the capital of France.", "temperature": 0, "max_tokens": 40},
    {
        "prompt": "What color is the sky?",
        "format": {"type": "choice", "choices": ["blue", "green", "red"]},
        "temperature": 0,
    },
    {"prompt": "Write two sentences about the sea.", "temperature": 0.7, "seed": 7, "max_tokens": 80},
)
ONLINE_WITHIN = 900.0  # a first start fetches the model
ANSWER_WITHIN = 120.0
READING_WITHIN = 30.0
console = Console(highlight=False)


class Failed(Exception):
    """Why the round failed: one sentence."""


class Peer:
    """A paho client whose messages wait in a queue."""

    def __init__(self, url: str, daemon: int) -> None:
        self.daemon = daemon
        self.inbox: queue.SimpleQueue[mqtt.MQTTMessage] = queue.SimpleQueue()
        parts = urlsplit(url)
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self.client.on_message = lambda _client, _data, message: self.inbox.put(message)
        self.client.connect(parts.hostname or "127.0.0.1", parts.port or 1883)
        self.client.loop_start()

    def next(self, until: float, what: str) -> mqtt.MQTTMessage:
        """The next message. Raises Failed at `until`, or when the daemon is gone."""
        while time.monotonic() < until:
            try:
                return self.inbox.get(timeout=0.5)
            except queue.Empty:
                if not os.path.exists(f"/proc/{self.daemon}"):  # noqa: PTH110  - one stat, no object
                    raise Failed("the daemon has ended; see its last log lines") from None
        raise Failed(f"{what} did not come in time")


def wait_online(peer: Peer, root: str) -> dict[str, Any]:
    """Waits for `online`; gives the newest health. Raises Failed on `safe`, with the error in health."""
    health: dict[str, Any] = {}
    until = time.monotonic() + ONLINE_WITHIN
    status = ""
    with console.status("waiting for the model", spinner="dots"):
        while not (status == "online" and health.get("model", {}).get("state") == "online"):
            message = peer.next(until, "status online")
            if message.topic == f"{root}/status":
                status = message.payload.decode()
            elif message.topic == f"{root}/health":
                health = json.loads(message.payload)
            if health.get("model", {}).get("state") == "safe":
                raise Failed(f"no usable model: {health['model'].get('error', {}).get('message')}")
    return health


def ask(peer: Peer, base: str, device: str, body: dict[str, Any]) -> dict[str, Any]:
    """Send one prompt, show the answer as it arrives, give the final."""
    prompt_id = f"run-{uuid.uuid4().hex[:12]}"
    topic = f"{base}/reply/first-light/{device}/{prompt_id}"
    peer.client.publish(f"{base}/device/{device}/prompt/first-light", json.dumps({"id": prompt_id, **body}), qos=1)
    console.print(f"\n[bold cyan]›[/] [bold]{escape(body['prompt'])}[/]")
    shown = 0
    until = time.monotonic() + ANSWER_WITHIN
    while True:
        message = peer.next(until, "an answer")
        if message.topic != topic:
            continue
        document = json.loads(message.payload)
        if document.get("final"):
            console.print(escape(document["text"][shown:]))
            return document  # type: ignore[no-any-return]
        if document.get("at") == shown:
            console.print(escape(document["text"]), end="")
            shown += len(document["text"])


def show_receipt(final: dict[str, Any]) -> None:
    usage, timing, receipt = final["usage"], final["timing"], final["receipt"]
    rate = f"{timing['tokens_per_second']} tokens/s · " if timing["tokens_per_second"] else ""
    console.print(
        f"[dim]{final['reason']} · {usage['prompt_tokens']} + {usage['completion_tokens']} tokens · "
        f"{rate}first token {timing['ttft_ms']} ms · {timing['total_ms']} ms in all\n"
        f"{receipt['device']} · {receipt['model']} · {receipt['quantization']} · {receipt['backend']} · "
        f"seed {receipt['seed']} · {receipt['digest'][:19]}…[/]"
    )


def show_device(reading: dict[str, Any], health: dict[str, Any]) -> None:
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
    console.print(Panel(table, title="telemetry", title_align="left", expand=False))
    colour = {"ok": "green", "degraded": "yellow"}.get(health["state"], "red")
    console.print(f"health: [{colour}]{health['state']}[/], {health['model']['name']} by {health['model']['backend']}")
    for finding in health["findings"]:
        console.print(f"  [yellow]{finding['code']}[/]: {escape(finding['advice'])}")


def round_trip(url: str, fleet: str, device: str, daemon: int) -> None:
    base = f"edged/v1/{fleet}"
    root = f"{base}/device/{device}"
    peer = Peer(url, daemon)
    peer.client.subscribe([(f"{root}/status", 1), (f"{root}/health", 1), (f"{base}/reply/first-light/#", 1)])
    health = wait_online(peer, root)
    for body in PROMPTS:
        final = ask(peer, base, device, body)
        if "error" in final:
            raise Failed(f"{final['reason']}: {final['error']['message']}")
        show_receipt(final)
    peer.client.subscribe(f"{root}/telemetry")
    until = time.monotonic() + READING_WITHIN
    console.print()
    while (message := peer.next(until, "a telemetry reading")).topic != f"{root}/telemetry":
        if message.topic == f"{root}/health":
            health = json.loads(message.payload)
    show_device(json.loads(message.payload), health)
    peer.client.disconnect()
    peer.client.loop_stop()


def main() -> int:
    url, fleet, device, daemon = sys.argv[1:5]
    try:
        round_trip(url, fleet, device, int(daemon))
    except (Failed, OSError) as error:
        print(f"scripts/run: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
