"""`edged doctor`: what this machine can do, and what to fix: board, engine, state folder, broker."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from pathlib import Path

import msgspec
from rich.console import Console
from rich.markup import escape

from edged.commands.configured import configured, store_folder
from edged.config.schema import Settings
from edged.core.errors import BrokerError, ModelError
from edged.device.board import describe, limits_for
from edged.device.board_facts import Advice, examine_board
from edged.device.sampler import Sampler
from edged.engine.backends.native_open import kernels_here
from edged.link.session import Session
from edged.models.store.catalog import catalog
from edged.models.store.store import Store
from edged.worker import sandbox

CONNECT_WITHIN = 8.0  # seconds


def run(arguments: argparse.Namespace) -> int:
    """Print facts and what to fix; exit code 1 where something must be fixed. Raises ConfigError."""
    _, settings, device = configured(arguments)
    store = Store(store_folder(settings))
    entry = catalog().get(settings.model.source)
    kept = store.find(settings.model.source)
    kernels, why = _kernels_or_reason()
    advice = _examine(settings, device, kept.size if kept else entry.size if entry else None, kernels, why)
    if arguments.json:
        print(json.dumps({"advice": msgspec.to_builtins(advice)}, ensure_ascii=False))
    else:
        marks = {"ok": "[green]ok  [/]", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}
        console = Console(highlight=False)
        for fact in advice:
            console.print(f"{marks[fact.status]} {escape(fact.fact)}")
            if fact.fix:
                console.print(f"     [dim]→[/] {escape(fact.fix)}")
    return 1 if any(fact.status == "fail" for fact in advice) else 0


def _examine(settings: Settings, device: str, model_bytes: int | None, kernels: str | None, why: str) -> list[Advice]:
    """Every fact, in the order to show them. Takes about a second, eight where the broker does not answer.

    `kernels`: the native engine's kernels that run here; None where there are none, and `why`.
    """
    board = describe()
    sampler = Sampler(_existing(Path(settings.state_dir)))
    sampler.read()  # the processor's share is measured between two readings
    reading = sampler.read()
    return [
        *examine_board(board, reading, limits=limits_for(board), model_bytes=model_bytes),
        _engine(kernels, why),
        _sandbox(sandbox.available()),
        _state_dir(Path(settings.state_dir)),
        _broker(settings, device),
    ]


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists: they are on the same disk."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _engine(kernels: str | None, why: str) -> Advice:
    torch = importlib.util.find_spec("torch") is not None
    if kernels is not None:
        other = "is installed for models that it cannot run" if torch else "is not installed"
        return Advice("engine", "ok", f"the native engine uses its {kernels} kernels; the torch backend {other}")
    fix = (
        "Install a C++ compiler (apt-get install g++), then reinstall edged: the native engine is several times faster."
    )
    if torch:
        return Advice("engine", "warn", f"the slower torch backend is used: {why}", fix)
    return Advice("engine", "fail", f"no engine can run: {why}, and the torch backend is not installed", fix)


def _sandbox(could: sandbox.Restrictions) -> Advice:
    held = ", ".join(could.held) or "nothing"
    if not could.missing:
        return Advice("sandbox", "ok", f"the model's process is restricted: {held}")
    fix = "Use a kernel of 5.13 or later with Landlock and seccomp; without them, load only models that you trust."
    missing = "; ".join(could.missing)
    return Advice("sandbox", "warn", f"the model's process is restricted: {held}; not restricted: {missing}", fix)


def _state_dir(path: Path) -> Advice:
    if path.is_dir() and os.access(path, os.W_OK):
        return Advice("state_dir", "ok", f"{path} can be written")
    if not path.exists() and os.access(_existing(path), os.W_OK):
        return Advice("state_dir", "ok", f"{path} will be created")
    return Advice("state_dir", "fail", f"{path} cannot be written", "Run edged as its owner, or set state_dir.")


def _broker(settings: Settings, device: str) -> Advice:
    topic = f"edged/v1/{settings.identity.fleet}/device/{device}/status"
    try:
        with Session(settings.mqtt, (topic,), CONNECT_WITHIN) as session:
            return Advice("broker", "ok", f"the broker at {settings.mqtt.url} answers with MQTT {session.version}")
    except BrokerError as error:
        return Advice(
            "broker", "fail", str(error), "Start the broker, or correct mqtt.url, user, password or certificate."
        )


def _kernels_or_reason() -> tuple[str | None, str]:
    """The native engine's kernels that run here, or None and why there are none."""
    try:
        return kernels_here(), ""
    except ModelError as error:
        return None, str(error).rstrip(".")
