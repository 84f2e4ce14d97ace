"""The `edgectl` program: the operator's commands, `serve` and `simulate` of the packages above them."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from edged.config import checks
from edged.ctl.main import main as ctl_main
from edged.ctl.options import add_connection, settings_of
from edged.link.session import default_requester
from edged.serve.main import add_options, serve
from edged.simulate.options import add_options as add_simulate_options
from edged.wire.topics import REQUESTER


def main() -> int:
    """Entry point; returns the exit code."""
    return ctl_main(None, MORE)


def _add_serve(commands: Any) -> None:
    command = commands.add_parser("serve", help="a web console, an OpenAI-compatible API and Prometheus figures")
    add_connection(command)
    add_options(command)
    command.set_defaults(run=_serve)


def _serve(arguments: argparse.Namespace) -> int:
    requester = arguments.requester or default_requester()
    checks.text(pattern=REQUESTER, like="1 to 64 of A-Z, a-z, 0-9, _ and -")("--requester", requester)
    return serve(settings_of(arguments), arguments, requester)


def _add_simulate(commands: Any) -> None:
    command = commands.add_parser("simulate", help="many devices in one process: pushes, a bad push, a broker restart")
    add_connection(command)
    add_simulate_options(command)
    command.set_defaults(run=_simulate)


def _simulate(arguments: argparse.Namespace) -> int:
    from edged.simulate.main import simulate

    return simulate(settings_of(arguments), arguments)


MORE = (_add_serve, _add_simulate)
"""The commands of packages above `ctl`."""

if __name__ == "__main__":
    sys.exit(main())
