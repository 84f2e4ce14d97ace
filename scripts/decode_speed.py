"""Decode beside the memory's speed of the same moment: our tokens a second, llama.cpp's, and a plain loop's read speed
with the ratio that it allows.

    .venv/bin/python scripts/decode_speed.py MODEL [--minutes N] [--kernels NAME] [--threads N] [--peer-python PYTHON]

On a machine whose memory others use, too, both engines' speeds follow the neighbours. So each pair of measurements is
reported with the loop's speed right before and after it, and the medians for each range of that speed and of the
ratio that it allows. MODEL is anything that `edged bench` takes; llama.cpp gets the same file, or random weights of the
same shape.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import median

from first_light import FOLDER

from edged.core.errors import EdgedError
from edged.measure import speed
from edged.measure.awake import awake
from edged.measure.bench import PeerChoice, open_peer
from edged.models.store.locate import locate
from edged.models.store.packed_cache import packed_model
from edged.models.store.store import Store

MODELS = FOLDER / "state" / "models"
STEP, STEP_ALLOWED = 4.0, 0.2  # GB/s, and ratios, of a range


@dataclass(frozen=True)
class Moment:
    """The loop's GB/s (the slower of before and after), our tokens a second and theirs, and how many times theirs the
    memory allows at most: the loop's mean speed over our bytes a token."""

    loop: float
    ours: float
    theirs: float
    allowed: float


def moments(arguments: argparse.Namespace, work: Path) -> Iterator[Moment]:
    """One after another until the time is over. Raises ModelError."""
    model = locate(arguments.model, None, Store(MODELS))
    packed = packed_model(model, "auto", MODELS)
    backend = speed.open_for_bench(packed, arguments.threads, arguments.kernels)
    threads = backend.model.threads
    peer = open_peer(model, packed, PeerChoice(arguments.peer_python, None), threads, work)
    print(f"{packed.manifest.name}, {backend.model.kernels}, {threads} threads; peer: {peer.about.get('system')}")
    decode = speed.cases(backend)[0]
    assert decode.peer
    until = time.monotonic() + arguments.minutes * 60
    read_loop = speed.ReadLoop(threads)
    loop = read_loop.bandwidth()
    try:
        while time.monotonic() < until:
            before = loop
            ours, theirs = decode.run(), peer.ask(*decode.peer)
            loop = read_loop.bandwidth()
            limit = (before + loop) / 2 / speed.token_bytes(packed)
            yield Moment(min(before, loop) / 1e9, ours, theirs, limit / theirs)
    finally:
        peer.close()


def show(found: Sequence[Moment]) -> None:
    """Prints medians by the loop's speed, by the ratio that it allows, and of all."""
    if not found:
        return
    _table(found, "loop GB/s", STEP, lambda one: one.loop)
    _table(found, "allowed", STEP_ALLOWED, lambda one: one.allowed)
    _line("all", found)


def _table(found: Sequence[Moment], title: str, step: float, key: Callable[[Moment], float]) -> None:
    print(f"\n{title:>13}  pairs   edged  llama.cpp    ratio  allowed")
    for number, group in groupby(sorted(found, key=key), lambda one: int(key(one) / step)):
        _line(f"{number * step:.3g} – {(number + 1) * step:.3g}", list(group))


def _line(name: str, group: Sequence[Moment]) -> None:
    ours, theirs = median(one.ours for one in group), median(one.theirs for one in group)
    ratio, allowed = median(one.ours / one.theirs for one in group), median(one.allowed for one in group)
    print(f"{name:>13} {len(group):6} {ours:7.1f} {theirs:10.1f} {ratio:7.2f} × {allowed:6.2f} ×")


def main() -> int:
    """Entry point; gives the exit code."""
    parser = argparse.ArgumentParser(description="Decode beside the memory's speed of the moment, and llama.cpp's.")
    parser.add_argument("model")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--peer-python", default=sys.executable)
    arguments = parser.parse_args()
    found: list[Moment] = []
    try:
        with tempfile.TemporaryDirectory(prefix="edged-decode-") as work, awake() as kept_awake:
            print("processors kept awake" if kept_awake else "processors may sleep: only root may ask them not to")
            for one in moments(arguments, Path(work)):
                found.append(one)
                ratio = f"{one.ours / one.theirs:.2f} × of {one.allowed:.2f}"
                print(f"loop {one.loop:5.1f} GB/s  {one.ours:6.1f} / {one.theirs:6.1f} = {ratio}")
    except KeyboardInterrupt:
        pass  # what was measured so far is shown
    except EdgedError as error:
        print(f"decode_speed: {error}", file=sys.stderr)
        return 1
    show(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
