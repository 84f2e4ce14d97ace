"""The memory of a worker: a process of its own loads a model, answers one prompt and measures itself.

    python -m edged.measure.footprint SOURCE MODELS CONTEXT

prints JSON, all in bytes: `resident`, `peak`, `weights` (the mapped file, or what the backend holds), `cache`, and
`above`: what of `resident` is neither. Of the cache its resident pages count: the kernel may back it with huge pages,
which take more than the blocks in use.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

import edged.worker.main  # noqa: F401 a worker's imports are part of its memory
from edged.core.errors import ModelError
from edged.core.prompt import Request, Sampling
from edged.engine import load_model
from edged.engine.backends.native_backend import NativeBackend
from edged.models.formats.packed import WEIGHTS

TOKENS: Final = 64
SMAPS: Final = Path("/proc/self/smaps")


def footprint(source: str, models: Path, context: int) -> dict[str, int]:
    """Measures a model in a fresh process. Raises ModelError where that fails."""
    command = [sys.executable, "-m", "edged.measure.footprint", source, str(models), str(context)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ModelError("failed", f"The memory could not be measured: {result.stderr.strip()[-300:]}")
    figures: dict[str, int] = json.loads(result.stdout)
    return figures


def _main(source: str, models: Path, context: int) -> None:
    model = load_model(source, store_root=models, context=context)
    for _ in model.generate(Request(raw="Once upon a time", sampling=Sampling(temperature=0, max_tokens=TOKENS))):
        pass
    if not isinstance(model.backend, NativeBackend):
        raise ModelError("unsupported", "Memory is counted for the native engine alone.")
    maps = mappings(SMAPS.read_text("utf-8", "replace"))
    resident = sum(one.resident for one in maps)
    weights = sum(one.resident for one in maps if one.name.endswith(f"/{WEIGHTS}"))
    reserved, _ = model.backend.model.memory()
    cache = max((one.resident for one in maps if not one.name and one.reserved >= reserved), default=0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    figures = {"resident": resident, "peak": peak, "weights": weights, "cache": cache}
    print(json.dumps({**figures, "above": resident - weights - cache}))


def huge_share(path: Path) -> float:
    """The share of a mapped file's resident bytes that this process maps in huge pages, 0 to 1."""
    if not SMAPS.exists():
        return 0.0
    parts = [one for one in mappings(SMAPS.read_text("utf-8", "replace")) if one.name == str(path)]
    return sum(one.huge for one in parts) / max(1, sum(one.resident for one in parts))


class Mapping(NamedTuple):
    """One mapping: the file's path ("" where there is none), bytes reserved, in memory, and in huge pages of a file."""

    name: str
    reserved: int
    resident: int
    huge: int


def mappings(smaps: str) -> list[Mapping]:
    """A process's mappings. Source: proc(5) for /proc/PID/smaps."""
    result: list[Mapping] = []
    for line in smaps.splitlines():
        key, _, rest = line.partition(":")
        if "-" in key.split(" ", 1)[0]:
            result.append(Mapping([*line.split(maxsplit=5), ""][5], 0, 0, 0))
        elif field := {"Size": "reserved", "Rss": "resident", "FilePmdMapped": "huge"}.get(key):
            result[-1] = Mapping(**{**result[-1]._asdict(), field: int(rest.split()[0]) * 1024})
    return result


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
