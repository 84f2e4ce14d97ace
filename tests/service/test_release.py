"""The parts of scripts/package that need no build: tags, versions, bill of materials, lock, Debian's scripts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from edged.engine.kernels import build
from edged.engine.kernels.library import load_library
from tests.support import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
from release import bom, deb, elf, wheel

EXTRAS = ("broker", "serve")  # of scripts/setup and of the Debian package
DEBIAN = ROOT / "scripts" / "release" / "debian"


def needs(*versions: str, libraries: tuple[str, ...] = ("libc.so.6",)) -> elf.Needs:
    return elf.Needs("aarch64", libraries, frozenset(versions), ())


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        (("GLIBC_2.2.5",), "manylinux_2_17_aarch64"),
        (("GLIBC_2.9", "GLIBC_2.34"), "manylinux_2_34_aarch64"),  # numbers, not texts
        (("GLIBC_2.17", "GLIBCXX_3.4.30", "GLIBCXX_3.4.9"), "manylinux_2_35_aarch64"),
    ],
)
def test_a_wheel_is_for_the_oldest_platform_that_has_its_symbols(versions: tuple[str, ...], expected: str) -> None:
    assert expected == wheel.platform_tag(needs(*versions))


def test_a_library_that_no_platform_promises_is_refused() -> None:
    with pytest.raises(wheel.PackageError, match=r"libgomp\.so\.1"):
        wheel.platform_tag(needs("GLIBC_2.17", libraries=("libc.so.6", "libgomp.so.1")))
    with pytest.raises(wheel.PackageError, match="newer"):
        wheel.platform_tag(needs("GLIBC_2.17", "GLIBCXX_3.4.99"))


@pytest.fixture(scope="module")
def library() -> Path:
    load_library()
    return build.HERE / f"_native-{build.fingerprint()}.so"


def test_needs_are_read_as_readelf_reads_them(library: Path) -> None:
    def shown(option: str, pattern: str) -> set[str]:
        done = subprocess.run(["readelf", "-W", option, str(library)], capture_output=True, text=True, check=True)
        return set(re.findall(pattern, done.stdout))

    found = elf.read(library)
    assert shown("-d", r"NEEDED.*\[(.+)\]") == set(found.libraries)
    assert shown("-V", r"Name: (\S+)") == found.versions
    with pytest.raises(elf.NotElf):
        elf.read(Path(__file__))


def test_no_path_of_this_machine_is_in_the_kernels(library: Path) -> None:
    assert str(ROOT).encode() not in library.read_bytes()


def test_another_processor_has_another_library() -> None:
    assert build.fingerprint("x86_64") != build.fingerprint("aarch64")


@pytest.mark.parametrize(
    ("version", "expected"), [("0.1.0", "0.1.0-1"), ("1.0.dev3", "1.0~dev3-1"), ("1.0rc1", "1.0~rc1-1")]
)
def test_debian_sorts_a_version_as_python_does(version: str, expected: str) -> None:
    assert expected == deb.debian_version(version)


def distribution(folder: Path, name: str, version: str, *lines: str) -> PathDistribution:
    place = folder / f"{name}-{version}.dist-info"
    place.mkdir()
    head = (f"Name: {name}", f"Version: {version}", *lines)
    (place / "METADATA").write_text("\n".join(("Metadata-Version: 2.4", *head)) + "\n", encoding="utf-8")
    return PathDistribution(place)


def test_the_bill_names_each_package_and_is_the_same_each_time(tmp_path: Path) -> None:
    ours = distribution(tmp_path, "edged", "1.0", "License-Expression: Apache-2.0", "Requires-Dist: PyYAML>=6")
    theirs = distribution(tmp_path, "PyYAML", "6.0", "License: MIT")
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    bom.write(first, [ours, theirs], {"pyyaml": "ab" * 32}, 1_700_000_000)
    bom.write(second, [theirs, ours], {"pyyaml": "ab" * 32}, 1_700_000_000)
    assert first.read_bytes() == second.read_bytes()
    document = json.loads(first.read_text(encoding="utf-8"))
    assert ("CycloneDX", "1.6") == (document["bomFormat"], document["specVersion"])
    assert "2023-11-14T22:13:20Z" == document["metadata"]["timestamp"]
    assert "pkg:pypi/edged@1.0" == document["metadata"]["component"]["purl"]
    expected = {
        "type": "library",
        "bom-ref": "pkg:pypi/pyyaml@6.0",
        "name": "pyyaml",
        "version": "6.0",
        "licenses": [{"license": {"name": "MIT"}}],
        "purl": "pkg:pypi/pyyaml@6.0",
        "hashes": [{"alg": "SHA-256", "content": "ab" * 32}],
    }
    assert [expected] == document["components"]
    depends = {entry["ref"]: entry["dependsOn"] for entry in document["dependencies"]}
    assert {"pkg:pypi/edged@1.0": ["pkg:pypi/pyyaml@6.0"], "pkg:pypi/pyyaml@6.0": []} == depends


def project() -> dict[str, Any]:
    toml = pytest.importorskip("tomllib")  # Python 3.11
    found: dict[str, Any] = toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return found


def lock() -> dict[str, list[str]]:
    """The blocks of requirements.lock by package name; a package may have one for each range of Pythons."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    blocks: dict[str, list[str]] = {}
    for block in re.split(r"\n(?=\S)", text):
        if not block.startswith("#"):
            blocks.setdefault(block.split("==")[0], []).append(block)
    return blocks


