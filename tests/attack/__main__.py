"""Runs the attacks and prints a table: see `docs/how-to/attack.md`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.attack import abusers, broker_restarts, damaged_files, format_bombs, full_disk, parser_bombs, state_dir_gone
from tests.attack.context import Attack, Check, Context
from tests.support import ROOT, mosquitto

ATTACKS: dict[str, Attack] = {
    "files": damaged_files.run,
    "formats": format_bombs.run,
    "fairness": abusers.run,
    "parsers": parser_bombs.run,
    "restarts": broker_restarts.run,
    "disk": full_disk.run,
    "folder": state_dir_gone.run,
}


def real_model() -> Path:
    """The default model's file in the checkout's store. Ends the program where it is not there."""
    for path in sorted((ROOT / ".edged" / "state" / "models").glob("sha256-*/*.gguf")):
        return path
    raise SystemExit("scripts/attack: the real model is not in .edged/state; run scripts/run --once first")


def run(names: list[str], seed: int, seconds: float, model: Path | None = None) -> list[Check]:
    """Run these attacks in turn, each in a folder, with a broker and a daemon of its own."""
    checks: list[Check] = []
    with tempfile.TemporaryDirectory(prefix="edged-attack-") as folder:
        for name in names:
            context = Context(name, Path(folder) / name, seed, seconds, model)
            begun = time.monotonic()
            context.say("starting")
            try:
                ATTACKS[name](context)
            except Exception as error:  # noqa: BLE001  one attack that ends early must not hide the others
                seen = f"{type(error).__name__}: {error}"[:600]
                context.check("the attack runs to its end", seen, held=False)
            if any(not check.held for check in context.checks):
                for log in sorted(context.folder.rglob("edged.log")):
                    print(log.read_text(errors="replace")[-3000:], file=sys.stderr)
            context.say(f"done in {time.monotonic() - begun:.1f} s")
            checks += context.checks
    return checks


def table(checks: list[Check]) -> Table:
    """For people."""
    shown = Table(show_lines=True)
    for column in ("attack", "what was done", "what must hold", "what was seen", "held"):
        shown.add_column(column, overflow="fold")
    before = ""
    for check in checks:
        new = check.attack != before
        before = check.attack
        held = "[green]yes[/]" if check.held else "[red]NO[/]"
        shown.add_row(check.attack if new else "", check.done if new else "", check.must, check.seen, held)
    return shown


def main() -> int:
    """The exit code is 1 where something did not hold."""
    parser = argparse.ArgumentParser(prog="scripts/attack", description="Attack a started daemon and judge it.")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is drawn (default 1)")
    parser.add_argument("--seconds", type=float, default=60, help="for one attack, about (default 60); below 20: short")
    parser.add_argument("--only", choices=list(ATTACKS), action="append", help="may be given more than once")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--real-model", action="store_true", help="the default model in place of a tiny random one")
    options = parser.parse_args()
    if mosquitto() is None:
        print("scripts/attack: needs mosquitto; on Debian: apt-get install mosquitto", file=sys.stderr)
        return 1
    names = options.only or list(ATTACKS)
    checks = run(names, options.seed, options.seconds, real_model() if options.real_model else None)
    held = all(check.held for check in checks)
    if options.json:
        document = {"seed": options.seed, "seconds": options.seconds, "held": held}
        print(json.dumps({**document, "checks": [dataclasses.asdict(check) for check in checks]}, indent=1))
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(table(checks))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
