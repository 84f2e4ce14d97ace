"""The steps from the settings in force to others: a pure function. What needs no trial is applied in place."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from edged.config import checks
from edged.config.schema import Settings
from edged.core.chat_templates import is_file
from edged.core.errors import BadValue
from edged.core.model_source import REMOTE, source_kind

StepName = Literal["fetch", "verify", "load", "judge", "probation", "adopt", "apply"]


class Step(msgspec.Struct, frozen=True):
    """One step. `what` is a sentence for a person."""

    name: StepName
    what: str


Plan = tuple[Step, ...]
_IN_PLACE = ("generation", "limits", "telemetry", "log", "golden", "trial", "models")
_AT_START = ("identity", "mqtt", "trust", "integrations", "state_dir")
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def needs_trial(current: Settings, target: Settings) -> bool:
    """Whether the way to `target` is a trial: the model, or how it is loaded, differs."""
    return msgspec.structs.replace(current.model, keep_alive=None) != msgspec.structs.replace(
        target.model, keep_alive=None
    )


def needs_restart(current: Settings, target: Settings) -> tuple[str, ...]:
    """The sections of the owner's file that differ and cannot be applied while the daemon runs."""
    fixed = [name for name in _AT_START if getattr(current, name) != getattr(target, name)]
    return tuple(fixed + (["model"] if needs_trial(current, target) else []))


def differing(current: Settings, target: Settings) -> tuple[str, ...]:
    """The sections that differ."""
    return tuple(name for name in Settings.__struct_fields__ if getattr(current, name) != getattr(target, name))


def plan(current: Settings, target: Settings, catalog: Collection[str] = ()) -> Plan:
    """The steps from `current` to `target`, in order; empty where nothing differs.

    `catalog` has the names of models that can be fetched.
    """
    if needs_trial(current, target):
        return _trial(current, target, catalog)
    sections = [name for name in _IN_PLACE if getattr(current, name) != getattr(target, name)]
    if current.model != target.model:
        sections.insert(0, "model.keep_alive")
    return (Step("apply", f"apply in place: {', '.join(sections)}"),) if sections else ()


def _trial(current: Settings, target: Settings, catalog: Collection[str]) -> Plan:
    model, steps = target.model, []
    if (model.source, model.digest) != (current.model.source, current.model.digest):
        kind = source_kind(model.source)
        if fetched := kind in REMOTE or model.source in catalog:
            steps.append(Step("fetch", f"fetch {model.source}, unless it is in the store"))
        if fetched or kind == "digest":  # the worker verifies others when it loads them
            steps.append(Step("verify", f"verify the bytes of {model.source}"))
    prompts = len(target.golden)
    judged = f"{prompts} golden prompt{'s' * (prompts != 1)}" if prompts else "a built-in prompt, by a whole answer"
    return (
        *steps,
        Step("load", f"load it with a context of {model.context} tokens, beside the old model if memory allows"),
        Step("judge", f"judge it by {judged}"),
        Step("probation", f"let it serve for {checks.show_duration(target.trial.probation)}"),
        Step("adopt", "adopt the settings; else the old ones stay in force"),
    )


def check_model(settings: Mapping[str, Any], catalog: Collection[str]) -> None:
    """What a layer may name as a model: the catalog, `hf:` or `https://` with a digest, a digest in the store; as its
    template none in a file. Raises BadValue.
    """
    model = settings.get("model", {})
    if is_file(model.get("template", "")):
        raise BadValue("model.template", "a file can only be named in the device's own file; name a built-in template")
    source = model.get("source")
    if source is None:
        return
    match source_kind(source):
        case "hub" | "address" if "digest" not in model:
            raise BadValue("model.digest", f"is required beside {checks.shown(source)}: give the SHA-256 of the model")
        case "name" if source not in catalog:
            known = f"{checks.nearest(source, catalog)}; a layer names one of {', '.join(sorted(catalog))}"
            raise BadValue("model.source", f"{checks.shown(source)} is not in this device's catalog{known}")
        case "digest" if not checks.DIGEST.match(source):
            raise BadValue("model.source", f"must be sha256: and 64 hex digits, not {checks.shown(source)}")
        case "address":
            _check_address(source)
        case "path":
            raise BadValue(
                "model.source",
                f"{checks.shown(source)} can only be named in the device's own file; a layer names the catalog, "
                "hf: or https:// with a digest, or sha256:… of a model in the store",
            )


def _check_address(source: str) -> None:
    try:
        parts = urlsplit(source)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or not source.isprintable() or " " in source:
        raise BadValue("model.source", f"must be https://HOST/FILE, not {checks.shown(source)}")
    if "@" in parts.netloc:
        raise BadValue("model.source", "must not have a user name or password: everyone at the broker can read a layer")
    if parts.scheme != "https" and host not in _LOOPBACK:
        raise BadValue("model.source", f"{checks.shown(source)} is not encrypted; use https://")