def test_the_lock_pins_each_package_by_hash_and_names_no_index() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert not re.search(r"https?://|^--?[a-z]|@ ", text, re.MULTILINE)
    for blocks in lock().values():
        for block in blocks:
            assert re.match(r"[\w-]+==\S+", block)
            assert re.search(r"--hash=sha256:[0-9a-f]{64}", block)


def test_the_lock_satisfies_what_the_project_asks_for() -> None:
    found = project()["project"]
    asked = [*found["dependencies"], *(line for extra in EXTRAS for line in found["optional-dependencies"][extra])]
    asked += [*project()["build-system"]["requires"], "editables"]
    pinned = lock()
    for requirement in map(Requirement, asked):
        name = bom.normalized(requirement.name)
        assert name in pinned, f"{name} is not in requirements.lock: run scripts/lock"
        for block in pinned[name]:
            version = block.split("==")[1].split()[0]
            assert requirement.specifier.contains(version), f"{requirement}, but {version} is locked: run scripts/lock"


@pytest.mark.parametrize("name", ["preinst", "postinst", "prerm", "postrm"])
def test_debians_scripts_are_sound(name: str) -> None:
    path = DEBIAN / name
    shell = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#!")
    done = subprocess.run([shell, "-n", str(path)], capture_output=True, text=True, check=False)
    assert (0, "") == (done.returncode, done.stderr)


def test_the_units_paths_are_those_of_the_debian_package() -> None:
    unit = (ROOT / "systemd" / "edged.service").read_text(encoding="utf-8")
    assert f"ExecStart=/{deb.PREFIX}/.venv/bin/edged run --config /etc/edged/edged.yaml" in unit
    assert project()["project"]["scripts"] == {name: f"{module}:main" for name, module in deb.COMMANDS.items()}


def test_the_control_file_is_complete() -> None:
    text = (DEBIAN / "control").read_text(encoding="utf-8")
    filled = text.format(version="1-1", architecture="arm64", maintainer="a <a@b>", kilobytes=1, depends="libc6")
    fields = dict(line.split(": ", 1) for line in filled.splitlines() if re.match(r"[A-Z]", line))
    assert {"Package", "Version", "Architecture", "Maintainer", "Depends", "Description"} <= fields.keys()
