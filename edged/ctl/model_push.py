"""`edgectl model push`: sends a model to devices over the broker, and shows which of them have it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edged.config.schema import Mqtt
from edged.core.errors import BadValue, BrokerError
from edged.ctl.keys import SigningKey
from edged.ctl.model_file import ModelFile
from edged.ctl.push_run import Device, PushRun
from edged.link.events import Acked, Arrived
from edged.link.session import Session, TimedOut
from edged.wire import model_push, strict_json
from edged.wire.model_push import Offer

RETAINED_WITHIN: Final = 0.8  # seconds in which a broker delivers retained messages
VALID_FOR: Final = 86_400.0  # seconds that a device may begin with an offer
_IN_FLIGHT: Final = 8  # chunks that the broker has not confirmed yet
_LINE_EVERY: Final = 5.0

Show = Callable[[PushRun], None]


class PushTarget(msgspec.Struct, frozen=True):
    """Who gets the model: these devices, a group, or (both empty) the whole fleet."""

    fleet: str
    devices: tuple[str, ...] = ()
    group: str | None = None


class ModelPushOptions(msgspec.Struct, frozen=True):
    """`rate` in bytes a second. `timeout`: seconds after which a silent device is given up. `key` signs the offer."""

    rate: int
    timeout: float
    key: SigningKey | None
    as_json: bool


def push(settings: Mqtt, target: PushTarget, path: Path, options: ModelPushOptions) -> int:
    """Send a model and show what became of it on each device; gives the exit code.

    Raises ConfigError, BrokerError, TimedOut where a device did not answer.
    """
    file = ModelFile(path)
    root = f"edged/v1/{target.fleet}"
    topics = (f"{root}/device/+/status", f"{root}/model/{file.digest}/missing/+", f"{root}/model/{file.digest}/state/+")
    try:
        with Session(settings, topics) as session:
            run, offline = _begin(session, target, file, options)
            with _progress(file, quiet=options.as_json) as show:
                _Sender(session, root, file, run, _offer(root, target, file, options.key), options.rate).serve(show)
    finally:
        file.close()
    return _result(file, run, offline, as_json=options.as_json)


def _begin(
    session: Session, target: PushTarget, file: ModelFile, options: ModelPushOptions
) -> tuple[PushRun, list[str]]:
    """Which devices are expected to answer, and which of the fleet are offline."""
    online: list[str] = []
    offline: list[str] = []
    try:
        for message in session.messages(RETAINED_WITHIN):
            if message.topic.endswith("/status") and message.payload:
                (offline if message.payload == b"offline" else online).append(message.topic.split("/")[4])
    except TimedOut:
        pass
    if target.devices:
        expected, offline = list(target.devices), []
    else:
        expected = [] if target.group is not None else online
    open_ended = not target.devices
    run = PushRun(file.count, expected, time.monotonic, options.timeout, open_ended=open_ended)
    return run, [] if target.group is not None else offline


def _offer(root: str, target: PushTarget, file: ModelFile, key: SigningKey | None) -> bytes:
    expires_at = round(time.time() + VALID_FOR, 3)
    offer = Offer(file.name, file.size, file.root, target.devices, target.group, expires_at)
    document = model_push.offer(offer)
    if key is not None:
        document = key.sign(document, f"{root}/model/{file.digest}/offer")
    return strict_json.dumps(document)


class _Sender:
    """Publishes the offer, announcements and chunks of one run, at `rate` bytes a second."""

    def __init__(self, session: Session, root: str, file: ModelFile, run: PushRun, offer: bytes, rate: int) -> None:
        self._session = session
        self._base = f"{root}/model/{file.digest}"
        self._file = file
        self._run = run
        self._offer = offer
        self._rate = rate
        self._sent: set[int] = set()
        self._free_at = time.monotonic()  # when the rate allows the next chunk

    def serve(self, show: Show) -> None:
        """Until every device has ended, or is given up."""
        while not self._run.finished:
            for step in self._run.due():
                if step == "offer":
                    self._session.post(f"{self._base}/offer", self._offer)
                else:
                    self._session.post(f"{self._base}/sending", model_push.ranges(self._run.coming()))
            now = time.monotonic()
            may_send = len(self._sent) < _IN_FLIGHT and self._run.waiting > 0
            if may_send and now >= self._free_at:
                self._send_chunk(now)
            until = min(self._run.next_due(), self._free_at if may_send else now + 0.5)
            self._receive(max(0.0, min(0.5, until - time.monotonic())))
            show(self._run)

    def _send_chunk(self, now: float) -> None:
        number = self._run.next_chunk()
        if number is None:
            return
        payload = self._file.message(number)
        self._sent.add(self._session.post(f"{self._base}/chunk/{number}", payload))
        self._free_at = max(self._free_at, now - 0.1) + len(payload) / self._rate

    def _receive(self, timeout: float) -> None:
        """Everything that has come; waits for the first."""
        event = self._session.next(timeout)
        while event is not None:
            if isinstance(event, Acked):
                if event.refused is not None:
                    raise BrokerError(f"the broker refuses the model ({event.refused}); check the rights of this user")
                self._sent.discard(event.mid)
            elif event.unreadable is None:
                self._process(event)
            event = self._session.next(0.0)

    def _process(self, message: Arrived) -> None:
        device = message.topic.rsplit("/", 1)[-1]
        if message.topic.startswith(f"{self._base}/state/"):
            if (state := model_push.parse_state(message.payload)) is not None:
                self._run.reported(device, state)
        elif message.topic.startswith(f"{self._base}/missing/"):
            try:
                self._run.requested(device, model_push.parse_ranges(message.payload))
            except BadValue:
                return


@contextmanager
def _progress(file: ModelFile, *, quiet: bool) -> Iterator[Show]:
    """A bar on a terminal, a line every few seconds elsewhere, on stderr."""
    if quiet:
        yield lambda _run: None
        return
    if not sys.stderr.isatty():
        yield _lines(file)
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(file.name, total=1.0)

        def show(run: PushRun) -> None:
            bars.update(task, completed=run.share, description=f"{file.name}: {_counts(run)}")

        yield show


def _lines(file: ModelFile) -> Show:
    printed_at, printed = -_LINE_EVERY, ""

    def show(run: PushRun) -> None:
        nonlocal printed_at, printed
        now, line = time.monotonic(), f"{file.name}: {run.share:.0%} sent, {_counts(run)}"
        if now - printed_at >= _LINE_EVERY and line != printed:
            printed_at, printed = now, line
            print(line, file=sys.stderr, flush=True)

    return show


def _counts(run: PushRun) -> str:
    stored = sum(device.state is not None and device.state.state == "stored" for device in run.devices.values())
    return f"{stored} of {len(run.devices)} devices have it"


def _result(file: ModelFile, run: PushRun, offline: list[str], *, as_json: bool) -> int:
    """Print what became of the model on each device; gives the exit code. Raises TimedOut."""
    outcomes = {name: _outcome(device) for name, device in run.devices.items()}
    outcomes |= {name: ("offline", "push again when it is online") for name in offline if name not in outcomes}
    if as_json:
        devices = {name: {"state": state, "reason": reason} for name, (state, reason) in sorted(outcomes.items())}
        document = {"digest": file.digest, "name": file.name, "size_bytes": file.size, "devices": devices}
        print(json.dumps(document, ensure_ascii=False))
    else:
        _show(file, outcomes)
    states = {state for state, _ in outcomes.values()}
    if states & {"refused", "failed"}:
        return 1
    if not outcomes:
        raise TimedOut("no device has answered the offer; check the devices with edgectl status")
    if states != {"stored"}:
        raise TimedOut("not every device has the model; push it again, it resumes where it stopped")
    return 0


def _outcome(device: Device) -> tuple[str, str]:
    state = device.state
    if state is None:
        return "no answer", "check it with edgectl status"
    if device.ended:
        return state.state, state.reason
    return "no answer", f"its last state was {state.state}, {state.done:.0%}"


def _show(file: ModelFile, outcomes: dict[str, tuple[str, str]]) -> None:
    console = Console(highlight=False)
    console.print(f"{escape(file.name)}: {file.size / 1e6:,.1f} MB, {file.digest}", soft_wrap=True)
    table = Table("device", "state", "reason", box=None, header_style="bold")
    for name, (state, reason) in sorted(outcomes.items()):
        colour = {"stored": "green", "refused": "red", "failed": "red"}.get(state, "yellow")
        table.add_row(escape(name), f"[{colour}]{state}[/]", escape(reason))
    if outcomes:
        console.print(table)
