"""7 `state_dir` is removed or replaced while the daemon runs, and the daemon is killed some time later."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from tests.attack.context import Context
from tests.attack.requester import Requester, let_pass, steady
from tests.support import Broker, Device, as_json

NOTICED = 5.0  # seconds


def _removed(state: Path) -> None:
    shutil.rmtree(state)


def _replaced(state: Path) -> None:
    state.rename(state.with_name("aside"))
    state.mkdir(mode=0o700)


def _files_removed(state: Path) -> None:
    for path in state.glob("journal*"):
        path.unlink()


WAYS: dict[str, Callable[[Path], None]] = {
    "removed": _removed,
    "replaced by an empty folder": _replaced,
    "journal removed": _files_removed,
}


def run(context: Context) -> None:
    """See the module."""
    context.done = "state_dir removed, or replaced, or its journal removed; a kill some seconds later"
    ways = list(WAYS.items())[: 2 if context.short else None]
    for number, (what, way) in enumerate(ways):
        place = Context(context.attack, context.folder / str(number), context.seed, context.seconds)
        with place.broker() as broker, place.device(broker) as device:
            _attack(context, broker, device, what, way)


def _attack(context: Context, broker: Broker, device: Device, what: str, way: Callable[[Path], None]) -> None:
    state = Path(device.config["state_dir"])
    watch = Requester(broker.port, device.root).listen("me")
    watch.subscribe(f"{device.root}/#")
    device.start()
    watch.status("online")
    watch.clear()
    way(state)
    context.say(what)
    # Each waits for a file that is made after the next start, so that all accepted ones are open at the kill.
    with steady(watch, "me", 0.5, lambda number: {"id": f"p{number}", "prompt": "wait:go say:fine"}):
        found = watch.seen_within(lambda _: bool(_codes(watch)), NOTICED)
        codes = _codes(watch)
        let_pass(1.0 if context.short else 5.0)
    let_pass(0.5)  # what was sent last is decided
    accepted = {d["id"] for m in watch.messages if (d := as_json(m)).get("accepted")}
    refused = watch.reasons()
    device.kill()
    (device.control / "go").touch()
    watch.clear()
    device.start()
    up = watch.seen_within(lambda m: m.topic.endswith("/status") and m.payload == b"online", 10)
    watch.send("me", {"id": "last", "prompt": "say:fine"})
    watch.seen_within(lambda _: {*accepted, "last"} <= watch.answers().keys(), 5)
    lost = sorted(accepted - watch.answers().keys())
    context.check(f"{what}: a finding within {NOTICED:.0f} s", ", ".join(codes) or "none", held=found and codes != [])
    context.check(
        f"{what}: no prompt is accepted and then lost by a kill",
        f"{len(accepted)} accepted, {len(lost)} lost; {refused or 'none'} refused",
        held=not lost and len(accepted) + sum(refused.values()) > 0,
    )
    context.check(
        f"{what}: the next start serves",
        f"up: {up}, {watch.reasons('last')}",
        held=watch.reasons("last") == {"stop": 1},
    )
    watch.close()


def _codes(watch: Requester) -> list[str]:
    """The findings of the newest health document, but for those about the machine that runs the attack."""
    newest = [as_json(message) for message in watch.messages if message.topic.endswith("/health")][-1:]
    codes = [finding["code"] for document in newest for finding in document.get("findings", ())]
    return [code for code in codes if code.startswith(("journal", "state_dir", "storage", "layers"))]
