"""`edgectl rollout`: a layer that devices apply in stages. All state is retained at the broker: the layer, a schedule.

Any operator may halt, resume or run a roll-out that another has started; a command that ends changes nothing. A halt
wins over a stage that another operator publishes at the same moment: it is repeated until it is what the broker has.
"""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from edged.config.schema import Settings
from edged.core.errors import BadValue, ConfigError, EdgedError
from edged.ctl import rollout_state
from edged.ctl.config import RETAINED_WITHIN, Target, as_layer, layer_payload, read_file
from edged.ctl.config_reports import report_of
from edged.ctl.keys import SigningKey
from edged.ctl.rollout_state import Verdict, View
from edged.link.events import Arrived
from edged.link.session import Session, TimedOut
from edged.wire import rollout_schedule, signatures, strict_json
from edged.wire.layers import Layer, parse_layer
from edged.wire.replies import rfc3339
from edged.wire.rollout_schedule import Schedule

HALT_SEEN: Final = 1.0  # seconds in which a stage of another operator arrives after a halt
HALT_TRIES: Final = 5
LOOK_EVERY: Final = 0.5


class Plan(msgspec.Struct, frozen=True):
    """What `start` is given; the rest of a roll-out follows from the broker."""

    id: str
    stages: tuple[float, ...]
    soak: float
    max_failures: float
    window: str | None = None
    not_before: float | None = None


