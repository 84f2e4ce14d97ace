"""Runs chaos against a daemon and prints what came of it; the exit code is 1 where a prompt was lost or doubled."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.chaos import mutants
from tests.chaos.run import SETTLE, Chaos
from tests.support import mosquitto


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description="Kill, stop and cut off a daemon at random.")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is drawn (default 1)")
    parser.add_argument("--seconds", type=float, default=60, help="of faults (default 60)")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--settle", type=float, default=SETTLE, help=f"for the rest after them (default {SETTLE:.0f})")
    parser.add_argument("--mutants", action="store_true", help="check the checker: each run must find a removed line")
    options = parser.parse_args()
    if mosquitto() is None:
        print("scripts/chaos: needs mosquitto; on Debian: apt-get install mosquitto", file=sys.stderr)
        return 1
    if options.mutants:
        return check_mutants(options)
    with tempfile.TemporaryDirectory(prefix="edged-chaos-") as folder:
        result = Chaos(Path(folder), options.seed, options.seconds, options.settle).run()
        held = not (result["lost"] or result["doubled"] or result["wrong"])
        if not held:
            print((Path(folder) / "edged.log").read_text(errors="replace")[-3000:], file=sys.stderr)
    if options.json:
        print(json.dumps({**result, "held": held}))
    else:
        for name, value in result.items():
            print(f"{name:14} {value}")
        print("held" if held else "DID NOT HOLD")
    return 0 if held else 1


def check_mutants(options: argparse.Namespace) -> int:
    """The exit code is 1 where a run on a source without one of its safety lines found nothing."""
    results = mutants.check(options.seconds, options.seed)
    if options.json:
        print(json.dumps({"seed": options.seed, "seconds": options.seconds, "mutants": results}, indent=1))
    else:
        for result in results:
            print(f"{'found' if result['found'] else 'NOT FOUND':10} {result['removed']}")
    return 0 if all(result["found"] == (result["removed"] != "nothing") for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
