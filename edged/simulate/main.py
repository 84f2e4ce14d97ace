"""`edgectl simulate`: runs the scenario and prints what it finds."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import msgspec

from edged.agent import logs
from edged.config import checks
from edged.config.schema import Settings
from edged.simulate.parts import Parts
from edged.simulate.scenario import Scenario, Step, check_free

IN_MEMORY = "/dev/shm"  # noqa: S108  - a folder of its own is made there
MOST_DEVICES = 10_000


def simulate(settings: Settings, arguments: argparse.Namespace) -> int:
    """Run the scenario; gives the exit code. Raises ConfigError, BrokerError, EdgedError."""
    checks.integer(1, MOST_DEVICES)("--devices", arguments.devices)
    soak = checks.duration(0.1, 3600)("--soak", arguments.soak)
    within = checks.duration(1, 86_400)("--within", arguments.within)
    logs.configure("error", "console")
    check_free(settings)
    mqtt = {key: value for key, value in msgspec.to_builtins(settings.mqtt).items() if value not in (None, [], ())}
    # One disk is not that of all the devices: in memory, where that is possible.
    in_memory = IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="edged-simulate-", dir=in_memory) as folder:
        fleet = Parts(settings.identity.fleet, arguments.devices, mqtt, Path(folder), 0.5)
        show = _nothing if arguments.json else _print
        found = Scenario(settings, fleet, soak, within, arguments.restart, show).run()
    if arguments.json:
        print(json.dumps(msgspec.to_builtins(found), ensure_ascii=False))
    else:
        print(f"memory: {found.bytes_a_device / 1000:,.0f} KB for each of {found.devices} devices")
    return 0 if all(step.held for step in found.steps) else 1


def _print(step: Step) -> None:
    traffic = f"out {step.messages_out:,} ({step.bytes_out / 1000:,.0f} KB), "
    traffic += f"in {step.messages_in:,} ({step.bytes_in / 1000:,.0f} KB)"
    word = "ok" if step.held else "FAILED"
    print(f"{step.name:<15} {word:<6} {step.seconds:7.1f} s  {traffic}\n    {step.result}", flush=True)


def _nothing(_step: Step) -> None:
    return
