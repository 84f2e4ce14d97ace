"""Captures a real first session as docs/images/first-session.svg: `scripts/run --once` on a terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = 100


def recorded() -> str:
    """Everything that the run wrote to its terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
    process = subprocess.Popen(
        [str(ROOT / "scripts" / "run"), "--once"], stdout=theirs, stderr=theirs, stdin=theirs, env=environment
    )
    os.close(theirs)
    written = bytearray()
    try:
        while data := os.read(ours, 65536):
            written += data
    except OSError:
        pass  # the other end is closed: the run is over
    if process.wait():
        sys.exit("the run failed; nothing was captured")
    return written.decode("utf-8", "replace")


def last_of_each_line(text: str) -> list[str]:
    """What stays visible: of a line that was written over, its last state."""
    lines = text.replace("\r\n", "\n").split("\n")
    shown = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines]
    moves = re.compile(r"\x1b\[\??\d*[A-HJKhl]")
    return [moves.sub("", line) for line in shown]


def main() -> None:
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text("$ scripts/run --once", style="bold"))
    for line in last_of_each_line(recorded()):
        if "waiting for the model" not in line:
            console.print(Text.from_ansi(line))
    target = ROOT / "docs" / "images" / "first-session.svg"
    console.save_svg(str(target), title="edged")
    print(f"wrote {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
