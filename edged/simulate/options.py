"""The options of `edgectl simulate`; apart from what they run, which takes long to import."""

from __future__ import annotations

import argparse


def add_options(command: argparse.ArgumentParser) -> None:
    """What a simulation is like."""
    command.add_argument("--devices", type=int, default=100, metavar="N", help="how many (default: 100)")
    command.add_argument("--soak", default="5s", metavar="TIME", help="of a stage of the bad push (default: 5s)")
    command.add_argument("--within", default="2m", metavar="TIME", help="each step fails after this (default: 2m)")
    command.add_argument("--restart", metavar="COMMAND", help="a shell command that restarts the broker")
    command.add_argument("--json", action="store_true", help="print one JSON document")
