"""How to add what the torch backend needs to this installation."""

from __future__ import annotations

import sys
from pathlib import Path

from edged.core.errors import ModelError


def needs_extra(reason: str) -> ModelError:
    """The error for a model that cannot run because a package of the extra `torch` is not installed; `reason` is a
    whole sentence."""
    return ModelError("unsupported", f"{reason} Install what it needs with: {install_command()}")


def install_command() -> str:
    """The command that installs the extra `torch` into this installation.

    No package index has edged, so pip is given the folder of the clone that this edged runs from, where there is one.
    """
    clone = Path(__file__).resolve().parents[3]
    pip = f"{sys.executable} -m pip install"
    if (clone / "pyproject.toml").is_file():
        return f"{pip} '{clone}[torch]'"
    return f"{pip} 'CLONE[torch]', where CLONE is the folder that holds edged's source"
