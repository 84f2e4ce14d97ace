"""6 Full disk: no room in `state_dir` for a while. With root it is a small tmpfs, else a limit on the size of files."""

from __future__ import annotations

import itertools
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from paho.mqtt.client import MQTTMessage

from tests.attack.context import Context
from tests.attack.requester import Requester, let_pass
from tests.support import Device, as_json

SIZE = "6m"
AT_ONCE = 3.0  # seconds
TELEMETRY_GAP = 3.0  # seconds, at an interval of one
LARGE = {"prompt": "say:fine " + "x" * 50_000, "max_tokens": 1}  # does not fit into what is left of an open file


def run(context: Context) -> None:
    """See the module."""
    disk = context.folder / "disk"
    disk.mkdir()
    with mounted(disk) as is_small, context.broker() as broker:
        context.done = (
            f"state_dir on {f'a tmpfs of {SIZE}' if is_small else 'files that may not grow'}, then room again"
        )
        with context.device(broker, state_dir=str(disk / "state")) as device:
            watch = Requester(broker.port, device.root).listen("me").listen("later")
            watch.subscribe(f"{device.root}/#")
            device.start()
            watch.status("online")
            watch.send("me", {"id": "before", "prompt": "wait:go say:fine"})
            watch.seen_within(lambda m: as_json(m).get("accepted"), 10)
            watch.clear()
            release = _fill(disk, device, is_small=is_small)
            context.say("the disk is full")
            _while_full(context, watch, device)
            release()
            context.say("there is room again")
            _with_room(context, watch, device)
            context.check_alive(device)
            watch.close()


@contextmanager
def mounted(folder: Path) -> Iterator[bool]:
    """A small tmpfs there, where this process may mount one; gives whether it did."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    with suppress(OSError):
        if os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0:
            try:
                yield True
            finally:
                subprocess.run(["umount", "--lazy", str(folder)], check=False)
            return
    yield False


def _fill(disk: Path, device: Device, *, is_small: bool) -> Any:
    """Leaves no room; gives what makes room again."""
    if not is_small:
        largest = max(path.stat().st_size for path in [device.log, *(disk / "state").glob("journal*")])
        resource.prlimit(device.pid, resource.RLIMIT_FSIZE, (largest + 4096, resource.RLIM_INFINITY))
        return lambda: resource.prlimit(device.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"\0" * 4096) == 4096:
            pass
    return filler.unlink


def _while_full(context: Context, watch: Requester, device: Device) -> None:
    limits = {"revision": 1, "settings": {"generation": {"max_tokens": 33}}}
    for number in range(3):
        watch.send("me", {"id": f"full{number}", **LARGE})
    no_finding_within = _wait_for_finding(watch, present=True)
    watch.send("later", '{"id":"bad","prompt":"x","temperature":99}')
    watch.publish(f"{device.root}/config", {"revision": 7, "settings": {"nonsense": 1}}, retain=True)
    rejected = watch.seen_within(lambda m: _reported(m, 7) == "rejected", AT_ONCE)
    refused = watch.seen_within(lambda m: as_json(m).get("id") == "bad" and as_json(m).get("final"), AT_ONCE)
    watch.publish(f"{device.root}/config", limits, retain=True)
    watch.seen_within(lambda m: _reported(m, 1), AT_ONCE)
    let_pass(2.0 if context.short else 8.0)
    watch.settle(5)
    reasons = watch.reasons("full")
    unavailable = set(reasons) == {"unavailable"} and reasons["unavailable"] == 3
    context.check("prompts that cannot be stored get `unavailable`", f"{reasons} of 3", held=unavailable)
    context.check(
        "health has a finding at once",
        "none" if no_finding_within else f"{_codes(watch)}",
        held=not no_finding_within,
    )
    _check_connection(context, watch)
    context.check(
        "a refusal and a push that need no room are answered",
        f"refusal {'yes' if refused else 'no'}, rejected push {'yes' if rejected else 'no'}",
        held=refused and rejected,
    )
    kept = _holds(Path(device.config["state_dir"]) / "layers.json", b"33")
    phases = [phase for message in watch.messages if (phase := _reported(message, 1))]
    context.check(
        "a layer that could not be kept is not reported as applied",
        f"kept: {'yes' if kept else 'no'}; reported: {', '.join(phases) or 'nothing'}",
        held=bool(phases) and (kept or "applied" not in phases),
    )


def _with_room(context: Context, watch: Requester, device: Device) -> None:
    watch.publish(f"{device.root}/config", {"revision": 2, "settings": {"generation": {"max_tokens": 34}}}, retain=True)
    applied = watch.seen_within(lambda m: _reported(m, 2) == "applied", 10)
    (device.control / "go").touch()
    watch.send("later", {"id": "after", **LARGE})
    watch.settle(20)
    gone = not _wait_for_finding(watch, present=False, seconds=15)
    reasons = watch.reasons("after") | watch.reasons("before")
    lost = [key for key in watch.sent if key not in watch.answers()]
    context.check(
        "with room again a layer is applied, everything is answered, and then the finding ends",
        f"finding {'gone' if gone else 'still there'}, layer {'applied' if applied else 'not applied'}, "
        f"{reasons}, without an answer: {', '.join(lost) or 'none'}",
        held=gone and applied and not lost and set(reasons) <= {"stop", "length"},
    )


def _check_connection(context: Context, watch: Requester) -> None:
    """Every connection publishes the status; the broker publishes the will of one that ended."""
    words = [message.payload.decode() for message in watch.messages if message.topic.endswith("/status")]
    context.check("the device stays connected", f"status {words or 'unchanged'}", held=not words)
    times = [message.timestamp for message in watch.messages if message.topic.endswith("/telemetry")]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    longest = max(gaps, default=float("inf"))
    context.check(
        "telemetry goes on", f"{len(times)} readings, longest gap {longest:.1f} s", held=longest <= TELEMETRY_GAP
    )


def _wait_for_finding(watch: Requester, *, present: bool, seconds: float = AT_ONCE) -> bool:
    """Wait until the newest health document has a finding about storing, or none; whether that did not come."""
    return not watch.seen_within(lambda _: bool(_codes(watch)) == present, seconds)


def _codes(watch: Requester) -> list[str]:
    """The findings of the newest health document that say that nothing can be stored."""
    newest = [as_json(message) for message in watch.messages if message.topic.endswith("/health")][-1:]
    codes = [finding["code"] for document in newest for finding in document.get("findings", ())]
    return [code for code in codes if code.startswith(("journal", "disk_full", "storage", "layers", "state_dir"))]


def _reported(message: MQTTMessage, revision: int) -> str:
    """The phase of a reported document about this revision."""
    document = as_json(message) if message.topic.endswith("/config/reported") else {}
    return str(document["phase"]) if document.get("revision") == revision else ""


def _holds(path: Path, text: bytes) -> bool:
    return path.exists() and text in path.read_bytes()
