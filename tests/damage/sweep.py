"""Damages the files of a state folder in every way that a seed can draw, and opens them as a start does.

    python -m tests.damage --flips 20000 --seed 1 [--json]

Nothing may raise, nothing may be read that was never written, and the journal must serve afterwards.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from edged.agent.journal import Entry, Job, Journal, ReplyTo, body_digest
from edged.core.prompt import Request, Sampling, Turn
from edged.fleet import layer_store
from edged.fleet.layer_store import StoredLayers
from edged.models.store.store import Store, StoredModel
from edged.wire.layers import Reported

SCOPE = "edged/v1/home/device/pi"
LAYERS = StoredLayers(
    SCOPE,
    {"fleet": b'{"revision":1,"settings":{}}', "device": b'{"revision":3,"settings":{"log":{"level":"info"}}}'},
    Reported("applied", "device", 3, "applied", {"fleet": 1, "device": 3}, 12.5),
)
FLOOR = 1_800_000_000.5
PAGE = 4096


@dataclass
class Truth:
    """Everything that was ever written: states of each row by number, floors, models."""

    rows: dict[int, list[Entry]] = field(default_factory=dict)
    floors: set[float] = field(default_factory=lambda: {0.0})
    models: list[StoredModel] = field(default_factory=list)

    def note(self, journal: Journal) -> None:
        for seq in range(1, 400):
            for entry in journal._entries("seq = ?", (seq,)):
                states = self.rows.setdefault(seq, [])
                if entry not in states:
                    states.append(entry)


@dataclass
class Result:
    """What a sweep found. `carried` and `possible`: rows read after damage, and rows that were there before it."""

    runs: int = 0
    seconds: float = 0.0
    damages: Counter[str] = field(default_factory=Counter)
    recovered: int = 0
    carried: int = 0
    possible: int = 0
    dropped: int = 0
    failures: list[str] = field(default_factory=list)


def job(number: int, size: int) -> Job:
    request = Request((Turn("user", f"hällo {number} " * size),), None, Sampling(stop=("x",), seed=number), number % 10)
    return Job("me", f"p{number}", request, stream=True, reply_to=ReplyTo(f"t/{number}"), arrived=5.0, expires=9.5)


def build(folder: Path) -> Truth:
    """A state folder as a killed daemon leaves it: a journal with a log, layers, and a store with two models."""
    truth = Truth()
    journal = Journal(folder / "open" / "journal.db")
    journal._path.parent.mkdir(parents=True)
    journal.open()
    journal.set_fact("wall_floor", FLOOR - 1)
    truth.floors |= {FLOOR - 1, FLOOR}

    def admit(*numbers: int) -> list[int]:
        with journal.transaction():
            return [journal.admit(job(n, 400 if n % 9 == 0 else 3), body_digest(str(n).encode())) for n in numbers]

    admit(*range(1, 101))
    truth.note(journal)
    for seq in range(1, 60):
        journal.finish(seq, "stop", f"final {seq} ".encode() * 20, 100.0 + seq)
    truth.note(journal)
    for seq in range(1, 40):
        journal.delivered(seq)
    truth.note(journal)
    journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    admit(*range(101, 121))
    truth.note(journal)
    journal.count_crash([70, 71])
    journal.finish(60, "busy", b"busy", 300.0)
    truth.note(journal)
    journal.delivered(60)
    for seq in range(61, 66):
        journal.finish(seq, "length", f"long final {seq} ".encode() * 500, 400.0)
    truth.note(journal)
    journal.set_fact("wall_floor", FLOOR)
    state = folder / "state"
    state.mkdir()
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{journal._path}{suffix}", state / f"journal.db{suffix}")
    journal.close()
    layer_store.save(state / "layers.json", LAYERS)
    store = Store(state / "models")
    for name in ("one", "two"):
        source = folder / f"{name}.gguf"
        source.write_bytes(b"GGUF" + name.encode() * 100)
        store.add(source, name, f"hf:org/{name}", "MIT")
    truth.models = store.list()
    return truth


def _flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    at = rng.randrange(min(len(data), 100) if rng.random() < 0.2 else len(data))
    data[at] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def _flips(path: Path, rng: random.Random) -> None:
    for _ in range(rng.randrange(2, 40)):
        _flip(path, rng)


def _truncate(path: Path, rng: random.Random) -> None:
    size = path.stat().st_size
    os.truncate(path, rng.choice([0, 1, rng.randrange(size), size // PAGE * PAGE // 2 // PAGE * PAGE]))


def _zero(path: Path, rng: random.Random) -> None:
    _fill(path, rng, bytes)


def _garbage(path: Path, rng: random.Random) -> None:
    _fill(path, rng, rng.randbytes)


def _fill(path: Path, rng: random.Random, content: Callable[[int], bytes]) -> None:
    data = bytearray(path.read_bytes())
    first = rng.randrange(-(-len(data) // PAGE)) * PAGE
    last = min(len(data), first + PAGE * rng.choice([1, 1, 1, 4]))
    data[first:last] = content(last - first)
    path.write_bytes(data)


def _huge(path: Path, _: random.Random) -> None:
    os.truncate(path, 1 << 28)


def _folder(path: Path, _: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _fifo(path: Path, _: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _dangling(path: Path, _: random.Random) -> None:
    path.unlink()
    path.symlink_to("/nowhere/at/all")


def _locked(path: Path, _: random.Random) -> None:
    path.chmod(0)


def _gone(path: Path, _: random.Random) -> None:
    path.unlink()


DAMAGES: dict[str, tuple[int, Callable[[Path, random.Random], None]]] = {
    "flip": (60, _flip),
    "flips": (10, _flips),
    "truncate": (8, _truncate),
    "zero": (8, _zero),
    "garbage": (6, _garbage),
    "huge": (1, _huge),
    "folder": (1, _folder),
    "fifo": (1, _fifo),
    "dangling": (1, _dangling),
    "locked": (1, _locked),
    "gone": (1, _gone),
}
FILES = {"journal.db": 10, "journal.db-wal": 5, "layers.json": 2, "manifest.json": 2}


def sweep(runs: int, seed: int) -> Result:
    """As many damages as `runs`, drawn from `seed`."""
    rng, result, begun = random.Random(seed), Result(runs), time.monotonic()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        root = Path(name)
        truth = build(root)
        for index in range(runs):
            target = rng.choices(list(FILES), list(FILES.values()))[0]
            damage = rng.choices(list(DAMAGES), [weight for weight, _ in DAMAGES.values()])[0]
            result.damages[damage] += 1
            state = root / "run"
            shutil.copytree(root / "state", state)
            path = next(iter(sorted(state.rglob(target))))
            try:
                DAMAGES[damage][1](path, rng)
                _open(state, target, truth, result)
            except Exception as error:  # noqa: BLE001  - this is what the sweep looks for
                result.failures.append(f"{index} {target} {damage}: {type(error).__name__}: {error}")
            shutil.rmtree(state)
    result.seconds = round(time.monotonic() - begun, 1)
    return result


def _open(state: Path, target: str, truth: Truth, result: Result) -> None:
    if target.startswith("journal"):
        _open_journal(state, truth, result)
    elif target == "layers.json":
        try:
            kept = layer_store.load(state / target, SCOPE)
            _require(kept in (LAYERS, StoredLayers(SCOPE, {}, layer_store.NOTHING_PUSHED)), f"other layers: {kept}")
        except layer_store.DamagedError:
            _require(any(".damaged" in path.name for path in state.iterdir()), "not kept aside")
        layer_store.save(state / target, LAYERS)
        _require(layer_store.load(state / target, SCOPE) == LAYERS, "layers cannot be kept")
    else:
        store = Store(state / "models")
        found = [model for model in store.list() if model.name != "three"]
        places = {m.digest: msg for m in truth.models for msg in [(m.name, m.source, m.licence, m.size)]}
        wrong = [m for m in found if places.get(m.digest) != (m.name, m.source, m.licence, m.size)]
        _require(not wrong, f"other models: {wrong}")
        source = state / "two.gguf"
        source.write_bytes(b"GGUF" + b"two" * 100)
        store.add(source, "two", "hf:org/two", "MIT")
        _require(store.find("two") is not None, "a model cannot be added")


def _open_journal(state: Path, truth: Truth, result: Result) -> None:
    journal = Journal(state / "journal.db")
    journal.open()
    try:
        rows = journal._entries("1 ORDER BY seq", ())
        for entry in rows:
            _require(entry in truth.rows.get(entry.seq, []), f"a wrong row {entry.seq}")
        _require(journal.fact("wall_floor", 0.0) in truth.floors, "a wrong floor")
        seq = max((entry.seq for entry in rows), default=0)
        with journal.transaction():
            new = journal.admit(job(999, 3), b"b")
        _require(new > seq, "a number was used again")
        _require([e.seq for e in journal._entries("id = 'p999'", ())] == [new], "the journal does not serve")
        journal.finish(new, "stop", b"final", 1.0)
        journal.delivered(new)
        journal.delete_old(0.0, 0.0)
        result.possible += 119
        result.carried += len(rows)
        result.dropped += journal.dropped
        result.recovered += journal.recovery is not None
    finally:
        journal.close()
    db = sqlite3.connect(state / "journal.db")
    _require(db.execute("PRAGMA integrity_check").fetchone() == ("ok",), "not sound afterwards")
    db.close()


def _require(holds: bool, why: str) -> None:
    if not holds:
        raise AssertionError(why)


def show(result: Result, seed: int) -> str:
    """The result as JSON."""
    return json.dumps(
        {
            "runs": result.runs,
            "seed": seed,
            "seconds": result.seconds,
            "damages": dict(result.damages),
            "journals_recovered": result.recovered,
            "rows_carried": result.carried,
            "rows_possible": result.possible,
            "rows_dropped_later": result.dropped,
            "failures": result.failures,
        },
        indent=1,
    )
