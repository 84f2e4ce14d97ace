"""The settings of a device: every key with its range, default and owner. Plain frozen data.

The same table serves the local file, `EDGED_…` variables and config layers, so that a key means the same everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from edged.config import checks as f
from edged.core.errors import BadValue
from edged.core.prompt import Sampling

DAY = 86400.0
_URL = re.compile(r"mqtts?://(?:\[[0-9A-Fa-f:.]+\]|[^\s/@:\[\]]+)(?::([0-9]{1,5}))?/?\Z")
_REPLY_PREFIX = re.compile(r"(?!edged/(?:v1/|\Z))(?!\$)[^+#\0]*/\Z")


class Identity(msgspec.Struct, frozen=True):
    """Who this device is. `device` None: made from the host name."""

    fleet: str = "home"
    device: str | None = None
    groups: tuple[str, ...] = ()


class Mqtt(msgspec.Struct, frozen=True):
    """How the broker is reached. `mqtts://` means TLS."""

    url: str = "mqtt://127.0.0.1:1883"
    version: str = "auto"
    username: str | None = None
    password_file: str | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    reply_prefixes: tuple[str, ...] = ()


class Model(msgspec.Struct, frozen=True):
    """Which model is loaded and how. `threads` None: the physical cores."""

    source: str = "smollm2-135m-instruct"
    digest: str | None = None
    bits: str = "auto"
    backend: str = "auto"
    context: int = 2048
    threads: int | None = None
    keep_alive: str = "forever"


class Generation(msgspec.Struct, frozen=True):
    """What a prompt gets where it says nothing itself. `limits.max_tokens` bounds `max_tokens` where it is lower."""

    max_tokens: int = 256
    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    system: str | None = None

    def sampling(self, overrides: Mapping[str, Any], limits: Limits) -> Sampling:
        """These defaults, within the limits, with a prompt's own values laid over them."""
        own = {name: getattr(self, name) for name in Sampling.__struct_fields__}
        own["max_tokens"] = min(self.max_tokens, limits.max_tokens)
        return Sampling(**{**own, **overrides})


class Limits(msgspec.Struct, frozen=True):
    """Bounds: waiting prompts, bytes of a payload, tokens of an answer, seconds that finals are remembered."""

    queue: int = 64
    prompt_bytes: int = 64_000
    max_tokens: int = 1024
    remember: float = DAY


class Telemetry(msgspec.Struct, frozen=True):
    """`interval` in seconds."""

    interval: float = 10.0


class Log(msgspec.Struct, frozen=True):
    """`format` auto: console on a terminal, JSON elsewhere."""

    level: str = "info"
    format: str = "auto"


class Settings(msgspec.Struct, frozen=True):
    """Everything that can be set, as it is in force."""

    identity: Identity = Identity()
    mqtt: Mqtt = Mqtt()
    state_dir: str = "/var/lib/edged"
    model: Model = Model()
    generation: Generation = Generation()
    limits: Limits = Limits()
    telemetry: Telemetry = Telemetry()
    log: Log = Log()


SAMPLING: dict[str, f.Check] = {
    "max_tokens": f.integer(1, 1_000_000),
    "temperature": f.number(0, 5),
    "top_k": f.integer(0),
    "top_p": f.number(0, 1),
    "min_p": f.number(0, 1),
    "repetition_penalty": f.number(0.5, 2),
    "seed": f.integer(0),
    "stop": f.list_of(f.not_empty, high=8),
}
"""Checks of the sampling keys, the same for prompts and for `generation`."""


def _broker_url(path: str, value: object) -> str:
    url: str = f.text(high=1024, pattern=_URL, like="mqtt://HOST[:PORT] or mqtts://HOST[:PORT]")(path, value)
    match = _URL.match(url)
    if match and match[1] and not 1 <= int(match[1]) <= 65535:
        raise BadValue(path, f"must name a port between 1 and 65535, not {match[1]}")
    return url


_name = f.text(pattern=f.NAME, like="1 to 63 of a-z, 0-9 and -, not starting with -")
_path = f.text(high=4096)

OWNER: dict[str, dict[str, f.Check]] = {
    "identity": {"fleet": _name, "device": _name, "groups": f.list_of(_name, high=32, distinct=True)},
    "mqtt": {
        "url": _broker_url,
        "version": f.one_of("auto", "5", "3.1.1"),
        "username": f.text(high=1024),
        "password_file": _path,
        "ca": _path,
        "cert": _path,
        "key": _path,
        "reply_prefixes": f.list_of(
            f.text(high=1024, pattern=_REPLY_PREFIX, like="a topic prefix that ends in /, not in edged/v1/ or $"),
            high=16,
        ),
    },
    "trust": {
        "keys": f.not_yet("verify signatures", allowed={}),
        "require_signature": f.not_yet("verify signatures", allowed=False, kind=f.boolean),
    },
}
"""Sections that only the owner of the device sets, in the local file (`state_dir` too)."""

