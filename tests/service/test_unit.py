"""The unit file: what systemd itself thinks of it, and the keys that promises rest on."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT

UNIT = ROOT / "systemd" / "edged.service"
EXPOSURE_LIMIT = 1.5

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")


def keys() -> dict[str, list[str]]:
    """`Section.Key` → its values in order. (configparser knows no repeated keys.)"""
    found: dict[str, list[str]] = {}
    section = ""
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(f"{section}.{key}", []).append(value)
    return found


@needs_systemd
def test_systemd_finds_nothing_to_complain_about(tmp_path: Path) -> None:
    """The program is replaced by one that exists here; every other line is the unit's own."""
    text, replaced = re.subn(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text(encoding="utf-8"))
    assert 1 == replaced
    unit = tmp_path / "edged.service"
    unit.write_text(text, encoding="utf-8")
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    # Warnings leave the exit status 0; those about other units of this machine are not ours.
    ours = [line for line in verified.stderr.splitlines() if "edged" in line or str(tmp_path) in line]
    assert (0, []) == (verified.returncode, ours)


@needs_systemd
def test_exposure_is_small() -> None:
    told = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNIT)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "Unknown" in told.stderr or "unrecognized" in told.stderr:
        pytest.skip("this systemd-analyze cannot judge a file (--offline is of systemd 250)")
    level = re.search(r"exposure level for edged\.service: ([\d.]+)", told.stdout)
    assert level is not None, told.stdout + told.stderr
    assert float(level[1]) <= EXPOSURE_LIMIT


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Unit.StartLimitIntervalSec", "0"),
        ("Service.Type", "notify"),
        ("Service.NotifyAccess", "main"),
        ("Service.Restart", "always"),
        ("Service.RestartSec", "5"),
        ("Service.User", "edged"),
        ("Service.StateDirectory", "edged"),
        ("Service.StateDirectoryMode", "0700"),
        ("Service.OOMPolicy", "continue"),
        ("Service.ExecStart", "/opt/edged/.venv/bin/edged run --config /etc/edged/edged.yaml"),
        ("Install.WantedBy", "multi-user.target"),
    ],
)
def test_key(key: str, value: str) -> None:
    assert [value] == keys()[key]


def test_p10_the_watchdog_is_on_and_slower_than_a_keep_alive() -> None:
    assert 20 <= int(keys()["Service.WatchdogSec"][0]) <= 120


def test_stopping_may_take_as_long_as_the_agent_drains() -> None:
    from edged.agent.daemon import FLUSH_SECONDS
    from edged.agent.shutdown import DRAIN_SECONDS

    worker_and_fetching = 10
    assert int(keys()["Service.TimeoutStopSec"][0]) > DRAIN_SECONDS + FLUSH_SECONDS + worker_and_fetching


def test_a_board_without_network_starts_all_the_same() -> None:
    """Ordering after these targets holds the service up, for minutes or for ever, where there is no network."""
    order = " ".join(value for key, values in keys().items() if key.startswith("Unit.") for value in values)
    assert not {"network-online.target", "time-sync.target"} & set(order.split())


def test_nothing_that_breaks_torch_or_the_sensors() -> None:
    """See the field notes: generated code, /proc/meminfo, affinity."""
    found = keys()
    assert "Service.MemoryDenyWriteExecute" not in found
    assert "Service.ProcSubset" not in found
    assert not any("@resources" in value for value in found["Service.SystemCallFilter"])
