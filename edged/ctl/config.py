"""`edgectl config push` and `get`: layers of the desired config, and what the devices report."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edged.config.schema import Mqtt
from edged.core.errors import BadValue, ConfigError
from edged.ctl.keys import SigningKey
from edged.link.events import Arrived
from edged.link.session import Session, TimedOut
from edged.wire import signatures, strict_json
from edged.wire.layers import parse_layer
from edged.wire.replies import rfc3339

RETAINED_WITHIN = 0.8  # seconds in which a broker delivers retained messages
CONFLICT_WITHIN = 1.0  # seconds in which a device that has this revision reports other content


class Target(msgspec.Struct, frozen=True):
    """Which layer: of the whole fleet, of a group, or of a device."""

    fleet: str
    group: str | None = None
    device: str | None = None

    @property
    def topic(self) -> str:
        """The layer's retained topic."""
        root = f"edged/v1/{self.fleet}"
        if self.device is not None:
            return f"{root}/device/{self.device}/config"
        return f"{root}/group/{self.group}/config" if self.group is not None else f"{root}/config"

    @property
    def layer(self) -> str:
        """The layer's name in reports."""
        if self.device is not None:
            return "device"
        return f"group:{self.group}" if self.group is not None else "fleet"

    @property
    def reports(self) -> str:
        """The reported topics of the devices that have this layer."""
        return f"edged/v1/{self.fleet}/device/{self.device or '+'}/config/reported"


def read_layer(source: str, path: Path) -> dict[str, Any]:
    """A layer or bare settings as JSON or YAML text. Raises ConfigError."""
    try:
        document = strict_json.loads(source.encode()) if source.lstrip().startswith("{") else yaml.safe_load(source)
    except (BadValue, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON or YAML ({' '.join(str(error).split())})") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: must be a mapping of settings, or a layer with revision and settings")
    if isinstance(moment := document.get("expires_at"), datetime) and moment.tzinfo is not None:
        document["expires_at"] = rfc3339(moment.timestamp())  # YAML reads it as a time where it has no quotes
    return document


def push(settings: Mqtt, target: Target, path: Path | None, key: SigningKey | None, wait: float, as_json: bool) -> int:
    """Push a layer (`path` None: remove it), signed where there is a key, and show the reports.

    Raises ConfigError, BrokerError, TimedOut.
    """
    with Session(settings, (target.topic, target.reports)) as session:
        current, before = _retained(session, target)
        payload, revision = _payload(path, target, key, current, before)
        settled = _settled(target, payload, current, before)
        session.publish(target.topic, payload, retain=True)
        # A device may hold other content under the same revision and report that: at once where the broker has the
        # layer already, else (the broker has lost it) like after any other push.
        silent = set(settled) if current else set()
        if silent and silent >= set(before):
            silent, wait = set(), min(wait, CONFLICT_WITHIN)
        answers = settled | _await_reports(session, target, revision, set(before), silent, wait)
    if as_json:
        print(json.dumps({"topic": target.topic, "revision": revision, "devices": answers}, ensure_ascii=False))
    else:
        _show(target, revision, answers)
    if not answers:
        raise TimedOut("no device has answered yet; devices that are offline get it when they connect")
    return 1 if any(answer["phase"] == "rejected" for answer in answers.values()) else 0


def _payload(
    path: Path | None, target: Target, key: SigningKey | None, current: bytes, reports: dict[str, dict[str, Any]]
) -> tuple[bytes, int | None]:
    """The layer to push, and its revision; without one in the file the next.

    A removal is an empty payload; a signed one is a layer with empty settings.
    """
    if path is None and key is None:
        return b"", None
    document = {"settings": {}} if path is None else _read(path)
    if not document.keys() & {"settings", "revision", "trust"}:
        document = {"settings": document}
    if "revision" not in document:
        following = _next_revision(current) if key is None else _next_signed(key, target, current, reports)
        document = {"revision": following, "settings": {}, **document}
    try:
        if key is not None:
            document = key.sign(document, target.topic)
        payload = strict_json.dumps(document)
        return payload, parse_layer(payload).revision
    except (BadValue, TypeError, ValueError) as error:
        raise ConfigError(f"{path or 'the layer'}: {error}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_layer(path.read_text(encoding="utf-8"), path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not valid UTF-8 (byte {error.start})") from None


def _next_revision(current: bytes) -> int:
    try:
        return parse_layer(current).revision + 1
    except BadValue:
        return 1


def _next_signed(key: SigningKey, target: Target, current: bytes, reports: dict[str, dict[str, Any]]) -> int:
    """The revision after those that devices have in force, and after the broker's where this key signed that.

    Anyone may have put another layer there: a very high revision in it would make this key sign the last one ever.
    """
    known = [
        in_force.get(target.layer)
        for report in reports.values()
        if isinstance(in_force := report.get("in_force"), dict)
    ]
    following = max((revision for revision in known if type(revision) is int), default=0) + 1
    try:
        parse_layer(current)
        own = signatures.is_signed_by(key.public, target.topic, strict_json.loads(current))
    except (BadValue, KeyError):
        return following
    return max(following, _next_revision(current)) if own else following


