"""A Debian of another processor in a folder, run by qemu-user in namespaces of its own.

The kernel starts programs of that processor with qemu only inside: binfmt_misc is mounted in a user namespace, which
has its own table (Linux 6.7 or newer). Its users are those of this machine, so that dpkg may give files to them.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGES = "python3,adduser"
QEMU = "/usr/bin/qemu-aarch64-static"
# magic and mask of a 64-bit little-endian ELF program or library for AArch64, as the kernel's binfmt_misc takes them
MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
# Arguments: root folder, entry for binfmt_misc, command. F: qemu is opened now, so it is not needed inside.
INSIDE = """
mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
printf %s "$2" >/proc/sys/fs/binfmt_misc/register
mount -t proc proc "$1/proc"
root=$1
shift 2
exec chroot "$root" "$@"
"""


def why_not() -> str | None:
    """The reason for which a foreign Debian cannot be run here, or None."""
    missing = [tool for tool in ("debootstrap", QEMU, "nsenter", "unshare") if shutil.which(tool) is None]
    if os.geteuid() != 0:
        return "only root may make a Debian in a folder"
    if missing:
        return f"no {', '.join(missing)} here; on Debian: apt-get install debootstrap qemu-user-static"
    kernel = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if kernel is None or (int(kernel[1]), int(kernel[2])) < (6, 7):
        return "before Linux 6.7 a user namespace has no binfmt_misc of its own"
    return None


class Foreign:
    """Commands in the folder. The user namespace is held by a process of ours, which `close` ends."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._holder: subprocess.Popen[bytes] | None = None

    def start(self) -> Foreign:
        self._holder = subprocess.Popen(["unshare", "--user", "sleep", "infinity"])
        space = Path(f"/proc/{self._holder.pid}/ns/user")
        while space.readlink() == Path("/proc/self/ns/user").readlink():
            assert self._holder.poll() is None, "no user namespace can be made here"
            time.sleep(0.02)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{self._holder.pid}/{name}").write_text("0 0 65536", encoding="ascii")
        return self

    def command(self, *command: str) -> list[str]:
        """What runs `command` inside, as root, from a process of this machine."""
        assert self._holder is not None
        entry = f":qemu-aarch64:M::{MAGIC}:{MASK}:{QEMU}:OCF"
        enter = ["nsenter", f"--target={self._holder.pid}", "--user"]
        spaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        return [*enter, *spaces, "sh", "-ec", INSIDE, "_", str(self.root), entry, *command]

    def must(self, *command: str, seconds: float = 600) -> str:
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
        done = subprocess.run(
            self.command(*command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**environment, "DEBIAN_FRONTEND": "noninteractive"},
            check=False,
            timeout=seconds,
        )
        assert 0 == done.returncode, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def close(self) -> None:
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait(10)


def root_folder(suite: str) -> Path | None:
    """A small Debian for arm64 with Python, made at the first call (minutes), None where it cannot be made."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edged-tests"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"{suite}-arm64"
    with (cache / "foreign.lock").open("w") as lock, (cache / "foreign.log").open("wb") as log:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder
        partial = cache / f"{folder.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        options = ["--foreign", "--arch=arm64", "--variant=minbase", f"--include={PACKAGES}"]
        first = ["debootstrap", *options, suite, str(partial)]
        if subprocess.run(first, stdout=log, stderr=log, check=False, timeout=1200).returncode != 0:
            return None
        foreign = Foreign(partial).start()
        try:
            second = foreign.command("/debootstrap/debootstrap", "--second-stage")
            # No device nodes can be made inside, as in an LXC container; the first stage has made them.
            environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "container": "lxc"}
            done = subprocess.run(second, stdout=log, stderr=log, env=environment, check=False, timeout=2400)
            if done.returncode != 0:
                return None
        finally:
            foreign.close()
        partial.rename(folder)
    return folder


@contextmanager
def entered(root: Path, copy: Path) -> Iterator[Foreign]:
    """A copy of the folder, removed at the end."""
    subprocess.run(["cp", "-a", str(root), str(copy)], check=True)
    foreign = Foreign(copy).start()
    try:
        yield foreign
    finally:
        foreign.close()
        shutil.rmtree(copy, ignore_errors=True)
