"""scripts/install and scripts/uninstall as far as they can be looked at without a systemd that runs."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT

SCRIPTS = [ROOT / "scripts" / name for name in ("install", "uninstall")]
by_name = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]


def function(name: str, *arguments: str | Path) -> str:
    """What a function of scripts/board_drop_ins prints."""
    strict = 'set -euo pipefail; . "$1"; shift; "$@"'
    done = run("bash", "-c", strict, "_", ROOT / "scripts" / "board_drop_ins", name, *arguments)
    assert (0, "") == (done.returncode, done.stderr)
    return done.stdout


@by_name
def test_is_sound_bash(script: Path) -> None:
    done = run("bash", "-n", script)
    assert (0, "") == (done.returncode, done.stderr)
    assert os.access(script, os.X_OK)


@by_name
def test_help_names_every_option(script: Path) -> None:
    done = run(script, "--help")
    assert 0 == done.returncode
    assert all(word in done.stdout for word in ("--no-start" if script.name == "install" else "--purge", "--help"))


@by_name
def test_an_unknown_argument_is_wrong_usage(script: Path) -> None:
    done = run(script, "--nonsense")
    assert 2 == done.returncode
    assert f"scripts/{script.name}: unknown argument --nonsense" in done.stderr
    assert 1 == done.stderr.count("\n")


@by_name
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_refuses_without_root_as_nobody(script: Path) -> None:
    # A copy, since nobody may not be allowed into the checkout.
    copy = Path("/tmp") / f"edged-{script.name}-{os.getpid()}"
    copy.write_text(script.read_text(encoding="utf-8"), encoding="utf-8")
    try:
        done = run("bash", copy, user=65534, group=65534, extra_groups=(), cwd="/")
    finally:
        copy.unlink()
    assert (1, f"scripts/{script.name}: needs root: sudo scripts/{script.name}\n") == (done.returncode, done.stderr)


@by_name
@pytest.mark.skipif(os.geteuid() == 0, reason="this is root")
def test_refuses_without_root(script: Path) -> None:
    done = run(script)
    assert (1, f"scripts/{script.name}: needs root: sudo scripts/{script.name}\n") == (done.returncode, done.stderr)


def test_no_script_names_a_package_index_but_pytorchs_cpu_builds() -> None:
    """Packages come from the index that pip is configured for, which may be a mirror without a way out."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "scripts").iterdir() if path.is_file()]
    named = {host for text in texts for host in re.findall(r"https?://([\w.-]+)", text)}
    assert {"download.pytorch.org"} == named


def device(root: Path, name: str) -> None:
    """A link to a character device replaces a node: making nodes needs rights."""
    path = root / "dev" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("/dev/null")


def settings(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_a_pc_needs_no_drop_in(tmp_path: Path) -> None:
    device(tmp_path, "null")
    device(tmp_path, "dri/renderD128")  # a screen's GPU is of no use to torch
    assert "" == function("raspberry_pi_drop_in", tmp_path)
    assert "" == function("gpu_drop_in", tmp_path)


def test_a_raspberry_pi_opens_its_firmware(tmp_path: Path) -> None:
    device(tmp_path, "vcio")
    text = function("raspberry_pi_drop_in", tmp_path)
    assert text.startswith("# Written by the installer")
    assert ["[Service]", "PrivateDevices=no", "DeviceAllow=/dev/vcio r"] == settings(text)


def test_a_jetson_opens_the_nodes_that_are_there(tmp_path: Path) -> None:
    for name in ("nvmap", "nvhost-ctrl-gpu", "nvgpu/igpu0/as", "dri/renderD128"):
        device(tmp_path, name)
    (tmp_path / "dev" / "nvidia-caps").mkdir()  # a folder is no node
    expected = ["nvmap", "nvhost-ctrl-gpu", "nvgpu/igpu0/as", "dri/renderD128"]
    assert ["[Service]", "PrivateDevices=no", *(f"DeviceAllow=/dev/{node} rw" for node in expected)] == settings(
        function("gpu_drop_in", tmp_path)
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to a group")
def test_the_groups_are_those_of_the_nodes(tmp_path: Path) -> None:
    """Each once, none for root, none without a name: systemd starts no service with a group that it does not know."""
    import grp

    names = [group.gr_name for group in grp.getgrall() if group.gr_gid != 0][:2]
    for file, group in {"a": names[0], "b": names[1], "c": names[0], "d": "root", "e": 54321}.items():
        (tmp_path / file).touch()
        os.chown(tmp_path / file, 0, group if isinstance(group, int) else grp.getgrnam(group).gr_gid)
    assert " ".join(names) == function("groups_of", *sorted(tmp_path.iterdir()))


HEAD = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t0\t90\t1\n"


@pytest.mark.parametrize(
    ("files", "hint"),
    [
        ({"sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n"}, None),
        ({"sys/fs/cgroup/cgroup.controllers": "cpuset cpu io pids\n"}, "the kernel's command line"),
        (
            {"sys/fs/cgroup/cgroup.controllers": "cpu pids\n", "boot/firmware/cmdline.txt": "quiet"},
            "the one line of /boot/firmware/cmdline.txt",
        ),
        (
            {"proc/cgroups": HEAD + "memory\t0\t90\t0\n", "boot/cmdline.txt": "quiet"},
            "the one line of /boot/cmdline.txt",
        ),
        ({"proc/cgroups": HEAD + "memory\t2\t90\t1\n"}, None),
        ({}, None),
    ],
)
def test_says_when_memory_is_not_limited(tmp_path: Path, files: dict[str, str], hint: str | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="ascii")
    said = function("memory_cgroup_advice", tmp_path)
    assert (hint is not None) == ("cgroup_enable=memory cgroup_memory=1" in said)
    assert hint is None or f"to {hint} and reboot" in said


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("echo 3 9 True False", "is older than Python 3.10"),
        ("echo 2 7 True False", "is older than Python 3.10"),
        ("echo 3 11 False False", "is a 32-bit program"),
        ("echo 3 11 True True", "belongs to a virtual environment"),
        ('case "$2" in *ensurepip*) exit 1 ;; *) echo 3 11 True False ;; esac', "apt-get install python3-venv"),
    ],
)
def test_refuses_a_python_that_will_not_do(tmp_path: Path, body: str, sentence: str) -> None:
    """Before anything was changed."""
    python = tmp_path / "python3"
    python.write_text(f"#!/bin/sh\n{body}\n", encoding="ascii")
    python.chmod(0o755)
    done = run(
        "bash", "-c", '. "$1"; find_python', "_", SCRIPTS[0], env={"PATH": os.environ["PATH"], "PYTHON": str(python)}
    )
    assert 1 == done.returncode
    assert sentence in done.stderr
    assert 1 == done.stderr.count("\n")
