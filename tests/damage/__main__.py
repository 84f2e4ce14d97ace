"""See `sweep`."""

from __future__ import annotations

import argparse
import sys

from tests.damage.sweep import show, sweep


def main() -> int:
    """Run a sweep; the exit code is 1 where something failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.damage", description="Damage the files of a state folder.")
    parser.add_argument("--flips", type=int, default=20_000, help="how many damages to draw")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    options = parser.parse_args()
    result = sweep(options.flips, options.seed)
    if options.json:
        print(show(result, options.seed))
    else:
        for failure in result.failures[:20]:
            print(failure)
        print(
            f"{result.runs} damages (seed {options.seed}) in {result.seconds} s: {len(result.failures)} failures, "
            f"{result.recovered} journals recovered, {result.carried} of {result.possible} rows read"
        )
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
