"""The desired config on this device: the owner's file, the stored layers, what is in force and what is reported.

Owned by the agent's main thread. The decisions themselves are pure: `layers.decide` about a push, `plan.plan` about the
way to new settings. A push that changes the model becomes the `trial`, which ends by `commit` or `roll_back`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from edged.config.schema import Settings, build
from edged.core.golden import GoldenResult
from edged.fleet import layer_store, layers, rollout, trust_store
from edged.fleet.history import History
from edged.fleet.layers import Decision, Layers, PushedLayer
from edged.fleet.plan import Plan, differing, needs_restart, needs_trial, plan
from edged.fleet.rollout_delays import RolloutDelays, minute_of_day
from edged.fleet.trial_store import RefusedPush, Running, TrialStore
from edged.fleet.trust import Trust, TrustRecord
from edged.wire.layers import BadLayer, Decided, Layer, Reported, settings_text
from edged.wire.topics import Topics

TRUST_FILE = "trust.json"
"""The file of revision floors and keys, in the folder of the layers."""
TRIALS_FILE = "trials.json"
HISTORY_FILE = "history.json"
NO_CATALOG: Mapping[str, str] = MappingProxyType({})
_NOT_HELD = "the settings of before the roll-out did not hold"
RESTARTED = "the agent or the machine restarted during the trial"


class InForce(msgspec.Struct, frozen=True):
    """The settings in force, and the revisions of the layers that shaped them."""

    settings: Settings
    revisions: Mapping[str, int]


class Update(msgspec.Struct, frozen=True):
    """What became of one push. `storage_error`: why the report could not be written to disk."""

    layer: str
    report: Reported
    storage_error: str | None = None


class TrialOrder(msgspec.Struct, frozen=True):
    """A push that must be tried. `pushed` None: the layer is removed."""

    layer: str
    pushed: PushedLayer | None
    current: Settings
    target: Settings
    steps: Plan

    @property
    def revision(self) -> int | None:
        """That of the push; None for a removal."""
        return self.pushed.layer.revision if self.pushed is not None else None

    @property
    def payload(self) -> bytes:
        """The bytes that were pushed."""
        return self.pushed.payload if self.pushed is not None else b""

    @property
    def previous(self) -> bool:
        """Whether the settings of before a roll-out are tried, while the device waits for it."""
        return self.pushed is not None and self.pushed.previous


class Postponed(msgspec.Struct, frozen=True):
    """The push waits for the end of the trial; `why` not None: the trial is withdrawn for this reason."""

    why: str | None


class RestartNeededError(Exception):
    """The owner's file differs in these sections, which are read at the start alone."""

    def __init__(self, sections: tuple[str, ...]) -> None:
        super().__init__(", ".join(sections))
        self.sections = sections


