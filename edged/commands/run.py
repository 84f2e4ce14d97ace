"""`edged run`: the daemon."""

from __future__ import annotations

import argparse

from edged.agent import startup
from edged.commands.configured import configured
from edged.models.store.catalog import catalog


def run(arguments: argparse.Namespace) -> int:
    """Run the daemon until SIGTERM or SIGINT. Raises EdgedError where it cannot start."""
    values, settings, name = configured(arguments)
    pull_arguments = ("--config", str(arguments.config)) if arguments.config else ()
    digests = {entry.name: entry.digest for entry in catalog().values()}
    return startup.run(values, settings, name, pull_arguments, digests, read_file=lambda: configured(arguments)[0])
