"""A real systemd in a container: Debian by debootstrap, kept in the user's cache, booted with systemd-nspawn.

The files of the container are a layer in memory above the kept ones, so nothing that a test does there stays. It
shares the network of this machine, so a broker on the loopback is the same on both sides.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import ROOT, wait_until

PACKAGES = "systemd,systemd-sysv,dbus,python3,python3-venv,procps"
# The packages of this virtual environment are used inside: the Python there must be of the same version.
SUITES = {(3, 11): "bookworm", (3, 13): "trixie"}
SOURCE, SITE = "/src", "/host-packages"


def why_not() -> str | None:
    """The reason for which no container can be had here, or None."""
    missing = [tool for tool in ("debootstrap", "systemd-nspawn", "nsenter") if shutil.which(tool) is None]
    if os.geteuid() != 0:
        return "only root may boot a container"
    if missing:
        return f"no {', '.join(missing)} here; on Debian: apt-get install debootstrap systemd-container"
    if sys.version_info[:2] not in SUITES:
        return "no Debian has this Python, so the container could not use the packages of this environment"
    if "overlay" not in Path("/proc/filesystems").read_text(encoding="ascii"):
        return "this kernel has no overlay file system"
    return None


def root_folder() -> Path | None:
    """A Debian with systemd and Python, made at the first call (two minutes); None where it cannot be made."""
    suite = SUITES[sys.version_info[:2]]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edged-tests"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"{suite}-{hashlib.sha256(PACKAGES.encode()).hexdigest()[:8]}"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder
        partial = cache / f"{folder.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, str(partial)]
        with (cache / "debootstrap.log").open("wb") as log:
            made = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False, timeout=1200)
        if made.returncode != 0:
            return None
        partial.rename(folder)
    return folder


class Container:
    """One booted container. Its processes are children of ours, and end with `stop`."""

    def __init__(self, root: Path, log: Path, models: Path) -> None:
        self.log = log
        self._root = root
        self._models = models
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def start(self) -> Container:
        binds = {ROOT: SOURCE, sysconfig.get_path("purelib"): SITE, self._models: "/models"}
        command = [
            "systemd-nspawn",
            f"--directory={self._root}",
            f"--machine=edged-test-{os.getpid()}",
            "--volatile=overlay",
            "--register=no",
            "--keep-unit",
            "--console=pipe",
            "--boot",
            *(f"--bind-ro={ours}:{theirs}" for ours, theirs in binds.items()),
        ]
        output = self.log.open("ab")
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        wait_until(self._booted, 60, "the container boots")
        return self

    def _booted(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text(errors="replace")[-2000:]
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        if not children:
            return False
        self._leader = int(children[0])
        return self.output("systemctl", "is-system-running") in {"running", "degraded"}

    def run(self, *command: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root."""
        entry = ["nsenter", "--target", str(self._leader), "--mount", "--uts", "--ipc", "--net", "--pid", "--"]
        environment = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
        return subprocess.run(
            [*entry, *command],
            input=stdin or "",
            capture_output=True,
            text=True,
            env=environment,
            check=False,
            timeout=300,
        )

    def output(self, *command: str) -> str:
        return self.run(*command).stdout.strip()

    def must(self, *command: str, stdin: str | None = None) -> str:
        done = self.run(*command, stdin=stdin)
        assert 0 == done.returncode, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def write(self, path: str, text: str) -> None:
        self.must("sh", "-c", 'mkdir -p "$(dirname "$1")" && cat >"$1"', "_", path, stdin=text)

    def show(self, key: str) -> str:
        """One property of edged.service."""
        return self.output("systemctl", "show", "--value", "--property", key, "edged.service")

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None and self._leader:
            self.run("systemctl", "poweroff")
        for end in (lambda: None, process.terminate, process.kill):
            end()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                continue
            return


@contextmanager
def booted(root: Path, log: Path, models: Path) -> Iterator[Container]:
    """Booted, and gone at the end whatever happens. Waits while another run has one of the same root folder."""
    container = Container(root, log, models)
    with (root.parent / "boot.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield container.start()
        finally:
            container.stop()