class DesiredConfig:
    """`in_force`, `report` and `trust` are replaced whole at each update, never changed. `load` reads what is stored.

    `path` is the file of the layers; those of the floors, the trials and the history lie beside it. `catalog` has the
    models that a layer may name, each with its digest.
    """

    def __init__(
        self,
        owner: dict[str, Any],
        topics: Topics,
        path: Path,
        catalog: Mapping[str, str] = NO_CATALOG,
        minute: Callable[[float], int] = minute_of_day,
    ) -> None:
        settings = build(owner)
        self._owner = owner
        self._catalog = catalog
        self._topic = {layer: topic for topic, layer in topics.layers.items()}
        self._scope = topics.own
        self._order = tuple(topics.layers.values())
        self._path = path
        self._trust_path = path.with_name(TRUST_FILE)
        self._layers: Layers = {}
        self._trials = TrialStore(path.with_name(TRIALS_FILE), topics.own)
        self._postponed: dict[str, bytes] = {}
        self._delays = RolloutDelays(topics.device, minute)
        self.history = History(path.with_name(HISTORY_FILE), topics.own)
        self.trial: TrialOrder | None = None
        self._since = 0.0
        self.report = layer_store.NOTHING_PUSHED
        self.in_force = InForce(settings, {})
        self.trust = Trust(settings.trust, TrustRecord())
        self.damage: str | None = None
        """Why the stored layers could not be read; the broker sends those that it retains at the next connect."""

    def load(self, now: float = 0.0) -> None:
        """Put the stored layers in force. Damaged ones are moved away; `damage` names the file.

        A trial that was running when the agent ended is rolled back, at Unix time `now`.
        """
        self.history.load()
        self._trials.load()
        record = self._load_trust()
        try:
            stored = layer_store.load(self._path, self._scope)
        except layer_store.DamagedError as error:
            self.damage = str(error)
            stored = layer_store.StoredLayers(self._scope, {}, layer_store.NOTHING_PUSHED)
        self._layers = layers.parse_stored(
            self._catalog, stored.layers, self._order, self._check_stored, stored.previous
        )
        # The owner may have left a group whose layer waits.
        own = {name: one for name, one in stored.waiting.items() if name in self._topic}
        self._delays.load(self._catalog, own)
        if record is None:
            self._set_floors()
        self._put_in_force()
        self.report = msgspec.structs.replace(stored.reported, in_force=self.in_force.revisions)
        if (running := self._trials.running) is not None:
            adopted = stored.layers.get(running.layer, b"") == running.payload
            if adopted and running.previous == (running.layer in stored.previous):
                self._trials.end()  # it was adopted; the record could not be removed any more
            else:
                self._end_interrupted(running, now)

    # ---- pushes -----------------------------------------------------------------------------------------------------

    def apply(
        self, name: str, payload: bytes, now: float, *, busy: bool = False
    ) -> Update | TrialOrder | Postponed | None:
        """Judge a push to the layer `name` at Unix time `now`; gives None where nothing is new.

        `busy`: the device has prompts to answer, which delay a roll-out.
        """
        topic = self._topic[name]
        decision = layers.decide(
            self._catalog,
            self._layers,
            self.report,
            name,
            payload,
            lambda payload, layer: self._check(name, topic, payload, layer, now),
        )
        if decision.changed and decision.reported.phase == "rejected":
            self._delays.rejected(name, payload)
            return self._store(name, decision.reported, now)
        pushed = decision.layers.get(name)
        if (again := self._refused_before(name, pushed, payload)) is not None:
            self._delays.remove(name)
            return self._repeat(name, again, pushed, now)
        if self.trial is not None and (postponed := self._beside_trial(name, pushed, payload)) is not None:
            return postponed if isinstance(postponed, Postponed) else None
        if pushed is not None and (why := self._delay(name, pushed, now, busy=busy)) is not None:
            return self._wait_for_rollout(name, pushed, why, now)
        self._delays.remove(name)
        target = layers.effective(self._owner, decision.layers, self._order)
        if decision.changed and needs_trial(self.in_force.settings, target):
            steps = plan(self.in_force.settings, target, self._catalog)
            return TrialOrder(name, pushed, self.in_force.settings, target, steps)
        decision = self._with_trust(name, decision)
        return self._apply_in_place(name, decision, now) if decision.changed else None

    def _apply_in_place(self, name: str, decision: Decision, now: float) -> Update:
        before, self._layers = self._layers, decision.layers
        self._put_in_force()
        update = self._store(name, decision.reported, now, decision.layers.get(name))
        if update.storage_error is None or decision.layers is before:
            self._trials.forget(name)
            return update
        self._layers = before
        self._put_in_force()
        why = (
            f"the layer cannot be stored ({update.storage_error}), so it is not in force; free space and push it again"
        )
        return self.reject(name, why, now, decision.reported.revision)

    def due(self, now: float, *, busy: bool) -> list[tuple[str, bytes]]:
        """Roll-outs that wait and have something new to decide, by layer; each is to be applied again."""
        return self._delays.due(now, busy=busy)

    def reject(self, name: str, reason: str, now: float, revision: int | None = None) -> Update:
        """Report that a push to the layer `name` could not be read, or not be tried."""
        return self._store(name, Reported("rejected", name, revision, reason, self.in_force.revisions), now)

    def use_owner(self, owner: dict[str, Any]) -> tuple[str, ...]:
        """Put the owner's file, which was read again, in force; gives the sections that differ.

        Raises RestartNeededError, then nothing has changed; BadValue where file and layers contradict each other.
        """
        target = layers.effective(owner, self._layers, self._order)
        current = self.in_force.settings
        if fixed := needs_restart(current, target):
            raise RestartNeededError(fixed)
        self._owner = owner
        self._put_in_force()
        return differing(current, target)

    def store(self) -> None:
        """Write floors and keys, the layers in force and the report again. Raises OSError."""
        if self.trust.damage is None and self.trust.record != TrustRecord():
            trust_store.save(self._trust_path, self.trust.record)
        self._store_layers()

    def _store_layers(self) -> None:
        self._save(self._layers, self.report)

    def digest_of(self, name: str) -> str | None:
        """The digest of a model of the catalog."""
        return self._catalog.get(name)

    def postponed(self, layer: str) -> bool:
        """Whether a push to this layer waits for the end of the trial."""
        return layer in self._postponed

    def take_postponed(self) -> dict[str, bytes]:
        """The pushes that waited for the end of the trial, by layer."""
        postponed, self._postponed = self._postponed, {}
        return postponed

    # ---- the trial --------------------------------------------------------------------------------------------------

    def begin(self, order: TrialOrder, now: float) -> None:
        """Write the trial down, before its first step. Raises OSError; then there is none."""
        self._trials.begin(Running(order.layer, order.payload, previous=order.previous))
        self.trial, self._since = order, now
        self.progress(order.steps[0].name, 0.0, (), now)

    def wait(self, order: TrialOrder, why: str, now: float) -> None:
        """The trial cannot begin yet."""
        self.report = Reported("waiting", order.layer, order.revision, why, self.in_force.revisions, now)

    def progress(self, step: str, done: float, golden: tuple[GoldenResult, ...], now: float) -> None:
        """The trial is at this share of this step."""
        order = self._running_trial()
        if step != self.report.step:
            self._trials.step(step)
        self.report = Reported(
            "trial",
            order.layer,
            order.revision,
            _on_trial(order),
            self.in_force.revisions,
            now,
            step=step,
            done=done,
            since=self._since,
            golden=golden,
        )

    def commit(self, golden: tuple[GoldenResult, ...], now: float) -> Update:
        """The trial held: its settings are in force and stored. Raises OSError; then nothing has changed."""
        order = self._running_trial()
        kept = {name: pushed for name, pushed in self._layers.items() if name != order.layer}
        if order.pushed is not None:
            kept[order.layer] = order.pushed
        what = "the layer is in force after its trial" if order.pushed is not None else "the layer was removed"
        report = Reported("applied", order.layer, order.revision, what, layers.revisions(kept), now, golden=golden)
        if order.previous:
            why = self._delays.reason(order.layer)
            report = msgspec.structs.replace(report, phase="waiting", reason=why)
        trust = self.trust
        if order.pushed is not None and not order.previous:
            trust = trust.applied(self._topic[order.layer], order.pushed.payload, order.pushed.layer)
        if trust != self.trust:  # before the layer is in force: after a restart an older one could be applied again
            trust_store.save(self._trust_path, trust.record)
        self._save(kept, report)
        self.trust = trust
        self._trials.end()
        self._layers, self.report, self.trial = kept, report, None
        self._put_in_force()
        self._add_to_history(report, order.pushed)
        return Update(order.layer, report)

    def roll_back(self, reason: str, golden: tuple[GoldenResult, ...], now: float, *, again: bool = False) -> Update:
        """The trial did not hold. `again`: the same push may be tried once more."""
        order = self._running_trial()
        self.trial = None
        refused = RefusedPush(order.payload, reason, order.previous)
        self._trials.end(None if again or order.pushed is None else refused)
        report = Reported("rolled_back", order.layer, order.revision, reason, self.in_force.revisions, golden=golden)
        if order.previous:
            report = msgspec.structs.replace(report, phase="waiting", reason=f"{_NOT_HELD}: {reason}")
        return self._store(order.layer, report, now, order.pushed)

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _running_trial(self) -> TrialOrder:
        if self.trial is None:
            raise RuntimeError("no trial runs")
        return self.trial

    def _end_interrupted(self, running: Running, now: float) -> None:
        revision = self._revision(running.payload)
        reason = f"{RESTARTED}, at the step {running.step}" if running.step else RESTARTED
        refused = RefusedPush(running.payload, reason, running.previous)
        self._trials.end(refused if running.payload else None)
        report = Reported("rolled_back", running.layer, revision, reason, self.in_force.revisions)
        if running.previous:
            report = msgspec.structs.replace(report, phase="waiting", reason=f"{_NOT_HELD}: {reason}")
        self._store(running.layer, report, now)

    def _revision(self, payload: bytes) -> int | None:
        try:
            return layers.parse(self._catalog, payload).layer.revision if payload else None
        except BadLayer as error:
            return error.revision

    def _refused_before(self, name: str, pushed: PushedLayer | None, payload: bytes) -> RefusedPush | None:
        """The record of a push of the same revision and content, or of the same roll-out, that was rolled back."""
        refused = self._trials.refused.get(name)
        if refused is None or pushed is None or refused.previous:
            return None
        if refused.payload == payload:
            return refused
        try:
            layer = layers.parse(self._catalog, refused.payload).layer
        except BadLayer:
            return None
        return refused if pushed.layer == layer or rollout.same(pushed.layer, layer) else None

    def _repeat(self, name: str, refused: RefusedPush, pushed: PushedLayer | None, now: float) -> Update | None:
        """Report a roll-back again where another report about this layer came after it."""
        if self.trial is not None:
            return None
        revision = pushed.layer.revision if pushed is not None else None
        if (self.report.phase, self.report.layer, self.report.revision) == ("rolled_back", name, revision):
            return None
        reason = f"not tried again until it changes: {refused.reason}"
        return self._store(name, Reported("rolled_back", name, revision, reason, self.in_force.revisions), now)

    def _beside_trial(self, name: str, pushed: PushedLayer | None, payload: bytes) -> Postponed | bool | None:
        """What a push means for the trial that runs: Postponed; True: it is the push that is tried; None: nothing."""
        order = self._running_trial()
        if name == order.layer:
            if pushed is not None and order.pushed is not None and pushed.layer == order.pushed.layer:
                return True
            if pushed is None and order.pushed is None:
                return True
            if pushed is not None and order.pushed is not None and rollout.same(pushed.layer, order.pushed.layer):
                self._postponed[name] = payload  # another stage: the trial goes on
                return Postponed(None)
            self._postponed[name] = payload
            what = "was removed" if pushed is None else f"came as revision {pushed.layer.revision}"
            return Postponed(f"the layer {what} during the trial")
        kept = {layer: one for layer, one in self._layers.items() if layer != name}
        if pushed is not None:
            kept[name] = pushed
        tried = {layer: one for layer, one in kept.items() if layer != order.layer}
        if order.pushed is not None:
            tried[order.layer] = order.pushed
        now = layers.effective(self._owner, kept, self._order)
        then = layers.effective(self._owner, tried, self._order)
        if needs_trial(self.in_force.settings, now) or needs_trial(order.target, then):
            self._postponed[name] = payload
            return Postponed(None)
        return None

    # ---- roll-outs --------------------------------------------------------------------------------------------------

    def _check(self, name: str, topic: str, payload: bytes, layer: Layer | None, now: float) -> None:
        """Whether a push may be applied. Raises BadLayer."""
        self.trust.check(topic, payload, layer, now)
        if layer is not None and self.trust.owner.require_signature:
            self._delays.check_newer(name, layer)

    def _delay(self, name: str, pushed: PushedLayer, now: float, *, busy: bool) -> str | None:
        """Why the settings are applied later. Those that are in force already stay so."""
        current = self._layers.get(name)
        if current is not None and not current.previous and current.settings == pushed.settings:
            return None
        return self._delays.why(name, pushed, now, busy=busy)

    def _wait_for_rollout(
        self, name: str, pushed: PushedLayer, why: str, now: float
    ) -> Update | TrialOrder | Postponed | None:
        """Keep the settings, or take those of before the roll-out where the device has others."""
        known = self._delays.has(name, pushed, why)
        self._delays.wait(name, pushed, why)
        before = self._before(name, pushed)
        if before is not None:
            kept = {**self._layers, name: before}
            target = layers.effective(self._owner, kept, self._order)
            if needs_trial(self.in_force.settings, target):
                if self.trial is not None:
                    self._postponed[name] = pushed.payload
                    return Postponed(None)
                steps = plan(self.in_force.settings, target, self._catalog)
                return TrialOrder(name, before, self.in_force.settings, target, steps)
            self._layers = kept
            self._put_in_force()
        elif known:
            return None
        return self._store(name, Reported("waiting", name, pushed.layer.revision, why, self.in_force.revisions), now)

    def _before(self, name: str, pushed: PushedLayer) -> PushedLayer | None:
        """The layer with the settings of before its roll-out, where the device has others and has not failed to try."""
        of = pushed.layer.rollout
        if of is None or of.previous is None:
            return None
        current, refused = self._layers.get(name), self._trials.refused.get(name)
        if (current.settings if current is not None else {}) == of.previous:
            return None
        if refused is not None and refused.previous:
            try:
                if rollout.same(pushed.layer, layers.parse(self._catalog, refused.payload).layer):
                    return None
            except BadLayer:
                pass
        return msgspec.structs.replace(pushed, previous=True)

    # ---- files ------------------------------------------------------------------------------------------------------

    def _load_trust(self) -> TrustRecord | None:
        """Read the floors and keys that are kept; None where there are none yet."""
        try:
            record = trust_store.load(self._trust_path)
        except trust_store.DamagedError as error:
            self.trust = msgspec.structs.replace(self.trust, damage=str(error))
            return self.trust.record
        if record is not None:
            self.trust = msgspec.structs.replace(self.trust, record=record)
        return record

    def _check_stored(self, name: str, pushed: PushedLayer) -> None:
        self.trust.check_stored(self._topic[name], pushed.payload, pushed.layer)

    def _set_floors(self) -> None:
        """Without a file of floors they begin at the layers in force; where that cannot be stored, at the next push."""
        for name, pushed in self._layers.items():
            if pushed.previous:
                continue
            self.trust = self.trust.with_floor(self._topic[name], pushed.payload, pushed.layer)
        if self.trust.record.floors:
            with suppress(OSError):
                trust_store.save(self._trust_path, self.trust.record)

    def _with_trust(self, name: str, decision: Decision) -> Decision:
        """Store the floor and the keys that an accepted push brings, before it is in force.

        Where that fails the push is rejected: after a restart an older one could be applied again.
        """
        pushed = decision.layers.get(name)
        if pushed is None or (decision.changed and decision.reported.phase == "rejected"):
            return decision
        again = pushed is self._layers.get(name)
        step = self.trust.with_floor if again else self.trust.applied
        trust = step(self._topic[name], pushed.payload, pushed.layer)
        if trust == self.trust:
            return decision
        try:
            trust_store.save(self._trust_path, trust.record)
        except OSError as error:
            if again:
                return decision  # it is in force; its floor is set when it comes the next time
            why = f"the revision floor cannot be stored ({error.strerror}); free disk space and push again"
            return layers.rejected(self._layers, name, pushed.layer.revision, why)
        self.trust = trust
        return decision

    def _put_in_force(self) -> None:
        settings = layers.effective(self._owner, self._layers, self._order)
        self.in_force = InForce(settings, layers.revisions(self._layers))

    def _save(self, kept: Layers, report: Reported) -> None:
        payloads = {layer: pushed.payload for layer, pushed in kept.items()}
        previous = tuple(layer for layer, pushed in kept.items() if pushed.previous)
        stored = layer_store.StoredLayers(self._scope, payloads, report, previous, self._delays.stored)
        layer_store.save(self._path, stored)

    def _store(self, name: str, report: Reported, now: float, pushed: PushedLayer | None = None) -> Update:
        self.report = msgspec.structs.replace(report, at=now)
        self._add_to_history(self.report, pushed)
        try:
            self._store_layers()
        except OSError as error:
            return Update(name, self.report, str(error))
        return Update(name, self.report)

    def _add_to_history(self, report: Reported, pushed: PushedLayer | None) -> None:
        settings = settings_text(pushed.payload) if pushed is not None and report.phase == "applied" else None
        signature = pushed.layer.signature if pushed is not None else None
        key = signature.key if signature is not None else None
        self.history.add(
            Decided(report.phase, report.layer, report.revision, report.reason, report.at, key=key, settings=settings)
        )


def _on_trial(order: TrialOrder) -> str:
    if order.pushed is None:
        return "the removal of the layer is on trial"
    return "the settings of before the roll-out are on trial" if order.previous else "the layer is on trial"
