"""edged.service under a real systemd: installed by the real script, asked from outside, killed, hung, removed.

Only the packages are not downloaded: the virtual environment inside points at those of this one, and scripts/setup
finds its stamp there and has nothing to do.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edged import __version__
from tests.service import container as containers
from tests.service.container import SITE, SOURCE, Container
from tests.support import Broker, Client, as_json, wait_until
from tests.tiny import make_gguf

pytestmark = pytest.mark.slow

ROOT = "edged/v1/test/device/board"
DROP_INS = "/etc/systemd/system/edged.service.d"
VENV = "/opt/edged/.venv"
LOAD_SECONDS = 120  # on a machine that may do other things


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory, broker: Broker) -> Iterator[Container]:
    """A booted Debian with edged installed, not yet started, and a config that names our broker and a tiny model."""
    if reason := containers.why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("service")
    models = folder / "models"
    models.mkdir()
    make_gguf(models / "tiny.gguf")
    root = containers.root_folder()
    if root is None:
        pytest.skip("debootstrap failed (no network?); its log lies beside the cached root folder")
    with containers.booted(root, folder / "console.log", models) as container:
        lend_packages(container)
        container.must(f"{SOURCE}/scripts/install", "--no-start")
        container.write("/etc/edged/edged.yaml", config(broker))
        yield container


@pytest.fixture
def service(board: Container, client: Client, request: pytest.FixtureRequest) -> Iterator[Container]:
    """The same, with the service running and its model loaded; a failed test shows the log."""
    client.subscribe(f"{ROOT}/#", "edged/v1/test/reply/#")
    board.must("systemctl", "start", "edged.service")
    wait_for_model(board)
    yield board
    print(board.output("journalctl", "--unit", "edged", "--no-pager", "--output", "cat", "--lines", "80"))
    board.run("systemctl", "stop", "edged.service")
    for topic in ("status", "health", "config/reported"):
        client.publish(f"{ROOT}/{topic}", b"", retain=True)


def config(broker: Broker, **more: Any) -> str:
    """JSON is YAML."""
    return json.dumps(
        {
            "identity": {"fleet": "test", "device": "board"},
            "mqtt": {"url": broker.url},
            "model": {"source": "/models/tiny.gguf"},
            "generation": {"max_tokens": 8},
            "telemetry": {"interval": "1s"},
            **more,
        }
    )


def lend_packages(container: Container) -> None:
    """What scripts/setup would download: a virtual environment of the container's Python, with our packages."""
    container.must("python3", "-m", "venv", "--without-pip", VENV)
    minor = f"python3.{sys.version_info.minor}"
    container.write(f"{VENV}/lib/{minor}/site-packages/lent.pth", f"/opt/edged\n{SITE}\n")
    for name, module in {"edged": "edged", "edgectl": "edged.ctl.main"}.items():
        program = f"#!{VENV}/bin/python\nimport sys\nfrom {module} import main\nsys.exit(main())\n"
        container.write(f"{VENV}/bin/{name}", program)
        container.must("chmod", "755", f"{VENV}/bin/{name}")
    container.write(f"{VENV}/.edged-run", container.must(f"{SOURCE}/scripts/setup", "stamp") + "\n")


def wait_for_model(board: Container) -> None:
    wait_until(lambda: board.show("StatusText") == "model online, connected", LOAD_SECONDS, "the model is loaded")


def processes(board: Container) -> list[str]:
    return board.output("ps", "--no-headers", "-o", "args", "-u", "edged").splitlines()


def ask(client: Client, prompt_id: str, seconds: float = 60) -> dict[str, Any]:
    client.publish(f"{ROOT}/prompt/me", {"id": prompt_id, "prompt": "What is the capital of Japan?"})
    return client.final(prompt_id, seconds)


def wait_for_status(client: Client, word: str, seconds: float = 20) -> None:
    wanted = (f"{ROOT}/status", word.encode())
    client.wait(lambda m: (m.topic, m.payload) == wanted, seconds, f"status {word}")


