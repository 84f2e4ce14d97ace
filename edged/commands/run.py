"""`edged run`: the daemon."""

from __future__ import annotations

import argparse

from edged.agent import startup
from edged.commands.configured import configured


def run(arguments: argparse.Namespace) -> int:
    """Run the daemon until SIGTERM or SIGINT. Raises EdgedError where it cannot start."""
    values, settings, name = configured(arguments)
    pull_arguments = ("--config", str(arguments.config)) if arguments.config else ()
    return startup.run(values, settings, name, pull_arguments)
