"""`edged check`: validates the config and prints the effective one."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from edged.commands.configured import configured
from edged.config.schema import Settings, show


def run(arguments: argparse.Namespace) -> int:
    """Print the effective config; warn of files in it that do not exist. Raises ConfigError."""
    _, settings, name = configured(arguments)
    effective = show(settings)
    effective["identity"]["device"] = name
    if arguments.json:
        print(json.dumps(effective, ensure_ascii=False))
    else:
        import yaml

        print(yaml.safe_dump(effective, sort_keys=False, allow_unicode=True), end="")
    for key, path in _files_to_read(settings):
        if not _exists(path):
            print(f"edged: warning: {key}: {path} cannot be found here; the daemon needs it", file=sys.stderr)
    return 0


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # in a folder that this user may not look into
        return False


def _files_to_read(settings: Settings) -> Iterator[tuple[str, str]]:
    """The keys that name a file or folder which the daemon reads, with its path."""
    for key in ("password_file", "ca", "cert", "key"):
        if (named := getattr(settings.mqtt, key)) is not None:
            yield f"mqtt.{key}", named
    if Path(settings.model.source).is_absolute():
        yield "model.source", settings.model.source
