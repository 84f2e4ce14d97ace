"""The settings of a device as frozen data, with their defaults; built from checked values, merged and shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from edged.config import checks, golden
from edged.core.errors import BadValue
from edged.core.golden import Golden
from edged.core.prompt import MODEL_SAMPLING, Sampling


class Identity(msgspec.Struct, frozen=True):
    """Who this device is. `device` None: made from the host name. `pools`: whose prompts it answers, too."""

    fleet: str = "home"
    device: str | None = None
    groups: tuple[str, ...] = ()
    pools: tuple[str, ...] = ()


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


class Trust(msgspec.Struct, frozen=True):
    """Whose layers are applied: name → public key (base64), and whether a layer must be signed."""

    keys: dict[str, str] = msgspec.field(default_factory=dict)
    require_signature: bool = False


class Model(msgspec.Struct, frozen=True):
    """Which model is loaded and how. `template`: `auto`, a built-in chat template's name, or a file. `threads` None
    (`auto`): with the native engine every core that this process may run on, with torch the physical cores.
    `keep_alive`: seconds without a prompt after which the model is unloaded; None (`forever`): never.
    """

    source: str = "smollm2-135m-instruct"
    digest: str | None = None
    bits: str = "auto"
    backend: str = "auto"
    context: int = 2048
    threads: int | None = None
    keep_alive: float | None = None
    template: str = "auto"


class Generation(msgspec.Struct, frozen=True):
    """The values for what a prompt does not set itself. `limits.max_tokens` bounds `max_tokens` where it is lower.

    `unset`: keys that no file and no layer sets; a model's own values come before those here.
    """

    max_tokens: int = 256
    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    system: str | None = None
    unset: tuple[str, ...] = MODEL_SAMPLING

    def sampling(self, overrides: Mapping[str, Any], limits: Limits) -> Sampling:
        """These defaults, within the limits, with a prompt's own values laid over them."""
        own = {name: getattr(self, name) for name in Sampling.__struct_fields__}
        own["max_tokens"] = min(self.max_tokens, limits.max_tokens)
        return Sampling(**{**own, **overrides})

    def unset_by(self, overrides: Mapping[str, Any]) -> tuple[str, ...]:
        """The keys that neither a prompt's own values nor these settings set."""
        return tuple(name for name in self.unset if name not in overrides)


class PerRequester(msgspec.Struct, frozen=True):
    """What one requester may have: prompts open and running at a time, the best priority, prompts a minute.

    `by_name`: requester → the values that differ for it. `prompts_per_minute` None: not bounded.
    """

    queue: int = 16
    running: int = 4
    priority: int = 0
    prompts_per_minute: int | None = None
    by_name: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)

    def of(self, requester: str) -> PerRequester:
        """What this requester may have."""
        own = self.by_name.get(requester)
        return msgspec.structs.replace(self, by_name={}, **own) if own else self


class Limits(msgspec.Struct, frozen=True):
    """Bounds: open prompts, bytes of a payload, tokens of an answer, seconds that finals are remembered.

    `raw`: prompts may bypass the chat template; only the owner allows it.
    """

    queue: int = 64
    prompt_bytes: int = 64_000
    max_tokens: int = 1024
    remember: float = 86400.0
    raw: bool = False
    per_requester: PerRequester = PerRequester()


class Telemetry(msgspec.Struct, frozen=True):
    """`interval` in seconds."""

    interval: float = 10.0


class Log(msgspec.Struct, frozen=True):
    """`format` auto: console on a terminal, JSON elsewhere."""

    level: str = "info"
    format: str = "auto"


class HomeAssistant(msgspec.Struct, frozen=True):
    """`prefix`: of the discovery topics of a Home Assistant that uses the same broker; None: not published there."""

    prefix: str | None = None


class Commands(msgspec.Struct, frozen=True):
    """`allow`: the requesters whose commands are carried out."""

    allow: tuple[str, ...] = ()


class Integrations(msgspec.Struct, frozen=True):
    """Other programs that the device publishes itself to."""

    home_assistant: HomeAssistant = HomeAssistant()


class Trial(msgspec.Struct, frozen=True):
    """How a new model is tried. `probation`: seconds that it must serve before it stays."""

    probation: float = 60.0


class Models(msgspec.Struct, frozen=True):
    """The store. `keep`: how many models stay in it after a change of the model."""

    keep: int = 3


class Settings(msgspec.Struct, frozen=True):
    """Everything that can be set, as it is in force."""

    identity: Identity = Identity()
    mqtt: Mqtt = Mqtt()
    trust: Trust = Trust()
    integrations: Integrations = Integrations()
    commands: Commands = Commands()
    state_dir: str = "/var/lib/edged"
    model: Model = Model()
    generation: Generation = Generation()
    limits: Limits = Limits()
    telemetry: Telemetry = Telemetry()
    log: Log = Log()
    golden: tuple[Golden, ...] = ()
    trial: Trial = Trial()
    models: Models = Models()


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
        trust=Trust(**section("trust")),
        integrations=_integrations(section("integrations")),
        commands=Commands(**section("commands")),
        state_dir=checked.get("state_dir", Settings().state_dir),
        model=Model(**section("model")),
        generation=_generation(section("generation")),
        limits=_limits(section("limits")),
        telemetry=Telemetry(**section("telemetry")),
        log=Log(**section("log")),
        golden=checked.get("golden", ()),
        trial=Trial(**section("trial")),
        models=Models(**section("models")),
    )
    _agree(settings)
    return settings


def _generation(checked: dict[str, Any]) -> Generation:
    return Generation(**checked, unset=tuple(name for name in MODEL_SAMPLING if name not in checked))


def _limits(checked: dict[str, Any]) -> Limits:
    return Limits(**{**checked, "per_requester": PerRequester(**checked.get("per_requester", {}))})


def _integrations(checked: dict[str, Any]) -> Integrations:
    return Integrations(home_assistant=HomeAssistant(**checked.get("home_assistant", {})))


def _agree(settings: Settings) -> None:
    if bool(settings.mqtt.cert) != bool(settings.mqtt.key):
        raise BadValue("mqtt.cert", "needs mqtt.key beside it, and the other way round; give both or neither")
    if (settings.mqtt.ca or settings.mqtt.cert) and not settings.mqtt.url.startswith("mqtts://"):
        raise BadValue("mqtt.ca", "certificates need a URL that starts with mqtts://")
    if settings.trust.require_signature and not settings.trust.keys:
        raise BadValue("trust.require_signature", "needs a key in trust.keys; make one with edgectl keys new")


def show(settings: Settings) -> dict[str, Any]:
    """The settings as they would be written in the file; keys without a value are left out."""
    plain: dict[str, Any] = msgspec.to_builtins(settings)
    plain["limits"]["prompt_bytes"] = checks.show_size(settings.limits.prompt_bytes)
    plain["limits"]["remember"] = checks.show_duration(settings.limits.remember)
    plain["telemetry"]["interval"] = checks.show_duration(settings.telemetry.interval)
    plain["trial"]["probation"] = checks.show_duration(settings.trial.probation)
    for name in plain["generation"].pop("unset"):
        del plain["generation"][name]  # the model's own value is in force, which only the loaded model knows
    plain["golden"] = [golden.show(entry) for entry in settings.golden]
    if settings.model.threads is None:
        plain["model"]["threads"] = "auto"
    keep_alive = settings.model.keep_alive
    plain["model"]["keep_alive"] = "forever" if keep_alive is None else checks.show_duration(keep_alive)
    shown: dict[str, Any] = _without_none(plain)
    return shown


def _without_none(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_none(entry) for key, entry in value.items() if entry is not None}