def _retained(session: Session, target: Target) -> tuple[bytes, dict[str, dict[str, Any]]]:
    """What is retained at the broker: the layer's payload, and the reports by device."""
    payload, reports = b"", {}
    try:
        for message in session.messages(RETAINED_WITHIN):
            if message.topic == target.topic:
                payload = message.payload
            elif (report := _report(message)) is not None:
                reports[message.topic.split("/")[4]] = report
    except TimedOut:
        pass
    return payload, reports


def _settled(
    target: Target, payload: bytes, current: bytes, before: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Answers for devices that report this layer as in force already: they publish no new report for its push."""
    if not payload or (current and not _same(payload, current)):
        return {}
    answer = {
        "phase": "applied",
        "layer": target.layer,
        "revision": parse_layer(payload).revision,
        "reason": "this revision was in force already",
    }
    return {device: {**report, **answer} for device, report in before.items() if _has(report, answer)}


def _same(payload: bytes, current: bytes) -> bool:
    try:
        return parse_layer(current) == parse_layer(payload)
    except BadValue:
        return False


def _has(report: dict[str, Any], answer: dict[str, Any]) -> bool:
    """Whether by this report the layer is in force and the last push to it did not fail."""
    in_force = report.get("in_force")
    failed = report.get("layer") == answer["layer"] and report.get("phase") != "applied"
    return isinstance(in_force, dict) and in_force.get(answer["layer"]) == answer["revision"] and not failed


def _await_reports(
    session: Session, target: Target, revision: int | None, known: set[str], silent: set[str], wait: float
) -> dict[str, dict[str, Any]]:
    """New reports about this layer, until every known device has sent one, except those in `silent`."""
    answers: dict[str, dict[str, Any]] = {}
    until = time.monotonic() + wait
    while (left := until - time.monotonic()) > 0 and not (known and known <= silent | set(answers)):
        try:
            for message in session.messages(left):
                report = _report(message)
                if report is not None and report.get("layer") == target.layer and report.get("revision") == revision:
                    answers[message.topic.split("/")[4]] = report
                if known and known <= silent | set(answers):
                    break
        except TimedOut:
            break
    return answers


def _report(message: Arrived) -> dict[str, Any] | None:
    if not message.topic.endswith("/config/reported") or not message.payload:
        return None
    try:
        document = json.loads(message.payload)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _show(target: Target, revision: int | None, answers: dict[str, dict[str, Any]]) -> None:
    console = Console(highlight=False)
    what = "removed" if revision is None else f"revision {revision} pushed"
    console.print(f"{target.layer}: {what} ({target.topic})")
    table = Table("device", "phase", "reason", "in force", box=None, header_style="bold")
    for device, answer in sorted(answers.items()):
        colour = "green" if answer["phase"] == "applied" else "red"
        table.add_row(device, f"[{colour}]{answer['phase']}[/]", escape(str(answer.get("reason"))), _in_force(answer))
    if answers:
        console.print(table)


def _in_force(report: dict[str, Any]) -> str:
    revisions = report.get("in_force")
    if not isinstance(revisions, dict):
        return "unknown"
    return " ".join(f"{layer}:{revision}" for layer, revision in revisions.items()) or "own file"


def get(settings: Mqtt, fleet: str, as_json: bool) -> int:
    """Show every layer at the broker and every device's report."""
    root = f"edged/v1/{fleet}"
    topics = (f"{root}/config", f"{root}/group/+/config", f"{root}/device/+/config", f"{root}/device/+/config/reported")
    layers: dict[str, Any] = {}
    reports: dict[str, Any] = {}
    with Session(settings, topics) as session:
        try:
            for message in session.messages(RETAINED_WITHIN):
                if (report := _report(message)) is not None:
                    reports[message.topic.split("/")[4]] = report
                elif message.payload and not message.topic.endswith("/reported"):
                    layers[message.topic[len(root) + 1 :].removesuffix("/config")] = _plain(message.payload)
        except TimedOut:
            pass
    if as_json:
        print(json.dumps({"layers": layers, "reported": reports}, ensure_ascii=False))
        return 0
    console = Console(highlight=False)
    for name, layer in sorted(layers.items()):
        console.print(f"[bold]{'fleet' if name == 'config' else name}[/]")
        console.print(yaml.safe_dump(layer, sort_keys=False, allow_unicode=True), markup=False, end="")
    if not layers:
        console.print(f"the broker has no layer for the fleet {fleet}")
    for device, report in sorted(reports.items()):
        what = f"{report.get('phase')}, {escape(str(report.get('reason')))}; in force: {_in_force(report)}"
        console.print(f"[bold]{device}[/]: {what}", markup=True)
    return 0


def _plain(payload: bytes) -> Any:
    try:
        return json.loads(payload)
    except ValueError:
        return payload.decode("utf-8", "replace")
