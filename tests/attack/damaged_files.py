"""1 Damaged files: the daemon is killed, one file of its state_dir is damaged, it is started again.

Which prompts must be answered is decided by bytes alone: those whose text is in a page of the journal that was not
damaged. What the log of the journal held is not judged, since SQLite drops what follows a damage there.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.attack.context import Context
from tests.attack.requester import Requester
from tests.support import Device, as_json

PAGE = 4096
UP_WITHIN = 10.0  # seconds
OPEN = 40  # prompts that are accepted and not answered
_Damage = Callable[[bytearray, random.Random], set[int]]
"""Damages the bytes in place; gives the pages that it touched."""


def run(context: Context) -> None:
    """See the module."""
    context.done = "a file of state_dir damaged between a kill and the next start"
    with context.broker() as broker, context.device(broker) as device:
        watch = Requester(broker.port, device.root).listen("+")
        watch.subscribe(f"{device.root}/#")
        base = _prepare(context, watch, device)
        until = time.monotonic() + context.seconds
        runs, failures = 0, []
        for name, file, damage, exact in _damages(context.rng):
            if not exact and time.monotonic() > until:
                break
            runs += 1
            if wrong := _try(watch, device, base, file, damage, context.rng):
                failures.append(f"{name}: {wrong}")
                context.say(failures[-1])
            device.kill()
        context.done = f"{runs} damages of a file in state_dir, each between a kill and the next start"
        context.check(
            f"up within {UP_WITHIN:.0f} s, a new prompt and all that can be read are answered, nothing else is, and a "
            "loss is reported by an event",
            f"{len(failures)} of {runs} failed{': ' if failures else ''}{'; '.join(failures[:4])}",
            held=runs > 0 and not failures,
        )
        watch.close()


def _prepare(context: Context, watch: Requester, device: Device) -> Path:
    """A state_dir with layers, finished and open prompts, as a kill leaves it; the log is folded in half of the way."""
    state, base = Path(device.config["state_dir"]), context.folder / "base"
    for half in range(2):
        device.start()
        watch.status("online")
        watch.publish(
            f"{device.root}/config", {"revision": 1 + half, "settings": {"log": {"level": "info"}}}, retain=True
        )
        watch.seen_within(lambda m, half=half: as_json(m).get("revision") == 1 + half, 10)  # type: ignore[misc]
        for number in range(10):
            watch.send("me", {"id": f"done{half}-{number}", "prompt": "say:fine"})
        watch.seen_within(lambda _, half=half: watch.reasons(f"done{half}").get("stop") == 10, 20)  # type: ignore[misc]
        for number in range(half * OPEN // 2, (half + 1) * OPEN // 2):
            watch.send(f"m{number % 10}", {"id": f"open{number}", "prompt": text(number), "stream": number % 2 == 0})
        watch.send("me", {"id": f"last{half}", "prompt": "say:fine", "priority": 0})  # before those that wait
        watch.final(f"last{half}")
        watch.clear()
        device.kill()
        if half == 0:
            database = sqlite3.connect(state / "journal.db")
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            database.close()
    (device.control / "go").touch()
    state.rename(base)
    return base


def text(number: int) -> str:
    """Short enough to be in one page."""
    return f"wait:go say:marker-{number:03}."


def _damages(rng: random.Random) -> Iterator[tuple[str, str, _Damage, bool]]:
    """Name, file, damage, and whether it always runs: first the exact cases, then drawn ones without end."""
    yield "version flipped", "journal.db", lambda data, _: _flip(data, 60, 0x01), True
    yield "user flipped", "journal.db", _flip_in_row, True
    yield "layers truncated", "layers.json", _truncate, True
    kinds: list[tuple[str, _Damage]] = [("flip", _flip_any), ("zeroed page", _zero), ("truncation", _truncate)]
    while True:
        name, damage = rng.choice([kinds[0], *kinds])
        file = rng.choice(["journal.db", "journal.db", "journal.db-wal", "layers.json"])
        yield f"{name} in {file}", file, damage, False


def _flip(data: bytearray, at: int, bits: int) -> set[int]:
    data[at] ^= bits
    return {at // PAGE}


def _flip_any(data: bytearray, rng: random.Random) -> set[int]:
    at = rng.randrange(min(100, len(data)) if rng.random() < 0.3 else len(data))
    return _flip(data, at, 1 << rng.randrange(8))


def _flip_in_row(data: bytearray, _: random.Random) -> set[int]:
    """The first letter of the role in one stored prompt. Its row is lost, the others of its page are not."""
    row = data.find(text(3).encode())
    data[data.rfind(b"user", 0, row)] ^= 0x20
    return {-1}


def _zero(data: bytearray, rng: random.Random) -> set[int]:
    page = rng.randrange(max(1, len(data) // PAGE))
    data[page * PAGE : (page + 1) * PAGE] = bytes(len(data[page * PAGE : (page + 1) * PAGE]))
    return {page}


def _truncate(data: bytearray, rng: random.Random) -> set[int]:
    before, size = len(data), rng.choice([0, rng.randrange(len(data))])
    del data[size:]
    return set(range(size // PAGE, before // PAGE + 1))


def _try(watch: Requester, device: Device, base: Path, file: str, damage: _Damage, rng: random.Random) -> str:
    """Damage, start, judge; gives what was wrong, or nothing."""
    state = Path(device.config["state_dir"])
    shutil.rmtree(state, ignore_errors=True)
    shutil.copytree(base, state)
    data = bytearray((state / file).read_bytes())
    pages = damage(data, rng)
    (state / file).write_bytes(data)
    watch.clear()
    new = f"new-{rng.getrandbits(64):x}"
    device.start()
    if not watch.seen_within(lambda m: m.topic.endswith("/status") and m.payload == b"online", UP_WITHIN):
        code = device.process.poll() if device.process else None
        return f"not up within {UP_WITHIN:.0f} s (exit code {code})"
    watch.send("me", {"id": new, "prompt": "say:new"})
    readable = _readable(base / "journal.db", pages if file == "journal.db" else set())
    watch.seen_within(lambda _: {new, *readable} <= watch.answers().keys(), 10)
    if wrong := _wrong(watch, new, readable):
        return wrong
    lost = {f"open{number}" for number in range(OPEN // 2)} - watch.answers().keys()
    to_report = lost if file == "journal.db" else damage is _truncate and file == "layers.json"
    reported = watch.seen_within(lambda m: "damaged" in as_json(m).get("code", ""), 2 if to_report else 0)
    return f"a loss is not reported ({file}, {len(lost)} prompts)" if to_report and not reported else ""


def _readable(journal: Path, pages: set[int]) -> set[str]:
    """Open prompts whose text is in a page of the journal's file that was not damaged."""
    content = journal.read_bytes()
    found = set()
    for number in range(OPEN):
        at = content.find(text(number).encode())
        if at >= 0 and at // PAGE not in pages and not (pages == {-1} and number == 3):
            found.add(f"open{number}")
    return found


def _wrong(watch: Requester, new: str, readable: set[str]) -> str:
    """What the answers show that must not be."""
    answers = {key: document for key, (_, document) in watch.answers().items()}
    if answers.get(new, {}).get("reason") != "stop":
        return f"a new prompt got {answers.get(new, {}).get('reason', 'nothing')}"
    if missing := sorted(readable - answers.keys()):
        return f"{len(missing)} prompts that can be read were not answered: {', '.join(missing[:3])}"
    for key, document in answers.items():
        said = f"marker-{int(key[4:]):03}. " if key.startswith("open") else "new " if key == new else "fine "
        if document["reason"] != "stop" or document["text"] != said:
            return f"{key} got {document['reason']} with the text {document['text']!r}"
    return ""
