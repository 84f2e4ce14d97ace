"""`EDGED_…` variables → checked values. The name is the key's path: `EDGED_MQTT_URL` sets `mqtt.url`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from edged.config import checks, strict_yaml
from edged.config.keys import known_keys
from edged.config.schema import merge
from edged.core.errors import BadValue, ConfigError

PREFIX = "EDGED_"


def from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Checked values of the `EDGED_…` variables. Raises ConfigError, also for an unknown one."""
    known = known_keys()
    names = {PREFIX + path.replace(".", "_").upper(): path for path in known}
    values: dict[str, Any] = {}
    for variable in sorted(name for name in environment if name.startswith(PREFIX)):
        if variable not in names:
            raise ConfigError(f"{variable}: unknown variable{checks.nearest(variable, names)}")
        path = names[variable]
        try:
            checked: Any = known[path](path, _value(known[path], path, environment[variable]))
        except BadValue as error:
            raise ConfigError(f"{variable}: {error.sentence}") from None
        for key in reversed(path.split(".")):
            checked = {key: checked}
        values = merge(values, checked)
    return values


def _value(check: checks.Check, path: str, raw: str) -> object:
    """The text itself where the key accepts it; else the text read as YAML (numbers, lists)."""
    try:
        check(path, raw)
    except BadValue:
        return _from_yaml(path, raw)
    return raw


def _from_yaml(path: str, raw: str) -> object:
    try:
        strict_yaml.check_plain(raw)
        value = yaml.safe_load(raw)
    except strict_yaml.BadYaml as error:
        raise BadValue(path, str(error)) from None
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError):
        return raw  # dates and numbers that PyYAML fails on
    return raw if value is None else value
