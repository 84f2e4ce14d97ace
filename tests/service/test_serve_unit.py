"""The optional unit of `edgectl serve`: what systemd itself finds in it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.service.test_unit import EXPOSURE_LIMIT, needs_systemd
from tests.support import ROOT

UNIT = ROOT / "systemd" / "edged-serve.service"
TEXT = UNIT.read_text(encoding="utf-8")


@needs_systemd
def test_systemd_finds_nothing_to_complain_about(tmp_path: Path) -> None:
    text, replaced = re.subn(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", TEXT)
    assert 1 == replaced
    unit = tmp_path / "edged-serve.service"
    unit.write_text(text, encoding="utf-8")
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)]
    verified = subprocess.run(command, capture_output=True, text=True, check=False)
    ours = [line for line in verified.stderr.splitlines() if "edged" in line or str(tmp_path) in line]
    assert (0, []) == (verified.returncode, ours)


@needs_systemd
def test_exposure_is_small() -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNIT)]
    analyzed = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Unknown" in analyzed.stderr or "unrecognized" in analyzed.stderr:
        pytest.skip("this systemd-analyze cannot analyze a file (--offline is of systemd 250)")
    level = re.search(r"Overall exposure level.*: ([\d.]+)", analyzed.stdout)
    assert level is not None, analyzed.stdout + analyzed.stderr
    assert float(level[1]) <= EXPOSURE_LIMIT


@pytest.mark.parametrize(
    "line",
    [
        "DynamicUser=yes",
        "ExecStart=/opt/edged/.venv/bin/edgectl serve --requester serve",
        "Restart=always",
        "StartLimitIntervalSec=0",
        "WantedBy=multi-user.target",
    ],
)
def test_line(line: str) -> None:
    assert line in TEXT.splitlines()


def test_a_machine_without_network_starts_it_all_the_same() -> None:
    assert "network-online.target" not in re.sub(r"(?m)^#.*", "", TEXT)