FLEET: dict[str, dict[str, f.Check]] = {
    "model": {
        "source": f.text(high=4096),
        "digest": f.text(pattern=f.DIGEST, like="sha256: and 64 hex digits"),
        "bits": f.one_of("auto", "4", "8"),
        "backend": f.one_of("auto", "native", "torch"),
        "context": f.integer(16, 1_048_576),
        "threads": f.integer_or("auto", 1, 1024),
        "keep_alive": f.not_yet("unload an idle model", allowed="forever"),
    },
    "generation": {**SAMPLING, "system": f.text(high=65536)},
    "limits": {
        "queue": f.integer(1, 100_000),
        "prompt_bytes": f.size(64, 16_000_000),
        "max_tokens": f.integer(1, 1_000_000),
        "remember": f.duration(1, 365 * DAY),
    },
    "telemetry": {"interval": f.duration(0.1, DAY)},
    "log": {"level": f.one_of("debug", "info", "warning", "error"), "format": f.one_of("auto", "console", "json")},
}
"""Sections that the local file and a fleet's layers may set."""

_TOP: dict[str, f.Check] = {"state_dir": _path, "golden": f.not_yet("judge a config by golden prompts", allowed=[])}


def known_keys() -> dict[str, f.Check]:
    """Every settable key by its dotted path."""
    nested = {f"{name}.{key}": check for name, keys in {**OWNER, **FLEET}.items() for key, check in keys.items()}
    return {**nested, **_TOP}


def check_file(document: object) -> dict[str, Any]:
    """The local file's mapping, checked: section → key → value. Raises BadValue with the key's path."""
    sections = {name: _section(keys) for name, keys in {**OWNER, **FLEET}.items()}
    return f.record("", document, {**sections, **_TOP})


def check_layer(settings: object) -> dict[str, Any]:
    """A layer's `settings`, checked. An owner's key is refused by name. Raises BadValue."""
    if isinstance(settings, dict):
        for key in settings:
            if key in OWNER or key == "state_dir":
                raise BadValue(str(key), "is the owner's: it can only be set in the device's own file")
    sections = {name: _section(keys) for name, keys in FLEET.items()}
    return f.record("", settings, {**sections, "golden": _TOP["golden"]})


def _section(keys: dict[str, f.Check]) -> f.Check:
    return lambda path, value: f.record(path, value, keys)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merge by key, lists and scalars replace."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def build(checked: Mapping[str, Any]) -> Settings:
    """Settings from checked values, with defaults for the rest. Raises BadValue where keys contradict each other."""

    def section(name: str) -> dict[str, Any]:
        found: dict[str, Any] = checked.get(name, {})
        return found

    settings = Settings(
        identity=Identity(**section("identity")),
        mqtt=Mqtt(**section("mqtt")),
        state_dir=checked.get("state_dir", Settings().state_dir),
        model=Model(**section("model")),
        generation=Generation(**section("generation")),
        limits=Limits(**section("limits")),
        telemetry=Telemetry(**section("telemetry")),
        log=Log(**section("log")),
    )
    _agree(settings)
    return settings


def _agree(settings: Settings) -> None:
    if bool(settings.mqtt.cert) != bool(settings.mqtt.key):
        raise BadValue("mqtt.cert", "needs mqtt.key beside it, and the other way round; give both or neither")
    if (settings.mqtt.ca or settings.mqtt.cert) and not settings.mqtt.url.startswith("mqtts://"):
        raise BadValue("mqtt.ca", "certificates need a URL that starts with mqtts://")


def show(settings: Settings) -> dict[str, Any]:
    """The settings as they would be written in the file; keys without a value are left out."""
    plain: dict[str, Any] = msgspec.to_builtins(settings)
    plain["limits"]["prompt_bytes"] = f.show_size(settings.limits.prompt_bytes)
    plain["limits"]["remember"] = f.show_duration(settings.limits.remember)
    plain["telemetry"]["interval"] = f.show_duration(settings.telemetry.interval)
    if settings.model.threads is None:
        plain["model"]["threads"] = "auto"
    return {
        name: {key: value for key, value in section.items() if value is not None}
        if isinstance(section, dict)
        else section
        for name, section in plain.items()
    }