def test_installed_as_the_page_says(board: Container) -> None:
    assert "enabled" == board.output("systemctl", "is-enabled", "edged.service")
    assert "inactive" == board.output("systemctl", "is-active", "edged.service")
    assert "640 root edged" == board.output("stat", "-c", "%a %U %G", "/etc/edged/edged.yaml")
    assert "750 root edged" == board.output("stat", "-c", "%a %U %G", "/etc/edged")
    assert re.fullmatch(
        r"edged:x:\d{1,3}:\d+::/var/lib/edged:/usr/sbin/nologin", board.output("getent", "passwd", "edged")
    )
    # Nobody but root may change the code, everybody may read it, and it is compiled.
    assert "" == board.output("find", "/opt/edged", "!", "-user", "root")
    assert "" == board.output("find", "/opt/edged", "!", "-type", "l", "-perm", "/022")
    assert "" == board.output("find", "/opt/edged/edged", "!", "-perm", "-004")
    assert board.output("find", "/opt/edged/edged", "-name", "cli*.pyc")
    assert "" == board.output("find", "/opt/edged", "-maxdepth", "1", "-name", "tests")
    assert f"edged {__version__}" == board.must("edged", "--version")
    assert board.must("edgectl", "--help")
    verified = board.run("systemd-analyze", "verify", "--man=no", "edged.service")
    assert (0, "") == (verified.returncode, verified.stderr)


