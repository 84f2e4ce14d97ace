"""The command that an error names for installing what the torch backend needs."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from edged.engine.backends import extras


def test_the_command_installs_from_this_clone() -> None:
    """With the Python that runs, from a folder whose project has the extra."""
    python, *pip, requirement = shlex.split(extras.install_command())
    assert [sys.executable, "-m", "pip", "install"] == [python, *pip]
    folder, extra = re.fullmatch(r"(.+)\[(\w+)\]", requirement).groups()  # type: ignore[union-attr]
    project = (Path(folder) / "pyproject.toml").read_text("utf-8")
    assert re.search(r'^name = "edged"$', project, re.MULTILINE)
    assert re.search(rf"^{extra} = \[", project, re.MULTILINE)


def test_without_a_clone_the_command_says_which_folder_is_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "edged" / "engine" / "backends" / "extras.py"))
    assert "'CLONE[torch]', where CLONE is the folder" in str(extras.needs_extra("It is not installed."))
