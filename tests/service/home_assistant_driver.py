"""Runs a real Home Assistant in this process, asks a device through its text entity, and prints the states as JSON.

    python home_assistant_driver.py FOLDER PORT DEVICE QUESTION

Needs `homeassistant` and what its MQTT integration requires in this Python; nothing of ours is imported.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 60


def prepare(folder: Path, port: int) -> None:
    """A configuration in which the MQTT integration is set up."""
    storage = folder / ".storage"
    storage.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        own = free.getsockname()[1]
    settings = f"homeassistant: {{}}\nhttp: {{server_host: 127.0.0.1, server_port: {own}}}\n"
    (folder / "configuration.yaml").write_text(settings)
    data = {"broker": "127.0.0.1", "port": port, "discovery": True, "discovery_prefix": "homeassistant"}
    entry = {
        "entry_id": "edged", "version": 1, "minor_version": 1, "domain": "mqtt", "title": "broker", "source": "user",
        "data": data, "options": {}, "unique_id": None, "disabled_by": None, "pref_disable_new_entities": False,
        "pref_disable_polling": False,
    }  # fmt: skip
    entries = storage / "core.config_entries"
    if not entries.exists():
        document = {"version": 1, "minor_version": 1, "key": "core.config_entries", "data": {"entries": [entry]}}
        entries.write_text(json.dumps(document))


async def run(folder: Path, device: str, question: str) -> dict[str, Any]:
    """Start, wait for the entities, ask, wait for the answer, stop."""
    from homeassistant import bootstrap, runner

    hass = await bootstrap.async_setup_hass(runner.RuntimeConfig(config_dir=str(folder), skip_pip=True))
    assert hass is not None
    try:
        await hass.async_start()
        await wait(hass, f"text.{device}_ask", lambda one: one.state != "unavailable")
        await wait(hass, f"sensor.{device}_memory", lambda one: one.state not in {"unknown", "unavailable"})
        words = {"entity_id": f"text.{device}_ask", "value": question}
        await hass.services.async_call("text", "set_value", words, blocking=True)
        await wait(hass, f"sensor.{device}_answer", lambda one: bool(one.attributes.get("text")))
        known = [one for one in hass.states.async_all() if device in one.entity_id]
        return {one.entity_id: {"state": one.state, "text": one.attributes.get("text")} for one in known}
    finally:
        await hass.async_stop(force=True)


async def wait(hass: Any, entity: str, holds: Callable[[Any], bool]) -> None:
    """Wait until an entity's state holds; ends the process where it does not in time."""
    changed = asyncio.Event()
    cancel = hass.bus.async_listen("state_changed", lambda _: changed.set())
    try:
        async with asyncio.timeout(SECONDS):  # type: ignore[attr-defined]  # Python 3.11
            while (one := hass.states.get(entity)) is None or not holds(one):
                changed.clear()
                await changed.wait()
    except TimeoutError:
        states = {one.entity_id: one.state for one in hass.states.async_all()}
        raise SystemExit(f"{entity}: not within {SECONDS} s; states: {states}") from None
    finally:
        cancel()


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), int(sys.argv[2]))
    print(json.dumps(asyncio.run(run(Path(sys.argv[1]), sys.argv[3], sys.argv[4]))))