def test_answers_and_comes_back_after_a_kill_and_leaves_nothing_behind(service: Container, client: Client) -> None:
    assert "active" == service.output("systemctl", "is-active", "edged.service")
    assert "1min" == service.show("WatchdogUSec")
    assert "0" == service.show("NRestarts")
    final = ask(client, "one")
    assert final["reason"] in {"stop", "length"}
    assert final["text"]
    assert "native" == final["receipt"]["backend"]
    # A schema is tried in a process of its own, which the unit's walls must allow.
    schema = {"type": "json_schema", "schema": {"type": "boolean"}}
    client.publish(f"{ROOT}/prompt/me", {"id": "format", "prompt": "Yes?", "format": schema})
    assert client.final("format", 60)["text"] in {"true", "false"}

    before = service.show("MainPID")
    client.clear()
    service.must("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "edged.service")
    wait_for_status(client, "offline")  # the will
    wait_until(lambda: service.show("NRestarts") == "1", 20, "systemd starts it again")
    assert final == ask(client, "one", LOAD_SECONDS)  # the journal has it still
    assert ask(client, "two", LOAD_SECONDS)["text"]
    assert service.show("MainPID") not in {before, "0"}
    assert "model online, connected" == service.show("StatusText")
    assert 2 == len(processes(service))  # the old worker went with its agent

    client.clear()
    began = time.monotonic()
    service.must("systemctl", "stop", "edged.service")
    assert time.monotonic() - began < 15
    wait_for_status(client, "offline")
    assert [] == processes(service)
    assert "success" == service.show("Result")
    assert "0" == service.show("ExecMainStatus")


def test_hardening_is_in_force_and_hides_nothing_that_is_measured(service: Container, client: Client) -> None:
    def whole(message: Any) -> Any:
        document = as_json(message)
        return document if message.topic == f"{ROOT}/telemetry" and document["worker"].get("rss_bytes") else None

    ask(client, "measured")
    reading = client.wait(whole, 30, "a reading with the worker's memory")
    for part in ("cpu", "memory", "disk", "queue"):
        assert reading[part], part
    assert reading["memory"]["available_bytes"] > 0
    assert reading["agent"]["pss_bytes"] > 0  # of one's own processes, behind ProtectProc
    assert reading["pressure"] or not Path("/proc/pressure").exists()
    health = client.wait(lambda m: m.topic == f"{ROOT}/health" and as_json(m), 10, "health")
    assert not {"sensor_broken", "sensor_stuck"} & {finding["code"] for finding in health["findings"]}
    log = service.output("journalctl", "--unit", "edged", "--no-pager", "--output", "cat")
    assert "cannot raise its own oom_score_adj" not in log
    assert "Traceback" not in log
    main = service.show("MainPID")
    worker = service.output("pgrep", "-P", main)
    assert "600" == service.output("cat", f"/proc/{worker}/oom_score_adj")
    status = service.output("cat", f"/proc/{worker}/status")
    for line in ("CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"):
        assert line in status
    assert "700 edged edged" == service.output("stat", "-c", "%a %U %G", "/var/lib/edged")
    assert "" == service.output("find", "/var/lib/edged", "-type", "f", "-perm", "/077")


def test_p10_an_agent_that_hangs_is_replaced(service: Container, client: Client) -> None:
    service.write(f"{DROP_INS}/50-test.conf", "[Service]\nWatchdogSec=4\nTimeoutAbortSec=1\n")
    service.must("systemctl", "daemon-reload")
    service.must("systemctl", "restart", "edged.service")
    try:
        wait_for_model(service)
        hung = service.show("MainPID")
        time.sleep(10)  # two periods and a half: one that lives is left alone
        assert hung == service.show("MainPID")
        service.must("systemctl", "kill", "--kill-whom=main", "--signal=STOP", "edged.service")
        wait_until(lambda: service.show("MainPID") not in {hung, "0"}, 40, "systemd replaces it")
        assert ask(client, "after a hang".replace(" ", "-"), LOAD_SECONDS)["text"]
        assert "Watchdog timeout" in service.output("journalctl", "--no-pager", "--output", "cat", "UNIT=edged.service")
    finally:
        service.must("rm", f"{DROP_INS}/50-test.conf")
        service.must("systemctl", "daemon-reload")


def test_p10_losing_the_broker_is_no_reason_to_restart(service: Container, broker: Broker, tmp_path: Path) -> None:
    """And a start without a broker is a start: READY comes, the status line says what is missing."""

    def apart() -> bool:
        told = service.show("StatusText")
        return told.startswith("model online, ") and told != "model online, connected"

    other = Broker(tmp_path).start()
    service.write("/etc/edged/edged.yaml", config(other))
    try:
        service.must("systemctl", "restart", "edged.service")
        wait_for_model(service)
        running = service.show("MainPID")
        other.stop()
        wait_until(apart, 20, "the status line says so")
        assert running == service.show("MainPID")
        service.must("systemctl", "restart", "edged.service")
        assert "active" == service.output("systemctl", "is-active", "edged.service")
        wait_until(apart, LOAD_SECONDS, "the model loads without a broker")
        other.start()
        wait_for_model(service)
        assert "0" == service.show("NRestarts")
    finally:
        other.stop()
        service.write("/etc/edged/edged.yaml", config(broker))
        service.must("systemctl", "restart", "edged.service")


def test_an_upgrade_keeps_config_and_drop_ins_and_restarts(
    service: Container, client: Client, broker: Broker, request: pytest.FixtureRequest
) -> None:
    own = f"{DROP_INS}/20-own.conf"
    request.addfinalizer(lambda: service.must("rm", "-f", own))
    service.write(own, "[Service]\nNice=5\n")
    service.write("/opt/edged/edged/gone.py", "# a module that this version no longer has\n")
    before = service.show("MainPID")
    done = service.run(f"{SOURCE}/scripts/install")
    assert (0, "") == (done.returncode, done.stderr)
    assert re.search(r"It runs: model (starting|online), connected\.", done.stdout)
    assert config(broker) == service.output("cat", "/etc/edged/edged.yaml")
    assert "[Service]\nNice=5" == service.output("cat", own)
    assert "5" == service.show("Nice")
    assert before != service.show("MainPID")
    assert "" == service.output("find", "/opt/edged", "-name", "gone*")
    leftovers = service.output("find", "/opt/edged", "-maxdepth", "1", "(", "-name", ".new", "-o", "-name", ".old", ")")
    assert "" == leftovers
    assert ask(client, "upgraded", LOAD_SECONDS)["text"]


def test_a_refused_config_leaves_the_running_version_alone(service: Container, client: Client, broker: Broker) -> None:
    before = service.show("MainPID")
    service.write("/opt/edged/edged/before.py", "# represents the version before\n")
    service.write("/etc/edged/edged.yaml", config(broker, telemtry={"interval": "1s"}))
    try:
        done = service.run(f"{SOURCE}/scripts/install")
    finally:
        service.write("/etc/edged/edged.yaml", config(broker))
    assert 2 == done.returncode
    assert "telemtry" in done.stderr
    assert "telemetry" in done.stderr  # the key that was meant
    assert "Traceback" not in done.stderr
    assert before == service.show("MainPID")
    assert service.output("find", "/opt/edged/edged", "-name", "before.py")
    assert ask(client, "still-there")["text"]


def test_packages_that_cannot_be_had_leave_the_running_version_alone(service: Container, client: Client) -> None:
    before = service.show("MainPID")
    service.write("/opt/edged/edged/before.py", "# represents the version before\n")
    service.must("rm", f"{VENV}/.edged-run")  # scripts/setup has to install, and there is no pip in there
    try:
        done = service.run(f"{SOURCE}/scripts/install")
    finally:
        lend_packages(service)
    assert 1 == done.returncode
    assert done.stderr.endswith(
        "scripts/install: the Python packages could not be installed, see above; fix that and run this again\n"
    )
    assert "The previous version of the code was restored." in done.stdout
    assert before == service.show("MainPID")
    assert service.output("find", "/opt/edged/edged", "-name", "before.py")
    assert "" == service.output("find", "/opt/edged", "-maxdepth", "1", "-name", ".old", "-o", "-name", ".tmp")
    assert ask(client, "still-here")["text"]


def test_a_raspberry_pi_gets_its_drop_in_and_loses_it_with_the_device(
    service: Container, client: Client, request: pytest.FixtureRequest
) -> None:
    """The node is a second /dev/null with the rights that Raspberry Pi OS gives to /dev/vcio."""
    service.must("sh", "-c", "mknod /dev/vcio c 1 3 && chgrp video /dev/vcio && chmod 660 /dev/vcio")
    # Within the unit's walls, before the agent: no start without the right to open the node.
    probe = f"{DROP_INS}/50-test.conf"
    service.write(probe, "[Service]\nExecStartPre=/usr/bin/head -c 1 /dev/vcio\n")
    request.addfinalizer(lambda: service.must("rm", "-f", probe, "/dev/vcio"))
    done = service.run(f"{SOURCE}/scripts/install")
    assert (0, "") == (done.returncode, done.stderr)
    written = service.output("cat", f"{DROP_INS}/10-raspberry-pi.conf")
    assert "SupplementaryGroups=video\nPrivateDevices=no\nDeviceAllow=/dev/vcio r" in written
    assert ask(client, "on-a-pi", LOAD_SECONDS)["text"]
    service.must("rm", probe, "/dev/vcio")
    service.must(f"{SOURCE}/scripts/install")
    assert "" == service.output("find", DROP_INS, "-name", "*raspberry*")
    assert "yes" == service.show("PrivateDevices")


def test_uninstall_keeps_what_is_the_owners_and_purge_does_not(board: Container) -> None:
    board.must("systemctl", "start", "edged.service")
    done = board.run("/opt/edged/scripts/uninstall")  # the installed copy removes itself
    assert (0, "") == (done.returncode, done.stderr)
    assert "not-found" == board.show("LoadState")
    assert "" == board.output("find", "/etc/systemd", "/opt/edged", "/usr/local/bin", "-name", "*edge*")
    assert "edged.yaml" in board.output("ls", "/etc/edged")
    assert "journal.db" in board.output("ls", "/var/lib/edged")
    again = board.run(f"{SOURCE}/scripts/uninstall")
    assert (0, "") == (again.returncode, again.stderr)
    purged = board.run(f"{SOURCE}/scripts/uninstall", "--purge")
    assert (0, "") == (purged.returncode, purged.stderr)
    assert "" == board.output("find", "/etc/edged", "/var/lib/edged")
    assert "" == board.output("getent", "passwd", "edged")
    assert "" == board.output("getent", "group", "edged")
    # And back, as on a fresh machine.
    lend_packages(board)
    board.must(f"{SOURCE}/scripts/install", "--no-start")
    assert "fleet: home" in board.output("cat", "/etc/edged/edged.yaml")
