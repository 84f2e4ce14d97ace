"""Puts an unpacked edged with its dependencies into a Debian package, with dpkg-deb alone."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import subprocess
from email.utils import formatdate
from pathlib import Path

from release import elf
from release.dependencies import PYTHON
from release.wheel import GLIBC, ROOT, PackageError

HERE = Path(__file__).parent
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
PREFIX = "opt/edged"
SITE = f"{PREFIX}/.venv/lib/python{PYTHON}/site-packages"
DOC = "usr/share/doc/edged"
# Libraries of the system that a wheel may need, and their packages.
PACKAGES = {"libgcc_s.so.1": "libgcc-s1", "libstdc++.so.6": "libstdc++6", "libz.so.1": "zlib1g"}
CONFFILE = "etc/edged/edged.yaml"
COMPRESSION = ("-Zxz", "-z3", "--threads-max=2")  # with one thread xz would write other bytes
CHANGELOG = """edged ({version}) unstable; urgency=medium

  * See /opt/edged/CHANGELOG.md.

 -- {maintainer}  {date}
"""
COMMANDS = {"edged": "edged.commands.main", "edgectl": "edged.commands.edgectl"}


def debian_version(version: str) -> str:
    """A version of PEP 440 as Debian sorts it: 1.0.dev2 and 1.0rc1 come before 1.0."""
    return re.sub(r"\.?(dev|a|b|rc)(?=\d)", r"~\1", version) + "-1"


def place(tree: Path, bom: Path) -> None:
    """Add everything but the Python packages, which `tree`/`SITE` has already."""
    _virtual_environment(tree)
    for name in ("README.md", "CHANGELOG.md", "LICENSE", "SECURITY.md"):
        shutil.copy(ROOT / name, tree / PREFIX)
    shutil.copytree(ROOT / "docs", tree / PREFIX / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    _copy(ROOT / "scripts/board_drop_ins", tree / PREFIX / "scripts/board_drop_ins")
    _copy(ROOT / "systemd/edged.service", tree / "lib/systemd/system/edged.service")
    _copy(ROOT / "config/edged.yaml", tree / CONFFILE)
    _copy(HERE / "debian/copyright", tree / DOC / "copyright")
    _copy(HERE / "debian/lintian-overrides", tree / "usr/share/lintian/overrides/edged")
    _copy(bom, tree / DOC / "edged.cdx.json")
    (tree / "usr/bin").mkdir()
    for name in COMMANDS:
        (tree / "usr/bin" / name).symlink_to(f"/{PREFIX}/.venv/bin/{name}")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _virtual_environment(tree: Path) -> None:
    """What `python3 -m venv` makes, without pip: the unit and the commands find the same layout as in a checkout."""
    venv = tree / PREFIX / ".venv"
    # pip's commands name the Python of this machine, and its lists of files have their hashes.
    shutil.rmtree(tree / SITE / "bin", ignore_errors=True)
    for record in (tree / SITE).glob("*.dist-info/RECORD"):
        lines = record.read_text(encoding="utf-8").splitlines(keepends=True)
        record.write_text("".join(line for line in lines if not line.startswith("../../bin/")), encoding="utf-8")
    (venv / "pyvenv.cfg").write_text(f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {PYTHON}\n")
    (venv / "bin").mkdir()
    (venv / "bin/python").symlink_to(f"/usr/bin/python{PYTHON}")
    (venv / "bin/python3").symlink_to("python")
    for name, module in COMMANDS.items():
        command = venv / "bin" / name
        command.write_text(
            f"#!/{PREFIX}/.venv/bin/python\nimport sys\n\nfrom {module} import main\n\nsys.exit(main())\n"
        )
        command.chmod(0o755)


def depends(tree: Path) -> str:
    """The packages of the system: Python of one version, and what the compiled modules need from outside."""
    major, minor = PYTHON.split(".")
    glibc: tuple[int, ...] = ()
    packages = {"adduser", f"python3 (>= {PYTHON})", f"python3 (<< {major}.{int(minor) + 1})"}
    bundled = {path.name for path in tree.rglob("*.so*")}
    for path in sorted(tree.rglob("*.so*")):
        needs = elf.read(path)
        glibc = max(glibc, needs.newest("GLIBC")[:2])
        for library in set(needs.libraries) - GLIBC - bundled:
            if library not in PACKAGES:
                raise PackageError(f"{path.relative_to(tree)} needs {library}, and no package is known to have it")
            packages.add(PACKAGES[library])
    packages.add(f"libc6 (>= {'.'.join(map(str, glibc))})")
    return ", ".join(sorted(packages))


def build(tree: Path, machine: str, version: str, maintainer: str, epoch: int, output: Path) -> Path:
    """Writes the .deb. `epoch` is the newest time that a file in it may have: the same tree gives the same bytes."""
    fields = {
        "version": debian_version(version),
        "architecture": ARCHITECTURES[machine],
        "maintainer": maintainer,
        "depends": depends(tree),
    }
    log = CHANGELOG.format(date=formatdate(epoch), **fields).encode()
    (tree / DOC / "changelog.Debian.gz").write_bytes(gzip.compress(log, mtime=0))
    _settle(tree, epoch)
    _control(tree, fields, epoch)
    made = output / f"edged_{fields['version']}_{fields['architecture']}.deb"
    command = ["dpkg-deb", "--root-owner-group", *COMPRESSION, "--build", str(tree), str(made)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PackageError(f"dpkg-deb failed:\n{done.stderr}")
    return made


def _control(tree: Path, fields: dict[str, str], epoch: int) -> None:
    """The folder DEBIAN: what dpkg reads, and the maintainer's scripts."""
    paths = sorted(tree.rglob("*"))
    files = [path for path in paths if path.is_file() and not path.is_symlink()]
    kilobytes = sum((path.stat().st_size + 1023) // 1024 for path in files) + len(paths) - len(files)
    sums = [
        f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(tree)}\n"
        for path in files
        if path != tree / CONFFILE
    ]
    control = tree / "DEBIAN"
    control.mkdir()
    text = (HERE / "debian/control").read_text(encoding="utf-8").format(kilobytes=kilobytes, **fields)
    (control / "control").write_text(text, encoding="utf-8")
    (control / "conffiles").write_text(f"/{CONFFILE}\n", encoding="utf-8")
    (control / "md5sums").write_text("".join(sums), encoding="utf-8")
    for name in ("preinst", "postinst", "prerm", "postrm"):
        shutil.copyfile(HERE / "debian" / name, control / name)
        (control / name).chmod(0o755)
    for path in (*control.iterdir(), control, tree):
        os.utime(path, (epoch, epoch))


def _settle(tree: Path, epoch: int) -> None:
    """Rights and times that do not depend on who builds, and when."""
    for path in (tree, *tree.rglob("*")):
        if not path.is_symlink():
            program = path.is_dir() or path.parent.name == "bin"
            path.chmod(0o755 if program else 0o644)
        os.utime(path, (epoch, epoch), follow_symlinks=False)
    (tree / "etc/edged").chmod(0o750)
    (tree / CONFFILE).chmod(0o640)
