"""`python -m edged.device` prints one reading as JSON; `--cost` measures what one costs in processor time (10 s)."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import msgspec

from edged.core.health import health_of
from edged.device.findings import Judge
from edged.device.sampler import Sampler

ROUNDS = 40
PAUSE_S = 0.25  # long enough for caches to cool between readings, as they do in a daemon that mostly sleeps


def main(arguments: list[str]) -> int:
    """Prints one line to stdout; returns the exit code."""
    sampler, judge, encode = Sampler(Path.cwd()), Judge(), msgspec.json.Encoder().encode
    reading = sampler.read()
    time.sleep(PAUSE_S)
    if "--cost" not in arguments:
        sys.stdout.write(encode(sampler.read()).decode() + "\n")
        return 0
    began = time.process_time()
    for _ in range(ROUNDS):
        time.sleep(PAUSE_S)
        reading = sampler.read(os.getppid())
        encode(reading)
        encode(health_of(judge.update(reading)))
    cost_ms = (time.process_time() - began) / ROUNDS * 1000
    size = len(encode(reading))
    sys.stdout.write(f"{cost_ms:.2f} ms of processor time per reading, with its findings and JSON of {size} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
