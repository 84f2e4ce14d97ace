"""What `scripts/run` does once everything is installed: a broker, the daemon, a client; then it serves until Ctrl-C."""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

import yaml

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".edged"
PORT = 18830
PYTHON = sys.executable
_PR_SET_PDEATHSIG = 1


class Stopped(Exception):
    """SIGINT or SIGTERM came."""


def say(text: str) -> None:
    bold, plain = ("\x1b[1m", "\x1b[0m") if sys.stderr.isatty() else ("", "")
    print(f"{bold}==>{plain} {text}", file=sys.stderr, flush=True)


def fail(reason: str) -> NoReturn:
    print(f"scripts/run: {reason}", file=sys.stderr)
    raise SystemExit(1)


def end_with_us() -> None:
    """Run in a child before its program: the kernel ends it when this process ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def start(command: list[str], **options: object) -> subprocess.Popen[bytes]:
    """A child in a session of its own, so that Ctrl-C reaches only this process, which stops them in order."""
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        command,
        start_new_session=True,
        preexec_fn=end_with_us,  # noqa: PLW1509
        **options,
    )


def free_port() -> int:
    for port in (PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT counts as free
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    fail("no port is free on 127.0.0.1")


def start_broker() -> tuple[str, subprocess.Popen[bytes] | None]:
    """The broker's URL, and its process where it is our own."""
    if url := os.environ.get("EDGED_MQTT_URL"):
        say(f"using the broker at {url} (EDGED_MQTT_URL)")
        return url, None
    port = free_port()
    search = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    program = shutil.which("mosquitto", path=search)
    log = (FOLDER / "broker.log").open("wb")
    if program:
        say(f"starting a private mosquitto on 127.0.0.1:{port}")
        config = FOLDER / "mosquitto.conf"
        config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
        process = start([program, "-c", str(config)], stdout=log, stderr=log)
    else:
        say(f"no mosquitto found; starting the embedded broker on 127.0.0.1:{port} (it stores nothing on disk)")
        process = start([PYTHON, str(ROOT / "scripts" / "embedded_broker.py"), str(port)], stdout=log, stderr=log)
    until = time.monotonic() + 15
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return f"mqtt://127.0.0.1:{port}", process
        time.sleep(0.05)
    process.kill()
    fail(f"the broker did not start; see {FOLDER / 'broker.log'}")


def alone() -> TextIO:
    """The lock of this folder, held until the end: a second run would overwrite the files of the first."""
    lock = (FOLDER / "run.lock").open("w", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fail(f"another scripts/run uses {FOLDER}; stop that one first")
    return lock


def write_config(url: str, private: bool) -> Path:
    """The device's config, written at each start; `EDGED_…` variables still override it."""
    config: dict[str, object] = {
        "identity": {"fleet": "home", **({"device": "pi"} if private else {})},
        "mqtt": {"url": url},
        "state_dir": str(FOLDER / "state"),
    }
    path = FOLDER / "edged.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def effective(config: Path) -> dict[str, dict[str, str]]:
    """The effective config by `edged check`. Ends with its message where it refuses the config."""
    answer = subprocess.run(
        [PYTHON, "-m", "edged", "check", "--config", str(config)], stdout=subprocess.PIPE, check=False
    )
    if answer.returncode:
        raise SystemExit(answer.returncode)
    found: dict[str, dict[str, str]] = yaml.safe_load(answer.stdout)
    return found


def next_steps(settings: dict[str, dict[str, str]], config: Path) -> str:
    fleet, device, url = settings["identity"]["fleet"], settings["identity"]["device"], settings["mqtt"]["url"]
    host, _, port = url.split("://", 1)[1].rstrip("/").partition(":")
    where = f"-h {host} -p {port or 1883}"
    root = f"edged/v1/{fleet}"
    return f"""
Try next, in another terminal:
  .venv/bin/edgectl prompt --config {config.relative_to(ROOT)} 'Write two lines about the sea.'
  mosquitto_sub {where} -v -t '{root}/reply/me/#'
  mosquitto_pub {where} -q 1 -t {root}/device/{device}/prompt/me -m 'What is the capital of Japan?'
  mosquitto_rr {where} -V mqttv5 -q 1 -t {root}/device/{device}/prompt/me -e {root}/reply/me/rr \\
    -m 'What is the capital of Japan?'
  mosquitto_sub {where} -v -t '{root}/device/{device}/#'
"""


def serve(once: bool, daemon: subprocess.Popen[bytes], settings: dict[str, dict[str, str]], config: Path) -> None:
    identity = settings["identity"]
    client = start(
        [
            PYTHON,
            str(ROOT / "scripts" / "first_light_client.py"),
            settings["mqtt"]["url"],
            identity["fleet"],
            identity["device"],
            str(daemon.pid),
        ]
    )
    try:
        code = client.wait()
    finally:
        if client.poll() is None:
            client.terminate()
            client.wait()
    if code:
        fail("the round failed; the reason is above")
    if once:
        return
    print(next_steps(settings, config), flush=True)
    say("serving until Ctrl-C")
    code = daemon.wait()
    fail(f"the daemon ended with exit code {code}")


def stop(process: subprocess.Popen[bytes] | None, what: str) -> None:
    if process is None or process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        say(f"{what} does not stop; killing it")
        process.kill()
        process.wait()


def interrupted(_number: int, _frame: FrameType | None) -> None:
    raise Stopped


def main() -> int:
    arguments = argparse.ArgumentParser(prog="scripts/run", description="From nothing to an answer over MQTT.")
    arguments.add_argument("--once", action="store_true", help="one round of prompts, then stop")
    once = arguments.parse_args().once
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupted)
    FOLDER.mkdir(exist_ok=True)
    lock = alone()
    broker = daemon = None
    try:
        url, broker = start_broker()
        config = write_config(url, private=broker is not None)
        settings = effective(config)
        say(f"starting edged as {settings['identity']['device']} of the fleet {settings['identity']['fleet']}")
        daemon = start([PYTHON, "-m", "edged", "run", "--config", str(config)])
        serve(once, daemon, settings, config)
    except Stopped:
        print(file=sys.stderr)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        say("stopping")
        stop(daemon, "the daemon")
        stop(broker, "the broker")
        lock.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
