"""`edged completion`: a completion script for a shell."""

from __future__ import annotations

import argparse

import shtab

from edged.commands.main import parser


def run(arguments: argparse.Namespace) -> int:
    """Print the script for bash or zsh."""
    print(shtab.complete(parser(), shell=arguments.shell))
    return 0