class Rollouts:
    """What the broker retains about the roll-outs of a fleet, kept up to date while the session is read."""

    def __init__(self, settings: Settings, key: SigningKey | None) -> None:
        self.fleet = settings.identity.fleet
        self._key = key
        self._trusted = {**settings.trust.keys, **({} if key is None else {key.name: key.public})}
        root = f"edged/v1/{self.fleet}"
        self._root = root
        topics = (
            f"{root}/rollout/+",
            f"{root}/config",
            f"{root}/group/+/config",
            f"{root}/device/+/status",
            f"{root}/device/+/config/reported",
            f"{root}/device/+/health",
        )
        self._session = Session(settings.mqtt, topics)
        self.layers: dict[str, bytes] = {}
        self.schedules: dict[str, Schedule] = {}
        self._statuses: dict[str, str] = {}
        self._reports: dict[str, dict[str, Any]] = {}
        self._groups: dict[str, tuple[str, ...]] = {}
        self._halted: dict[str, int] = {}  # the highest halted revision that was seen, by roll-out

    def __enter__(self) -> Rollouts:  # noqa: PYI034  - typing.Self needs 3.11
        self._session.__enter__()
        self.read(RETAINED_WITHIN)
        return self

    def __exit__(self, *_error: object) -> None:
        self._session.__exit__(None, None, None)

    @property
    def view(self) -> View:
        """The devices."""
        return View(self._statuses, self._reports, self._groups)

    def read(self, quiet: float, longest: float = 60.0) -> None:
        """Messages, until none has come for `quiet` seconds, or for `longest` seconds."""
        until = time.monotonic() + longest
        try:
            for message in self._session.messages(quiet):
                self._process(message)
                if time.monotonic() > until:
                    return
        except TimedOut:
            return

    def _process(self, message: Arrived) -> None:
        parts = message.topic[len(self._root) + 1 :].split("/")
        match parts:
            case ["rollout", _]:
                self._process_schedule(parts[1], message.payload)
            case ["config"]:
                self._process_layer("fleet", message.payload)
            case ["group", group, "config"]:
                self._process_layer(f"group:{group}", message.payload)
            case ["device", device, "status"]:
                self._statuses.pop(device, None)
                if message.payload:
                    self._statuses[device] = message.payload.decode("utf-8", "replace")
            case ["device", device, "health"]:
                self._groups[device] = _groups(message.payload)
            case ["device", device, "config", "reported"] if (report := report_of(message)) is not None:
                self._reports[device] = report

    def _process_layer(self, name: str, payload: bytes) -> None:
        self.layers[name] = payload
        layer = self.layer(name)
        if layer is not None and layer.rollout is not None and layer.rollout.halted:
            known = self._halted.get(layer.rollout.id, -1)
            self._halted[layer.rollout.id] = max(known, layer.revision)

    def _process_schedule(self, name: str, payload: bytes) -> None:
        self.schedules.pop(name, None)
        try:
            found = rollout_schedule.parse(payload) if payload else None
        except BadValue:
            return
        if found is not None and found.id == name:
            self.schedules[name] = found

    # ---- one roll-out -----------------------------------------------------------------------------------------------

    def choose(self, name: str | None) -> Schedule:
        """The roll-out of this name; without one the only one that has not ended, else the last. Raises EdgedError."""
        if name is not None:
            if name not in self.schedules:
                raise EdgedError(f"the broker has no roll-out {name}; see edgectl rollout list")
            return self.schedules[name]
        present = [one for one in self.schedules.values() if self.layer_of(one) is not None and one.state != "done"]
        candidates = present or list(self.schedules.values())
        if not candidates:
            raise EdgedError("the broker has no roll-out; start one with edgectl rollout start FILE")
        if len(present) > 1:
            names = ", ".join(sorted(one.id for one in present))
            raise EdgedError(f"there are several roll-outs ({names}); name one")
        return max(candidates, key=lambda one: one.started)

    def layer_of(self, schedule: Schedule) -> Layer | None:
        """The layer of a roll-out, where the broker still has it."""
        layer = self.layer(schedule.layer)
        return layer if layer is not None and layer.rollout is not None and layer.rollout.id == schedule.id else None

    def layer(self, name: str) -> Layer | None:
        """The layer of this name; None where there is none, or it cannot be read."""
        try:
            return parse_layer(self.layers.get(name, b""))
        except BadValue:
            return None

    def present(self, name: str | None) -> tuple[Schedule, Layer]:
        """A roll-out whose layer the broker has. Raises EdgedError."""
        schedule = self.choose(name)
        layer = self.layer_of(schedule)
        if layer is None:
            raise EdgedError(f"another layer has replaced the roll-out {schedule.id}; see edgectl config get")
        return schedule, layer

    # ---- publishing -------------------------------------------------------------------------------------------------

    def save(self, schedule: Schedule) -> None:
        """Retain the schedule."""
        self.schedules[schedule.id] = schedule
        payload = rollout_schedule.schedule(schedule)
        self._session.publish(rollout_schedule.topic(self.fleet, schedule.id), payload, retain=True)

    def publish(self, target: Target, payload: bytes) -> None:
        """Retain a layer."""
        self.layers[target.layer] = payload
        self._session.publish(target.topic, payload, retain=True)

    def change(self, schedule: Schedule, by: int = 1, **changes: Any) -> Layer:
        """Publish a revision of the layer that is higher `by` this, with these changes of its `rollout`.

        Raises ConfigError.
        """
        target = target_of(self.fleet, schedule.layer)
        document = self._trusted_document(target)
        rollout = {**document["rollout"], **changes}
        document |= {"revision": document["revision"] + by, "rollout": rollout}
        payload, _ = layer_payload(document, target, self._key, b"", {}, {})
        self.publish(target, payload)
        return parse_layer(payload)

    def start(self, target: Target, document: dict[str, Any], plan: Plan) -> Schedule:
        """Publish the schedule and the first stage. Raises ConfigError, EdgedError."""
        self._check_free(target, plan)
        rollout: dict[str, Any] = {"id": plan.id, "percent": plan.stages[0], "seed": secrets.token_hex(8)}
        rollout["previous"] = _previous(self.layers.get(target.layer, b""))
        if plan.window is not None:
            rollout["window"] = plan.window
        if plan.not_before is not None:
            rollout["not_before"] = rfc3339(plan.not_before)
        present = self.layers.get(target.layer, b"")
        layer = {**as_layer(document), "rollout": rollout}
        payload, revision = layer_payload(layer, target, self._key, present, self._reports, {})
        now = time.time()
        schedule = Schedule(
            plan.id,
            target.layer,
            plan.stages,
            plan.soak,
            plan.max_failures,
            revision or 0,
            plan.stages[0],
            max(now, plan.not_before or now),
            now,
            rollout_state.absent(self.view, target.layer),
        )
        self.save(schedule)
        self.publish(target, payload)
        return schedule

    def advance(self, schedule: Schedule, percent: float) -> Schedule:
        """Begin the stage `percent`: the schedule first, so that a command that ends between both can be repeated."""
        missing = rollout_state.absent(self.view, schedule.layer)
        schedule = msgspec.structs.replace(schedule, percent=percent, since=time.time(), absent=missing)
        self.save(schedule)
        self.change(schedule, percent=percent)
        return schedule

    def halt(self, schedule: Schedule, state: rollout_schedule.State, why: str) -> Schedule:
        """Halt the layer, until the broker has it halted, then the schedule. Raises EdgedError."""
        for _ in range(HALT_TRIES):
            self.change(schedule, 2, halted=True)  # above a stage that is published at this moment
            self.read(HALT_SEEN, 2 * HALT_SEEN)
            layer = self.layer_of(schedule)
            if layer is None or (layer.rollout is not None and layer.rollout.halted):
                break
        else:
            raise EdgedError(f"another operator goes on with {schedule.id}; end that command and try again")
        schedule = msgspec.structs.replace(self.schedules[schedule.id], state=state, why=why)
        self.save(schedule)
        return schedule

    def resume(self, schedule: Schedule, max_failures: float | None) -> Schedule:
        """Go on with the present stage, which begins anew."""
        allowed = schedule.max_failures if max_failures is None else max_failures
        missing = rollout_state.absent(self.view, schedule.layer)
        schedule = msgspec.structs.replace(
            schedule, state="running", why="", since=time.time(), absent=missing, max_failures=allowed
        )
        self.save(schedule)
        self.change(schedule, halted=False)
        return schedule

    def step(self, name: str) -> tuple[Schedule, Verdict]:
        """Look once at a running roll-out, and do what follows. Raises EdgedError."""
        schedule, layer = self.present(name)
        if self._overrides_halt(schedule, layer):
            schedule = self.halt(schedule, "halted", schedule.why or "halted by an operator")
            return schedule, Verdict("ended", schedule.why)
        of = layer.rollout
        if of is not None and of.percent != schedule.percent and rollout_state.state(schedule, layer) == "running":
            schedule = self.advance(schedule, schedule.percent)  # the command that began the stage ended before this
            schedule, layer = self.present(name)
        verdict = rollout_state.judge(schedule, layer, self.view, time.time())
        match verdict.step:
            case "stop":
                schedule = self.halt(schedule, "stopped", verdict.why)
            case "next":
                schedule = self.advance(schedule, verdict.percent)
            case "done":
                schedule = msgspec.structs.replace(schedule, state="done", why=verdict.why)
                self.save(schedule)
        return schedule, verdict

    def _overrides_halt(self, schedule: Schedule, layer: Layer) -> bool:
        """Whether a stage of another command came after a halt that this did not know. `resume` is always above it."""
        if layer.rollout is None or layer.rollout.halted:
            return False
        return schedule.state in {"halted", "stopped"} or layer.revision <= self._halted.get(schedule.id, -1)

    # ---- checks -----------------------------------------------------------------------------------------------------

    def _check_free(self, target: Target, plan: Plan) -> None:
        if plan.id in self.schedules:
            raise ConfigError(f"the broker has a roll-out {plan.id} already; choose another --id")
        for one in self.schedules.values():
            layer = self.layer_of(one)
            if one.layer == target.layer and layer is not None and rollout_state.state(one, layer) == "running":
                raise ConfigError(f"the roll-out {one.id} runs on this layer; wait for its end, or halt it first")

    def _trusted_document(self, target: Target) -> dict[str, Any]:
        """The layer at the broker as JSON. A signed one must be of a known key: else this would sign a stranger's."""
        document: dict[str, Any] = strict_json.loads(self.layers[target.layer])
        signature = document.pop("signature", None)
        if signature is None and self._key is None:
            return document
        if self._key is None:
            raise ConfigError("the layer is signed; give the key to sign the next stage with --key FILE")
        if signature is None:
            raise ConfigError("the layer at the broker has no signature; start the roll-out again with --key FILE")
        public = self._trusted.get(signature["key"])
        if public is None:
            raise ConfigError(
                f"the layer is signed with the key {signature['key']}; "
                "give its public key in trust.keys of a config file (--config FILE), so that it can be verified"
            )
        if not signatures.is_signed_by(public, target.topic, {**document, "signature": signature}):
            raise ConfigError(f"the layer at the broker was not signed with the key {signature['key']}; start it again")
        return document


def target_of(fleet: str, layer: str) -> Target:
    """The layer of this name."""
    return Target(fleet, None if layer == "fleet" else layer.removeprefix("group:"))


def _previous(payload: bytes) -> dict[str, Any]:
    """The settings of before, as they were pushed.

    After a roll-out that did not reach every device these are those of before that.
    """
    try:
        of = parse_layer(payload).rollout
    except BadValue:
        return {}
    document: dict[str, Any] = strict_json.loads(payload)
    unfinished = of is not None and (of.halted or of.percent < 100)
    found: dict[str, Any] = document["rollout"].get("previous", {}) if unfinished else document["settings"]
    return found


def _groups(payload: bytes) -> tuple[str, ...]:
    try:
        document = json.loads(payload) if payload else {}
    except ValueError:
        return ()
    groups = document.get("groups") if isinstance(document, dict) else None
    return tuple(str(group) for group in groups) if isinstance(groups, list) else ()


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a file, as a layer without revision and roll-out. Raises ConfigError."""
    document = read_file(path)
    for key in ("revision", "rollout", "signature", "trust"):
        if key in document:
            raise ConfigError(f"{path}: {key} is not for a roll-out's file; give the settings")
    return document
