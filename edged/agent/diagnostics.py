"""A small archive for whoever looks into a device from afar: log, config, health, versions.

It has no text of a prompt or an answer, no password and no key: of the config the system turn and the golden prompts
are left out.
"""

from __future__ import annotations

import base64
import gzip
import io
import platform
import sys
import tarfile
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from edged import __version__
from edged.config.schema import Settings, show
from edged.core.prompt import ModelInfo
from edged.wire import strict_json

MAX_BYTES = 90_000
"""Of an archive: 120 KB in base64, which brokers with the usual limit of 128 KB accept."""
AROUND = 1000
"""Bytes of a final beside the archive, at most."""
_PACKAGES = ("paho-mqtt", "msgspec", "structlog", "PyYAML", "numpy", "torch")


def files(
    settings: Settings,
    reported: Mapping[str, Any],
    health: bytes,
    log: bytes,
    model: ModelInfo | None,
    facts: Mapping[str, Any],
) -> dict[str, bytes]:
    """Name → content. `facts` are figures beside the versions."""
    return {
        "versions.json": strict_json.dumps({**_versions(), **facts, "model": _model(model)}),
        "config.json": strict_json.dumps(_config(settings)),
        "reported.json": strict_json.dumps(dict(reported)),
        "health.json": health,
        "log.txt": log,
    }


def archive(contents: Mapping[str, bytes], at: float) -> bytes:
    """A .tar.gz of these files, with the modification time `at` (Unix time)."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=int(at)) as compressed,
        tarfile.open(fileobj=compressed, mode="w") as tar,
    ):
        for name, content in contents.items():
            entry = tarfile.TarInfo(f"edged-diagnostics/{name}")
            entry.size, entry.mtime, entry.mode = len(content), int(at), 0o600
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def encoded(packed: bytes) -> str:
    """The archive as a text of JSON."""
    return base64.b64encode(packed).decode("ascii")


def _config(settings: Settings) -> dict[str, Any]:
    """The effective settings; what may hold texts of prompts is replaced by its length."""
    shown = show(settings)
    if settings.generation.system is not None:
        shown["generation"]["system"] = f"({len(settings.generation.system)} characters)"
    shown["generation"]["stop"] = f"({len(settings.generation.stop)} texts)"
    shown["golden"] = f"({len(settings.golden)} prompts)"
    return shown


def _versions() -> dict[str, Any]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"edged": __version__, "python": sys.version, "platform": platform.platform(), "packages": found}


def _model(info: ModelInfo | None) -> dict[str, Any] | None:
    if info is None:
        return None
    return {"name": info.name, "digest": info.digest, "quantization": info.quantization, "backend": info.backend}
