"""`edged doctor`: what this machine can do, and what to mend. Board facts, the broker, the model, the state folder."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from edged.core.errors import BrokerError
from edged.core.settings import Settings
from edged.device.board import describe, limits_for
from edged.device.doctor import Advice, doctor
from edged.device.sampler import Sampler
from edged.link.session import Session

CONNECT_WITHIN = 8.0


def examine(settings: Settings, device: str, model_bytes: int | None, kernels: str | None, why: str) -> list[Advice]:
    """Every fact, in the order to show them. Takes a second; eight where the broker is silent.

    `kernels`: the native engine's kernels that run here; None where there are none, and `why`.
    """
    board = describe()
    sampler = Sampler(_existing(Path(settings.state_dir)))
    sampler.read()  # the processor's share is measured between two readings
    reading = sampler.read()
    return [
        *doctor(board, reading, limits=limits_for(board), model_bytes=model_bytes),
        _engine(kernels, why),
        _state_dir(Path(settings.state_dir)),
        _broker(settings, device),
    ]


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest one above it that is there: the same disk."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _engine(kernels: str | None, why: str) -> Advice:
    torch = importlib.util.find_spec("torch") is not None
    if kernels is not None:
        other = (
            "the torch backend is installed for what it cannot run" if torch else "the torch backend is not installed"
        )
        return Advice("engine", "ok", f"the native engine computes with its {kernels} kernels; {other}")
    mend = "Install a C++ compiler (apt-get install g++) and edged again: the native engine is several times faster."
    if torch:
        return Advice("engine", "warn", f"the torch backend computes: {why}", mend)
    return Advice("engine", "fail", f"nothing can compute: {why}, and the torch backend is not installed", mend)


def _state_dir(path: Path) -> Advice:
    if path.is_dir() and os.access(path, os.W_OK):
        return Advice("state_dir", "ok", f"{path} can be written")
    if not path.exists() and os.access(_existing(path), os.W_OK):
        return Advice("state_dir", "ok", f"{path} will be made")
    return Advice("state_dir", "fail", f"{path} cannot be written", "Run edged as its owner, or set state_dir.")


def _broker(settings: Settings, device: str) -> Advice:
    topic = f"edged/v1/{settings.identity.fleet}/device/{device}/status"
    try:
        with Session(settings.mqtt, (topic,), CONNECT_WITHIN) as session:
            return Advice("broker", "ok", f"the broker at {settings.mqtt.url} answers with MQTT {session.version}")
    except BrokerError as error:
        return Advice(
            "broker", "fail", str(error), "Start the broker, or mend mqtt.url, user, password or certificate."
        )
