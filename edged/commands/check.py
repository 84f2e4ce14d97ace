"""`edged check`: validates the config and prints the effective one."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edged.commands.configured import configured
from edged.config.schema import Settings, show
from edged.core.errors import BadValue, ConfigError
from edged.ctl.config import read_layer
from edged.fleet import layer_store, layers
from edged.fleet.plan import plan
from edged.models.store.catalog import catalog
from edged.wire import strict_json
from edged.wire.topics import Topics


def run(arguments: argparse.Namespace) -> int:
    """Print the effective config; warn of files in it that do not exist. Raises ConfigError."""
    values, settings, name = configured(arguments)
    if arguments.plan is not None:
        return _print_plan(values, settings, name, arguments)
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


def _print_plan(values: dict[str, Any], settings: Settings, device: str, arguments: argparse.Namespace) -> int:
    """Print the steps from what is in force to the file as the device's layer. Raises ConfigError."""
    names = tuple(catalog())
    topics = Topics(settings.identity.fleet, device, settings.identity.groups)
    order = tuple(topics.layers.values())
    current = _stored_layers(settings, topics, names)
    payload = _payload(arguments.plan)
    try:
        pushed = layers.parse(names, payload)
        steps = plan(
            layers.effective(values, current, order),
            layers.effective(values, {**current, "device": pushed}, order),
            names,
        )
    except BadValue as error:
        raise ConfigError(f"{arguments.plan}: {error}") from None
    if arguments.json:
        print(json.dumps({"steps": [{"step": step.name, "what": step.what} for step in steps]}, ensure_ascii=False))
        return 0
    for step in steps:
        print(f"{step.name:<10} {step.what}")
    if not steps:
        print("nothing to do: these settings are in force")
    return 0


def _stored_layers(settings: Settings, topics: Topics, names: tuple[str, ...]) -> layers.Layers:
    """The layers that the daemon keeps; none where there are none, or this user may not read them."""
    path = Path(settings.state_dir) / "layers.json"
    try:
        if not path.is_file() or not os.access(path, os.R_OK):
            return {}
        return layers.parse_stored(names, layer_store.load(path, topics.own).layers, tuple(topics.layers.values()))
    except (OSError, layer_store.DamagedError):
        return {}


def _payload(path: Path) -> bytes:
    """A layer, or bare settings as one of revision 0."""
    try:
        document = read_layer(path.read_text(encoding="utf-8"), path)
        return strict_json.dumps(document if "settings" in document else {"revision": 0, "settings": document})
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None


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
    if Path(settings.model.template).is_absolute():
        yield "model.template", settings.model.template
