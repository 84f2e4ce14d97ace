"""The `edgectl` command: parses the arguments, runs one module of this package, returns the exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from edged import __version__
from edged.command_line import DONE, FAILED, NO_BROKER, TIMED_OUT, USAGE, Parser, WrongUsage, drop_output, fail, reason
from edged.core.errors import BadValue, BrokerError, ConfigError, EdgedError
from edged.ctl import acl, asking, configuring, operating, rolling_out, sending, watching
from edged.link.session import Interrupted, TimedOut

AddCommand = Callable[[Any], None]
"""Adds a command to the subparsers of `edgectl`."""
RESERVED = {
    ("model", "list"): "list the models of devices",
}
"""Reserved commands, and what a later version will do."""


def parser(more: Sequence[AddCommand] = ()) -> argparse.ArgumentParser:
    """Every command and option of `edgectl`. `more` adds commands of packages above this one."""
    top = Parser(prog="edgectl", description="Talk to devices that run edged, through their broker.")
    top.add_argument("--version", action="version", version=f"edgectl {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    asking.add(commands)
    watching.add(commands)
    configuring.add(commands)
    rolling_out.add(commands)
    sending.add(commands)
    acl.add(commands)
    operating.add(commands)
    completion = commands.add_parser("completion", help="print a completion script for your shell")
    completion.add_argument("shell", choices=("bash", "zsh"))
    completion.set_defaults(run=lambda arguments: _completion(arguments, more))
    for add in more:
        add(commands)
    return top


def _refuse_reserved(arguments: Sequence[str]) -> None:
    for name, what in RESERVED.items():
        if tuple(arguments[: len(name)]) == name:
            raise WrongUsage(f"{' '.join(name)}: this version does not {what} yet")


def main(argv: Sequence[str] | None = None, more: Sequence[AddCommand] = ()) -> int:
    """Entry point; returns the exit code. An error is one sentence on stderr."""
    given = sys.argv[1:] if argv is None else argv
    try:
        return _run(given, more)
    except EdgedError as error:
        return fail("edgectl", str(error), _code_of(error))
    except TimedOut as error:
        why = (
            str(error) or "no answer came in time; check the device with edgectl status, or wait longer with --timeout"
        )
        return fail("edgectl", why, TIMED_OUT)
    except (KeyboardInterrupt, Interrupted):
        return fail("edgectl", "interrupted", FAILED)
    except BrokenPipeError:
        drop_output()
        return FAILED
    except OSError as error:
        return fail("edgectl", f"the command failed ({reason(error)}); fix that and try again", FAILED)


def _run(given: Sequence[str], more: Sequence[AddCommand]) -> int:
    if not given and sys.stderr.isatty():  # elsewhere one sentence, as for any other wrong usage
        parser(more).print_help(sys.stderr)
        return USAGE
    _refuse_reserved(given)
    arguments = parser(more).parse_args(given)
    code: int = arguments.run(arguments)
    return code


def _code_of(error: EdgedError) -> int:
    if isinstance(error, (ConfigError, BadValue, WrongUsage)):
        return USAGE
    return NO_BROKER if isinstance(error, BrokerError) else FAILED


def _completion(arguments: argparse.Namespace, more: Sequence[AddCommand]) -> int:
    import shtab

    print(shtab.complete(parser(more), shell=arguments.shell))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
