"""`edgectl config push`, `undo` and `get`: layers of the desired config, and what the devices report."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edged.command_line import note
from edged.config.schema import Mqtt
from edged.core.errors import BadValue, ConfigError
from edged.ctl.config_history import before, decisions_of, show_diff
from edged.ctl.config_reports import UNSETTLED, Asked, Steps, await_reports, golden_lines, report_of
from edged.ctl.devices import Known, store
from edged.ctl.keys import SigningKey
from edged.link.session import Session, TimedOut
from edged.wire import signatures, strict_json
from edged.wire.layers import parse_layer
from edged.wire.next_revision import next_revision
from edged.wire.replies import rfc3339

RETAINED_WITHIN = 0.8  # seconds in which a broker delivers retained messages
RETAINED_AT_MOST = 3.0  # seconds for all that is retained, however much is published meanwhile
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

    @property
    def topics(self) -> tuple[str, ...]:
        """The layer's topic, and the reports and decisions of these devices; for a group their health, too."""
        root = f"edged/v1/{self.fleet}/device/{self.device or '+'}"
        health = () if self.group is None else (f"{root}/health",)
        return (self.topic, self.reports, f"{root}/config/history", *health)


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


class PushOptions(msgspec.Struct, frozen=True):
    """`key`: signs the layer. `wait`: seconds for the reports. `watch`: until each device has applied or refused it."""

    key: SigningKey | None
    wait: float
    watch: bool
    as_json: bool


Decisions = Mapping[str, list[dict[str, Any]]]
"""The decisions by device, newest first."""
Reports = dict[str, dict[str, Any]]
"""The last report by device."""
Payload = Callable[[bytes, Reports, Decisions], tuple[bytes, int | None]]
"""The layer at the broker, reports and decisions → what to push (empty: remove it), and its revision."""


def push(settings: Mqtt, target: Target, path: Path | None, options: PushOptions) -> int:
    """Push a layer (`path` None: remove it), signed where there is a key, and show the reports.

    Raises ConfigError, BrokerError, TimedOut.
    """

    def payload(current: bytes, reports: Reports, decisions: Decisions) -> tuple[bytes, int | None]:
        return _payload(path, target, options.key, current, reports, decisions)

    return _push(settings, target, payload, options)


def undo(settings: Mqtt, target: Target, options: PushOptions) -> int:
    """Push the settings that a layer had before, by the devices' history. Raises as `push`."""

    def payload(current: bytes, reports: Reports, decisions: Decisions) -> tuple[bytes, int | None]:
        document = before(target.layer, current, decisions)
        return layer_payload(document, target, options.key, current, reports, decisions)

    return _push(settings, target, payload, options)


def _push(settings: Mqtt, target: Target, make: Payload, options: PushOptions) -> int:
    with Session(settings, target.topics) as session, ExitStack() as published:
        retained = _retained(session, target)
        current, reports = retained.current, retained.reports
        payload, revision = make(current, reports, retained.decisions)
        settled = _settled(target, payload, current, reports)
        published.enter_context(_trial_goes_on(options.watch))
        session.publish(target.topic, payload, retain=True)
        wait = options.wait
        # A device may hold other content under the same revision and report that: at once where the broker has the
        # layer already, else (the broker has lost it) like after any other push.
        silent = set(settled) if current else set()
        expected = retained.expected(target)
        if silent and silent >= expected:
            silent, wait = set(), min(wait, CONFLICT_WITHIN)
        show = Steps(sys.stderr) if options.watch and not options.as_json else None
        asked = Asked(target.layer, revision, expected, frozenset(silent), watch=options.watch)
        nobody = target.group is not None and not expected and bool(retained.devices)
        answers = settled | await_reports(session, asked, 0.0 if nobody else wait, show)
    if options.as_json:
        print(json.dumps({"topic": target.topic, "revision": revision, "devices": answers}, ensure_ascii=False))
    else:
        _show(target, revision, answers)
    if not answers and nobody:
        raise TimedOut(f"no known device is in the group {target.group}; devices that join get the layer")
    if not answers:
        raise TimedOut("no device has answered yet; devices that are offline get it when they connect")
    phases = {answer.get("phase") for answer in answers.values()}
    if options.watch and phases & UNSETTLED:
        raise TimedOut("the trial has not ended yet; follow it with edgectl config get, or wait longer with --wait")
    return 1 if phases & {"rejected", "rolled_back"} else 0


@contextmanager
def _trial_goes_on(watch: bool) -> Iterator[None]:
    """Inside, an interrupt is followed by a note on what was pushed."""
    try:
        yield
    except KeyboardInterrupt:
        if watch:
            note("edgectl: the layer stays pushed; its trial goes on (see edgectl config get)")
        raise


def _payload(
    path: Path | None,
    target: Target,
    key: SigningKey | None,
    current: bytes,
    reports: Reports,
    decisions: Decisions,
) -> tuple[bytes, int | None]:
    """The layer of a file (None: its removal) to push, and its revision. Raises ConfigError."""
    return layer_payload(
        None if path is None else read_file(path), target, key, current, reports, decisions, str(path or "the layer")
    )


