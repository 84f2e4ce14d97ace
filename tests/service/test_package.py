"""What scripts/package makes: the same bytes twice, a wheel that runs anywhere, Debian packages that answer."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edged import __version__
from tests.service import container as containers
from tests.service import foreign
from tests.service.container import Container
from tests.support import ROOT, Broker, Client
from tests.tiny import make_gguf

pytestmark = pytest.mark.slow

LOAD_SECONDS = 300
TOPICS = "edged/v1/test/device/board"
PYTHON = (3, 11)  # of the Debian packages


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all that scripts/package makes; PACKAGES names one that has it already."""
    if made := os.environ.get("PACKAGES"):
        return Path(made)
    if shutil.which("aarch64-linux-gnu-g++") is None:
        pytest.skip("needs g++-aarch64-linux-gnu")
    folder = tmp_path_factory.mktemp("dist")
    package(ROOT, folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package") / "models"  # the user edged may read this one
    folder.mkdir()
    make_gguf(folder / "tiny.gguf")
    return folder


def package(checkout: Path, folder: Path, *options: str) -> None:
    command = [sys.executable, str(checkout / "scripts" / "package"), "--output", str(folder), *options]
    command += ["--maintainer", "The maintainers of edged <edged@debian.org>"]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1790000000"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=1500)
    assert 0 == done.returncode, done.stdout + done.stderr


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def config(broker: Broker, model: str, **more: Any) -> str:
    """JSON is YAML."""
    return json.dumps(
        {
            "identity": {"fleet": "test", "device": "board"},
            "mqtt": {"url": broker.url},
            "model": {"source": model},
            "generation": {"max_tokens": 8},
            **more,
        }
    )


def online(client: Client) -> None:
    """From then on the device has subscribed, and its model is loaded."""
    client.status("online", LOAD_SECONDS)


def answered(client: Client, prompt_id: str) -> dict[str, Any]:
    client.publish(f"{TOPICS}/prompt/me", {"id": prompt_id, "prompt": "What is the capital of Japan?"})
    final = client.final(prompt_id, LOAD_SECONDS)
    assert final["reason"] in {"stop", "length"}, final
    assert "native" == final["receipt"]["backend"]
    return final


@pytest.fixture
def replies(client: Client) -> Iterator[Client]:
    client.subscribe(f"{TOPICS}/status", "edged/v1/test/reply/#")
    yield client
    for topic in ("status", "health", "config/reported", "config/history"):
        client.publish(f"{TOPICS}/{topic}", b"", retain=True)


def test_lintian_finds_nothing(packages: Path) -> None:
    if shutil.which("lintian") is None:
        pytest.skip("needs lintian: apt-get install lintian")
    for package in packages.glob("*.deb"):
        command = ["lintian", "--allow-root", "--fail-on=error,warning", str(package)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
        assert (0, "") == (done.returncode, done.stdout)


def test_another_folder_gives_the_same_bytes(packages: Path, tmp_path: Path) -> None:
    checkout, again = tmp_path / "checkout", tmp_path / "dist"
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in done.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, checkout / name)
            os.utime(checkout / name)
    package(checkout, again, "--machine", "x86_64")
    made = sorted(path.name for path in again.iterdir() if path.name != "SHA256SUMS")
    assert 3 == len(made)
    assert [] == [name for name in made if (again / name).read_bytes() != (packages / name).read_bytes()]


def test_the_wheel_runs_from_anywhere(
    packages: Path, models: Path, broker: Broker, replies: Client, tmp_path: Path
) -> None:
    """From the wheels of the lock alone, in a clean environment without a compiler in PATH."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    wheels = ROOT / "build" / "package" / "x86_64" / "wheels"
    pip = [str(venv / "bin/python"), "-m", "pip", "install", "--quiet", "--no-index", f"--find-links={wheels}"]
    subprocess.run([*pip, str(only(packages, "*x86_64.whl"))], check=True, cwd=tmp_path)
    file = tmp_path / "edged.yaml"
    file.write_text(config(broker, str(models / "tiny.gguf"), state_dir=str(tmp_path / "state")), encoding="utf-8")
    environment = {"PATH": str(venv / "bin"), "HOME": str(tmp_path)}
    process = subprocess.Popen(["edged", "run", "--config", str(file)], cwd="/", env=environment)
    try:
        online(replies)
        assert answered(replies, "wheel")["text"]
    finally:
        process.terminate()
        assert 0 == process.wait(30)
    assert not list(tmp_path.glob(".cache/**/*.so"))  # the kernels are those of the wheel


@pytest.fixture(scope="module")
def board(packages: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """A booted Debian 12 with nothing of ours but the folder /models, which has the package too."""
    if reason := containers.why_not():
        pytest.skip(reason)
    if sys.version_info[:2] != PYTHON:
        pytest.skip("the container would have another Python than the package is for")
    root = containers.root_folder()
    if root is None:
        pytest.skip("debootstrap failed (no network?); its log lies beside the cached root folder")
    shutil.copy(only(packages, "*_amd64.deb"), models / "edged.deb")
    with containers.booted(root, tmp_path_factory.mktemp("board") / "console.log", models) as container:
        container.must("dpkg", "--install", "/models/edged.deb")
        yield container
        print(container.output("journalctl", "--unit", "edged", "--no-pager", "--output", "cat", "--lines", "80"))


def test_debian_installs_without_a_network_and_starts(board: Container, broker: Broker, replies: Client) -> None:
    assert "enabled" == board.output("systemctl", "is-enabled", "edged.service")
    assert "active" == board.output("systemctl", "is-active", "edged.service")
    assert "640 root edged" == board.output("stat", "-c", "%a %U %G", "/etc/edged/edged.yaml")
    assert "750 root edged" == board.output("stat", "-c", "%a %U %G", "/etc/edged")
    assert re.fullmatch(
        r"edged:x:\d{1,3}:\d+:[^:]*:/var/lib/edged:/usr/sbin/nologin", board.output("getent", "passwd", "edged")
    )
    assert f"edged {__version__}" == board.must("edged", "--version")
    assert board.must("edgectl", "serve", "--help")
    assert "" == board.output("dpkg", "--verify", "edged")
    assert "" == board.output("find", "/opt/edged", "!", "-user", "root")
    assert "" == board.output("find", "/opt/edged", "!", "-type", "l", "-perm", "/022")
    assert board.output("find", "/opt/edged", "-path", "*/edged/commands/*", "-name", "run*.pyc")
    board.write("/etc/edged/edged.yaml", config(broker, "/models/tiny.gguf"))
    board.must("systemctl", "restart", "edged.service")
    online(replies)
    assert answered(replies, "installed")["text"]


def test_debian_upgrades_and_keeps_config_state_and_prompts(board: Container, replies: Client) -> None:
    before, kept = answered(replies, "before"), board.must("cat", "/etc/edged/edged.yaml")
    pid = board.show("MainPID")
    board.must("dpkg", "--install", "/models/edged.deb")
    assert kept == board.must("cat", "/etc/edged/edged.yaml")
    assert "640 root edged" == board.output("stat", "-c", "%a %U %G", "/etc/edged/edged.yaml")
    assert board.show("MainPID") not in {pid, "0"}
    replies.clear()
    assert before == answered(replies, "before")  # out of the journal
    board.must("systemctl", "disable", "--now", "edged.service")
    board.must("dpkg", "--install", "/models/edged.deb")
    assert "disabled" == board.output("systemctl", "is-enabled", "edged.service")
    board.must("systemctl", "enable", "edged.service")


def test_debian_refuses_beside_scripts_install(board: Container) -> None:
    board.write("/opt/edged/hatch_build.py", "")
    try:
        done = board.run("dpkg", "--install", "/models/edged.deb")
    finally:
        board.must("rm", "/opt/edged/hatch_build.py")
    assert 1 == done.returncode
    assert "sudo /opt/edged/scripts/uninstall" in done.stderr
    other = board.run("/src/scripts/install")
    assert 1 == other.returncode
    assert "edged is installed as a Debian package" in other.stderr
    board.must("dpkg", "--install", "/models/edged.deb")


def test_debian_removes_the_code_and_purges_the_rest(board: Container) -> None:
    board.must("systemctl", "start", "edged.service")
    board.must("dpkg", "--remove", "edged")
    assert "not-found" == board.show("LoadState")
    assert "" == board.output("find", "/opt", "/usr/bin", "/lib/systemd", "-name", "*edge*")
    assert "edged.yaml" == board.output("ls", "/etc/edged")
    assert "journal.db" in board.output("ls", "/var/lib/edged")
    board.must("dpkg", "--purge", "edged")
    assert "" == board.output("find", "/etc", "/var/lib", "-name", "*edged*")
    assert "" == board.output("getent", "passwd", "edged")
    board.must("dpkg", "--install", "/models/edged.deb")  # and back, as on a fresh machine
    assert "fleet: home" in board.output("cat", "/etc/edged/edged.yaml")
    assert "active" == board.output("systemctl", "is-active", "edged.service")


def test_the_arm_package_answers_under_qemu(
    packages: Path, models: Path, broker: Broker, replies: Client, tmp_path: Path
) -> None:
    if reason := foreign.why_not():
        pytest.skip(reason)
    root = foreign.root_folder("bookworm")
    if root is None:
        pytest.skip("debootstrap failed (no network?); its log lies beside the cached root folder")
    with foreign.entered(root, tmp_path / "arm64") as arm:
        shutil.copy(only(packages, "*_arm64.deb"), arm.root / "edged.deb")
        arm.must("dpkg", "--install", "/edged.deb", seconds=1200)
        assert "aarch64" == arm.must("/usr/bin/uname", "-m")
        assert f"edged {__version__}" == arm.must("/usr/bin/edged", "--version")
        shutil.copy(models / "tiny.gguf", arm.root / "tiny.gguf")
        (arm.root / "etc/edged/edged.yaml").write_text(config(broker, "/tiny.gguf"), encoding="utf-8")
        arm.must("install", "-d", "-m", "0700", "-o", "edged", "-g", "edged", "/var/lib/edged")  # systemd does it
        process = subprocess.Popen(arm.command("/usr/sbin/runuser", "-u", "edged", "--", "/usr/bin/edged", "run"))
        try:
            online(replies)
            final = answered(replies, "arm")
        finally:
            process.kill()  # unshare ignores SIGTERM; with it goes all that it started
            process.wait(60)
        assert final["text"]
