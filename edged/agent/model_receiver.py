"""Carries out what the reception of a model (`fleet/reception.py`) asks for: subscriptions, the file, the store.

Owned by the agent's main thread, driven by `tick` and by events from the mailbox.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edged.agent import logs
from edged.agent.broker_link import BrokerLink
from edged.agent.model_pull import ModelPull, PullEnded
from edged.agent.model_writer import ModelWriter, PartClosed, PartEvent, PartFailed, PartOpened, PartWritten
from edged.agent.partial_model import PartialModel, bytes_on_disk
from edged.agent.reporter import Reporter
from edged.config.checks import DIGEST
from edged.device.disk import disk
from edged.device.files import GarbageError
from edged.fleet import reception_actions as r
from edged.fleet.desired import DesiredConfig
from edged.fleet.reception import Reception
from edged.link.outbound import Outbound
from edged.link.publication import Publication
from edged.wire import model_push
from edged.wire.topics import Topics

PARTIAL = "partial"
"""The store's folder of partial downloads."""
_STOP_WITHIN = 2.0


class ModelReceiver:
    """See the module. `pull_arguments` name the config file, `models` is the store's folder."""

    def __init__(
        self,
        topics: Topics,
        groups: tuple[str, ...],
        config: DesiredConfig,
        link: BrokerLink,
        outbound: Outbound,
        reporter: Reporter,
        pull_arguments: tuple[str, ...],
        models: Path,
        post: Callable[[PartEvent | PullEnded], None],
        clock: Callable[[], float],
        wall: Callable[[], float],
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._topics = topics
        self._link = link
        self._outbound = outbound
        self._reporter = reporter
        self._pull_arguments = pull_arguments
        self._models = models
        self._post = post
        self._log = logs.logger()
        self._reception = Reception(
            topics.device, groups, lambda: config.trust, self._free, self._is_stored, clock, wall, uniform
        )
        self._number = 0  # of the present file
        self._part: PartialModel | None = None
        self._writer: ModelWriter | None = None
        self._pull: ModelPull | None = None
        self._storing: r.Store | None = None

    # ---- events -----------------------------------------------------------------------------------------------------

    def process_message(self, rest: str, topic: str, payload: bytes) -> None:
        """A message below `model/`; `rest` is the topic from there on."""
        digest, _, what = rest.partition("/")
        kind, _, number = what.partition("/")
        if not DIGEST.match(digest):
            self._reporter.bad_request(f"a message to {topic} was ignored: it names no sha256: and 64 hex digits")
        elif kind == "chunk":
            self._carry_out(self._reception.chunk(digest, model_push.parse_number(number), payload))
        elif what == "offer":
            self._carry_out(self._reception.offered(digest, topic, payload))
        elif what == "sending":
            self._carry_out(self._reception.sending(digest, payload))

    def process_part(self, event: PartEvent) -> None:
        """News of the thread that writes."""
        if event.number != self._number:
            return
        match event:
            case PartOpened(have=have):
                self._carry_out(self._reception.opened(have))
            case PartWritten(chunk=chunk, whole=whole):
                self._carry_out(self._reception.written(chunk, whole=whole))
            case PartClosed():
                self._writer = None
                self._store()
            case PartFailed(reason=reason):
                self._writer = None
                self._carry_out(self._reception.failed(reason))

    def process_pull(self, event: PullEnded) -> bool:
        """The end of a child; False where it is not of this receiver's."""
        if self._pull is None or not self._pull.ended(event):
            return False
        self._pull = None
        failure = event.failure
        if failure is None:
            self._carry_out(self._reception.stored(None))
        else:
            damaged = failure.code in {"tampered", "unsupported", "bad_model"}
            self._carry_out(self._reception.stored(failure.message, damaged=damaged))
        return True

    def connected(self) -> None:
        """The broker is there (again)."""
        self._carry_out(self._reception.connected())

    def next_tick(self) -> float | None:
        """The monotonic time at which `tick` has something to do."""
        return self._reception.next_tick()

    def tick(self) -> None:
        """What is due now."""
        self._carry_out(self._reception.tick())

    def stop(self) -> None:
        """End what was started; the partial file stays for the next start."""
        self._number += 1
        if self._pull is not None:
            self._pull.stop()
        if self._writer is not None:
            self._writer.close()
            self._writer.join(_STOP_WITHIN)

    # ---- actions ----------------------------------------------------------------------------------------------------

    def _carry_out(self, actions: list[r.Action]) -> None:
        for action in actions:
            match action:
                case r.Open() | r.Write() | r.Store() | r.Close():
                    self._use_file(action)
                case r.Listen(digest=digest):
                    self._link.subscribe(self._topics.model(digest, "chunk/+"), self._topics.model(digest, "sending"))
                case r.Ignore(digest=digest):
                    self._link.unsubscribe(self._topics.model(digest, "chunk/+"), self._topics.model(digest, "sending"))
                case r.Request(digest=digest, missing=missing):
                    topic = self._topics.model(digest, f"missing/{self._topics.device}")
                    self._outbound.send_now(topic, model_push.ranges(missing), "application/json", None)
                case r.Report():
                    self._report(action)
                case r.Bad(reason=reason):
                    self._reporter.bad_request(reason)

    def _use_file(self, action: r.Open | r.Write | r.Store | r.Close) -> None:
        match action:
            case r.Open(digest=digest, offer=offer):
                self._open(digest, offer)
            case r.Write(number=number, payload=payload) if self._writer is not None:
                self._writer.write(number, payload)
            case r.Store():
                self._storing = action
                if self._writer is not None:
                    self._writer.close()
            case r.Close(remove=remove):
                self._close(remove=remove)

    def _open(self, digest: str, offer: model_push.Offer) -> None:
        self._number += 1
        self._part = PartialModel(self._models / PARTIAL, digest, offer)
        self._writer = ModelWriter(self._number, self._part, self._post)
        self._writer.start()
        self._log.info("receiving a model", model=offer.name, digest=digest, bytes=offer.size)

    def _close(self, *, remove: bool) -> None:
        part, writer, self._part, self._writer = self._part, self._writer, None, None
        self._number += 1
        self._storing = None
        if writer is not None:
            writer.close(remove=remove)
        elif part is not None and remove:  # a large file is not removed at once
            threading.Thread(target=_remove, args=(part,), name="model-remove", daemon=True).start()

    def _report(self, report: r.Report) -> None:
        state = report.state
        topic = self._topics.model(report.digest, f"state/{self._topics.device}")
        self._outbound.send(Publication(topic=topic, payload=model_push.state(state)))
        if not report.final:
            return
        facts = {"model": report.name, "digest": report.digest}
        if state.state == "stored":
            self._log.info("model received", **facts)
            self._reporter.event("model_received", f"{report.name} is in the store", **facts)
        else:
            self._log.warning("model not received", **facts, state=state.state, reason=state.reason)
            self._reporter.event("model_not_received", f"{report.name}: {state.reason}", **facts)

    def _store(self) -> None:
        """The closed file goes into the store, by the command that a person would type."""
        storing, part = self._storing, self._part
        if storing is None or part is None:
            return
        arguments = ("--move", *self._pull_arguments)
        name = f"push-{self._number}"
        self._pull = ModelPull(str(part.path), arguments, self._post, name=name, digest=storing.digest)
        try:
            self._pull.start()
        except OSError as error:
            self._pull = None
            self._carry_out(self._reception.stored(f"the command cannot be started ({error.strerror})"))

    def _free(self, digest: str) -> int:
        try:
            return disk(self._models).free_bytes + bytes_on_disk(self._models / PARTIAL, digest)
        except (OSError, GarbageError):
            return 0

    def _is_stored(self, digest: str) -> bool:
        return (self._models / digest.replace(":", "-") / "manifest.json").is_file()


def _remove(part: PartialModel) -> None:
    with suppress(OSError):
        part.remove()
