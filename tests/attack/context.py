"""What every attack shares: a folder, a seed, a time budget, a broker and a device of its own, and its checks."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support import Broker, Device
from tests.tiny import make_gguf

CONTEXT_TOKENS = 512
_BROKER = "max_queued_messages 100000\n"


@dataclass(frozen=True)
class Check:
    """One sentence that must hold after an attack. `done` is the attack, `seen` what came of it."""

    attack: str
    done: str
    must: str
    seen: str
    held: bool


@dataclass
class Context:
    """One attack's run. `seconds` is about how long it may go on; `model` a model file for the real worker."""

    attack: str
    folder: Path
    seed: int
    seconds: float
    model: Path | None = None
    checks: list[Check] = field(default_factory=list)
    done: str = ""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rng = random.Random(f"{self.seed} {self.attack}")

    @property
    def short(self) -> bool:
        """Whether this run is a smoke test: fewer and smaller steps."""
        return self.seconds < 20

    def say(self, text: str) -> None:
        """A progress line."""
        print(f"==> {self.attack}: {text}", file=sys.stderr, flush=True)

    def check(self, must: str, seen: str, *, held: bool) -> None:
        """Note whether something held."""
        self.checks.append(Check(self.attack, self.done, must, seen, held))
        if not held:
            self.say(f"did not hold: {must}: {seen}")

    def check_alive(self, device: Device) -> None:
        """The daemon must still be the process that was started."""
        code = device.process.poll() if device.process is not None else None
        self.check("the daemon still runs", "it runs" if code is None else f"exit code {code}", held=code is None)

    @contextmanager
    def broker(self) -> Iterator[Broker]:
        """A broker of this attack's own."""
        started = Broker(self.folder, _BROKER).start()
        try:
            yield started
        finally:
            started.stop()

    @contextmanager
    def device(self, broker: Broker, *, fake: bool = True, layers: int = 2, **config: Any) -> Iterator[Device]:
        """A device that is not started. `fake`: with a worker that answers at once what the prompt says; else with the
        real worker and a random model of so many layers (or `model`)."""
        if not fake:
            source = self.model or make_gguf(self.folder / "tiny.gguf", self.seed, layers=layers)
            config["model"] = {"source": str(source), "context": CONTEXT_TOKENS}
        device = Device(self.folder / "device", broker, config, fake=fake)
        try:
            yield device
        finally:
            if device.process is not None and device.process.poll() is None:
                device.kill()


Attack = Callable[[Context], None]
