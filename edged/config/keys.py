"""Every key that can be set: what it accepts, and whether the owner alone sets it or the fleet's layers may, too.

The same table serves the local file, `EDGED_…` variables and config layers, so that a key means the same everywhere.
"""

from __future__ import annotations

import re
from typing import Any

from edged.config import checks
from edged.core.errors import BadValue

DAY = 86400.0
_URL = re.compile(r"mqtts?://(?:\[[0-9A-Fa-f:.]+\]|[^\s/@:\[\]]+)(?::([0-9]{1,5}))?/?\Z")
_REPLY_PREFIX = re.compile(r"(?!edged/(?:v1/|\Z))(?!\$)[^+#\0]*/\Z")

SAMPLING: dict[str, checks.Check] = {
    "max_tokens": checks.integer(1, 1_000_000),
    "temperature": checks.number(0, 5),
    "top_k": checks.integer(0),
    "top_p": checks.number(0, 1),
    "min_p": checks.number(0, 1),
    "repetition_penalty": checks.number(0.5, 2),
    "seed": checks.integer(0),
    "stop": checks.list_of(checks.not_empty, high=8),
}
"""Checks of the sampling keys, the same for prompts and for `generation`."""


def _broker_url(path: str, value: object) -> str:
    url: str = checks.text(high=1024, pattern=_URL, like="mqtt://HOST[:PORT] or mqtts://HOST[:PORT]")(path, value)
    match = _URL.match(url)
    if match and match[1] and not 1 <= int(match[1]) <= 65535:
        raise BadValue(path, f"must name a port between 1 and 65535, not {match[1]}")
    return url


_name = checks.text(pattern=checks.NAME, like="1 to 63 of a-z, 0-9 and -, not starting with -")
_path = checks.text(high=4096)

OWNER: dict[str, dict[str, checks.Check]] = {
    "identity": {"fleet": _name, "device": _name, "groups": checks.list_of(_name, high=32, distinct=True)},
    "mqtt": {
        "url": _broker_url,
        "version": checks.one_of("auto", "5", "3.1.1"),
        "username": checks.text(high=1024),
        "password_file": _path,
        "ca": _path,
        "cert": _path,
        "key": _path,
        "reply_prefixes": checks.list_of(
            checks.text(high=1024, pattern=_REPLY_PREFIX, like="a topic prefix that ends in /, not in edged/v1/ or $"),
            high=16,
        ),
    },
    "trust": {
        "keys": checks.not_yet("verify signatures", allowed={}),
        "require_signature": checks.not_yet("verify signatures", allowed=False, kind=checks.boolean),
    },
}
"""Sections that only the owner of the device sets, in the local file (`state_dir` too)."""

FLEET: dict[str, dict[str, checks.Check]] = {
    "model": {
        "source": checks.text(high=4096),
        "digest": checks.text(pattern=checks.DIGEST, like="sha256: and 64 hex digits"),
        "bits": checks.one_of("auto", "4", "8"),
        "backend": checks.one_of("auto", "native", "torch"),
        "context": checks.integer(16, 1_048_576),
        "threads": checks.integer_or("auto", 1, 1024),
        "keep_alive": checks.not_yet("unload an idle model", allowed="forever"),
    },
    "generation": {**SAMPLING, "system": checks.text(high=65536)},
    "limits": {
        "queue": checks.integer(1, 100_000),
        "prompt_bytes": checks.size(64, 16_000_000),
        "max_tokens": checks.integer(1, 1_000_000),
        "remember": checks.duration(1, 365 * DAY),
    },
    "telemetry": {"interval": checks.duration(0.1, DAY)},
    "log": {
        "level": checks.one_of("debug", "info", "warning", "error"),
        "format": checks.one_of("auto", "console", "json"),
    },
}
"""Sections that the local file and a fleet's layers may set."""

_TOP: dict[str, checks.Check] = {
    "state_dir": _path,
    "golden": checks.not_yet("judge a config by golden prompts", allowed=[]),
}


def known_keys() -> dict[str, checks.Check]:
    """Every settable key by its dotted path."""
    nested = {f"{name}.{key}": check for name, keys in {**OWNER, **FLEET}.items() for key, check in keys.items()}
    return {**nested, **_TOP}


def check_file(document: object) -> dict[str, Any]:
    """The local file's mapping, checked: section → key → value. Raises BadValue with the key's path."""
    sections = {name: _section(keys) for name, keys in {**OWNER, **FLEET}.items()}
    return checks.record("", document, {**sections, **_TOP})


def check_layer(settings: object) -> dict[str, Any]:
    """A layer's `settings`, checked. An owner's key is refused by name. Raises BadValue."""
    if isinstance(settings, dict):
        for key in settings:
            if key in OWNER or key == "state_dir":
                raise BadValue(str(key), "is the owner's: it can only be set in the device's own file")
    sections = {name: _section(keys) for name, keys in FLEET.items()}
    return checks.record("", settings, {**sections, "golden": _TOP["golden"]})


def _section(keys: dict[str, checks.Check]) -> checks.Check:
    return lambda path, value: checks.record(path, value, keys)