def layer_payload(
    document: dict[str, Any] | None,
    target: Target,
    key: SigningKey | None,
    current: bytes,
    reports: Reports,
    decisions: Decisions,
    name: str = "the layer",
) -> tuple[bytes, int | None]:
    """The layer to push, and its revision; without one in the document the next.

    A removal is an empty payload; a signed one is a layer with empty settings.
    """
    if document is None and key is None:
        return b"", None
    document = as_layer(document or {})
    if "revision" not in document:
        if key is None:
            following = next_revision(target.layer, current, reports.values(), decisions.values())
        else:
            following = _next_signed(key, target, current, reports)
        document = {"revision": following, "settings": {}, **document}
    try:
        if key is not None:
            document = key.sign(document, target.topic)
        payload = strict_json.dumps(document)
        return payload, parse_layer(payload).revision
    except (BadValue, TypeError, ValueError) as error:
        raise ConfigError(f"{name}: {error}") from None


def as_layer(document: dict[str, Any]) -> dict[str, Any]:
    """Bare settings as a layer without a revision."""
    return document if document.keys() & {"settings", "revision", "trust"} else {"settings": document}


def read_file(path: Path) -> dict[str, Any]:
    """A layer or bare settings in a file. Raises ConfigError."""
    try:
        return read_layer(path.read_text(encoding="utf-8"), path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not valid UTF-8 (byte {error.start})") from None


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
        at_broker = parse_layer(current).revision
        own = signatures.is_signed_by(key.public, target.topic, strict_json.loads(current))
    except (BadValue, KeyError):
        return following
    return max(following, at_broker + 1) if own else following


class Retained(msgspec.Struct):
    """What the broker retains: the layer's payload, and reports, decisions and, for a group, more by device."""

    current: bytes = b""
    reports: Reports = {}
    decisions: dict[str, list[dict[str, Any]]] = {}
    devices: dict[str, Known] = {}

    def expected(self, target: Target) -> frozenset[str]:
        """The known devices that have the layer."""
        if target.group is None:
            return frozenset(self.reports)
        return frozenset(name for name, known in self.devices.items() if target.group in known.groups)


def _retained(session: Session, target: Target) -> Retained:
    found = Retained()
    until = time.monotonic() + RETAINED_AT_MOST
    with suppress(TimedOut):
        while (left := until - time.monotonic()) > 0:
            message = next(session.messages(min(left, RETAINED_WITHIN)))
            if message.topic == target.topic:
                found.current = message.payload
                continue
            if target.group is not None:
                store(found.devices, message)
            if (report := report_of(message)) is not None:
                found.reports[message.topic.split("/")[4]] = report
            elif (past := decisions_of(message)) is not None:
                found.decisions[message.topic.split("/")[4]] = past
    return found


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
    refused = {
        device: report
        for device, report in before.items()
        if current
        and (report.get("phase"), report.get("layer"), report.get("revision"))
        == ("rolled_back", answer["layer"], answer["revision"])
    }
    return refused | {device: {**report, **answer} for device, report in before.items() if _has(report, answer)}


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


def _show(target: Target, revision: int | None, answers: dict[str, dict[str, Any]]) -> None:
    console = Console(highlight=False)
    what = "removed" if revision is None else f"revision {revision} pushed"
    console.print(f"{target.layer}: {what} ({target.topic})")
    table = Table("device", "phase", "reason", "in force", box=None, header_style="bold")
    for device, answer in sorted(answers.items()):
        colour = {"applied": "green", "trial": "yellow", "waiting": "yellow"}.get(str(answer["phase"]), "red")
        table.add_row(device, f"[{colour}]{answer['phase']}[/]", escape(str(answer.get("reason"))), _in_force(answer))
    if answers:
        console.print(table)
    for device, answer in sorted(answers.items()):
        for line in golden_lines(answer):
            console.print(f"{device}: {line}", markup=False)


def _in_force(report: dict[str, Any]) -> str:
    revisions = report.get("in_force")
    if not isinstance(revisions, dict):
        return "unknown"
    return " ".join(f"{layer}:{revision}" for layer, revision in revisions.items()) or "own file"


def diff(settings: Mqtt, target: Target, path: Path, as_json: bool) -> int:
    """Show what a push of this file would change, without pushing it. Raises ConfigError, BrokerError."""
    document = read_file(path)
    with Session(settings, target.topics) as session:
        found = _retained(session, target)
    payload, _ = layer_payload(document, target, None, found.current, found.reports, found.decisions)
    new, devices = json.loads(payload)["settings"], sorted(found.expected(target))
    return show_diff(target.layer, target.topic, found.current, new, devices, as_json)


def get(settings: Mqtt, fleet: str, as_json: bool) -> int:
    """Show every layer at the broker and every device's report."""
    root = f"edged/v1/{fleet}"
    topics = (f"{root}/config", f"{root}/group/+/config", f"{root}/device/+/config", f"{root}/device/+/config/reported")
    layers: dict[str, Any] = {}
    reports: dict[str, Any] = {}
    with Session(settings, topics) as session:
        try:
            for message in session.messages(RETAINED_WITHIN):
                if (report := report_of(message)) is not None:
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
