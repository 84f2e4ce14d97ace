"""Every key that can be set: what it accepts, and whether the owner alone sets it or the fleet's layers may, too.

The same table serves the local file, `EDGED_…` variables and config layers, so that a key means the same everywhere.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

from edged.config import checks
from edged.config.golden import check_golden
from edged.core.chat_templates import AUTO, BUILT_IN, is_file
from edged.core.errors import BadValue

Keys = Mapping[str, "checks.Check | Keys"]
"""Keys of a section: a check each, or the keys of a mapping inside it."""

DAY = 86400.0
MAX_KEYS = 64
_URL = re.compile(r"mqtts?://(?:\[[0-9A-Fa-f:.]+\]|[^\s/@:\[\]]+)(?::([0-9]{1,5}))?/?\Z")
_PREFIX = re.compile(r"(?!edged(?:/|\Z))[A-Za-z0-9_-]+(?:/[A-Za-z0-9_-]+)*\Z")
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


def _template(path: str, value: object) -> str:
    name: str = checks.text(high=4096)(path, value)
    if not is_file(name) and name not in (AUTO, *BUILT_IN):
        known = f"{AUTO}, {', '.join(BUILT_IN)} or a file (with a / or .jinja)"
        raise BadValue(path, f"must be {known}, not {checks.shown(name)}{checks.nearest(name, BUILT_IN)}")
    return name


_name = checks.text(pattern=checks.NAME, like="1 to 63 of a-z, 0-9 and -, not starting with -")
_path = checks.text(high=4096)

_REQUESTER = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_requester = checks.text(high=64, pattern=_REQUESTER, like="a requester: 1 to 64 of A-Z, a-z, 0-9, _ and -")

_SHARE: Keys = {
    "queue": checks.integer(1, 100_000),
    "running": checks.integer(1, 1024),
    "priority": checks.integer(0, 9),
    "prompts_per_minute": checks.integer(1, 1_000_000),
}


def _by_name(path: str, value: object) -> dict[str, Any]:
    """Requester → what differs for it."""
    if not isinstance(value, dict):
        raise BadValue(path, f"must be a mapping, not {checks.shown(value)}")
    if len(value) > 1000:
        raise BadValue(path, f"must have at most 1000 entries, not {len(value)}")
    return {_requester(path, name): _section(_SHARE)(f"{path}.{name}", share) for name, share in value.items()}


_KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
key_name = checks.text(high=64, pattern=_KEY_NAME, like="a key's name: 1 to 64 of A-Z, a-z, 0-9, ., _ and -")
"""The check of a key's name."""


def base64_of(count: int, what: str) -> checks.Check:
    """Standard base64 of exactly `count` bytes, the one way to write them; gives the text as it is."""

    def check(path: str, value: object) -> str:
        if isinstance(value, str):
            try:
                decoded = base64.b64decode(value, validate=True)
            except (ValueError, binascii.Error):
                decoded = b""
            if len(decoded) == count and base64.b64encode(decoded).decode() == value:
                return value
        raise BadValue(path, f"must be {what}: {count} bytes in base64, not {checks.shown(value)}")

    return check


public_key = base64_of(32, "an Ed25519 public key")
"""The check of a public key; `edgectl keys list` prints it in this form."""


def trust_keys(path: str, value: object) -> dict[str, str]:
    """Name → public key. A key has one name."""
    if not isinstance(value, dict):
        raise BadValue(path, f"must be a mapping of names to public keys, not {checks.shown(value)}")
    if len(value) > MAX_KEYS:
        raise BadValue(path, f"must have at most {MAX_KEYS} entries, not {len(value)}")
    keys = {key_name(path, name): public_key(f"{path}.{name}", key) for name, key in value.items()}
    if len(set(keys.values())) != len(keys):
        raise BadValue(path, "must not have the same key under two names")
    return keys


OWNER: dict[str, Keys] = {
    "identity": {
        "fleet": _name,
        "device": _name,
        "groups": checks.list_of(_name, high=32, distinct=True),
        "pools": checks.list_of(_name, high=32, distinct=True),
    },
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
    "trust": {"keys": trust_keys, "require_signature": checks.boolean},
    "integrations": {
        "home_assistant": {
            "prefix": checks.text(high=200, pattern=_PREFIX, like="a topic prefix such as homeassistant, not edged")
        }
    },
    "commands": {"allow": checks.list_of(_requester, high=64, distinct=True)},
}
"""Sections that only the owner of the device sets, in the local file (`state_dir` too)."""

FLEET: dict[str, Keys] = {
    "model": {
        "source": checks.text(high=4096),
        "digest": checks.text(pattern=checks.DIGEST, like="sha256: and 64 hex digits"),
        "bits": checks.one_of("auto", "4", "8"),
        "template": _template,
        "backend": checks.one_of("auto", "native", "torch"),
        "context": checks.integer(16, 1_048_576),
        "threads": checks.integer_or("auto", 1, 1024),
        "keep_alive": checks.duration_or("forever", 0, 365 * DAY),
    },
    "generation": {**SAMPLING, "system": checks.text(high=65536)},
    "limits": {
        "queue": checks.integer(1, 100_000),
        "prompt_bytes": checks.size(64, 16_000_000),
        "max_tokens": checks.integer(1, 1_000_000),
        "remember": checks.duration(1, 365 * DAY),
        "raw": checks.boolean,
        "per_requester": {**_SHARE, "by_name": _by_name},
    },
    "telemetry": {"interval": checks.duration(0.1, DAY)},
    "log": {
        "level": checks.one_of("debug", "info", "warning", "error"),
        "format": checks.one_of("auto", "console", "json"),
    },
    "trial": {"probation": checks.duration(0.1, DAY)},
    "models": {"keep": checks.integer(1, 1000)},
}
"""Sections that the local file and a fleet's layers may set."""

_TOP: dict[str, checks.Check] = {
    "state_dir": _path,
    "golden": check_golden,
}


def known_keys() -> dict[str, checks.Check]:
    """Every settable key by its dotted path."""
    return {**_flat("", {**OWNER, **FLEET}), **_TOP}


def _flat(prefix: str, keys: Keys) -> dict[str, checks.Check]:
    found: dict[str, checks.Check] = {}
    for key, check in keys.items():
        found |= {prefix + key: check} if callable(check) else _flat(f"{prefix}{key}.", check)
    return found


def check_file(document: object) -> dict[str, Any]:
    """The local file's mapping, checked: section → key → value. Raises BadValue with the key's path."""
    sections = {name: _section(keys) for name, keys in {**OWNER, **FLEET}.items()}
    return checks.record("", document, {**sections, **_TOP})


_OWNERS = "is the owner's: it can only be set in the device's own file"


def check_layer(settings: object) -> dict[str, Any]:
    """A layer's `settings`, checked. An owner's key is refused by name. Raises BadValue."""
    if isinstance(settings, dict):
        for key in settings:
            if key in OWNER or key == "state_dir":
                raise BadValue(str(key), _OWNERS)
        limits = settings.get("limits")
        if isinstance(limits, dict) and "raw" in limits:
            raise BadValue("limits.raw", _OWNERS)
    sections = {name: _section(keys) for name, keys in FLEET.items()}
    return checks.record("", settings, {**sections, "golden": _TOP["golden"]})


def _section(keys: Keys) -> checks.Check:
    inside = {key: check if callable(check) else _section(check) for key, check in keys.items()}
    return lambda path, value: checks.record(path, value, inside)
