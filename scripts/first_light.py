"""What `scripts/run` does once everything is installed: a broker, the daemon, a client; then it serves until Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO
from urllib.parse import urlsplit

import first_light_client
import private_broker
import yaml
from private_broker import Process
from screen import LogPipe, Screen

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".edged"
PYTHON = sys.executable
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ACCESS = ("username", "password_file", "ca", "cert", "key")
_PR_SET_PDEATHSIG = 1


class Stopped(Exception):
    """SIGINT, SIGTERM or SIGHUP came."""


def say(text: str) -> None:
    bold, plain = ("\x1b[1m", "\x1b[0m") if sys.stderr.isatty() else ("", "")
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f"{bold}==>{plain} {text}", file=sys.stderr, flush=True)


def fail(reason: str) -> NoReturn:
    with contextlib.suppress(OSError):
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


def start_broker(folder: Path = FOLDER) -> tuple[str, Process | None]:
    """The broker's URL, and its process where it is our own."""
    if url := os.environ.get("EDGED_MQTT_URL"):
        if not listens(url):
            fail(
                f"no broker listens at {url} (EDGED_MQTT_URL); start that broker, or let scripts/run start one: "
                "unset EDGED_MQTT_URL"
            )
        say(f"using the broker at {url} (EDGED_MQTT_URL)")
        return url, None
    if left := private_broker.left_from_before(folder):
        port, broker = left
        say(f"using the broker on 127.0.0.1:{port} that an earlier run has left (process {broker.pid})")
        return f"mqtt://127.0.0.1:{port}", broker
    found = private_broker.free_port(say)
    if found is None:
        fail("no port is free on 127.0.0.1")
    kind, command = private_broker.command(folder, found)
    say(f"starting {kind} on 127.0.0.1:{found}")
    with (folder / "broker.log").open("wb") as log:
        process = start(command, stdout=log, stderr=log)
    private_broker.record(folder, process.pid, found)
    if not private_broker.until_it_answers(process, found):
        process.kill()
        fail(f"the broker did not start; see {folder / 'broker.log'}")
    return f"mqtt://127.0.0.1:{found}", process


def listens(url: str) -> bool:
    """Whether connections to a broker are not refused. Anything else is left to the daemon, which reports it."""
    parts = urlsplit(url)
    try:
        where = parts.hostname or "127.0.0.1", parts.port or (8883 if parts.scheme == "mqtts" else 1883)
        socket.create_connection(where, timeout=5).close()
    except ConnectionRefusedError:
        return False
    except (OSError, ValueError):
        return True
    return True


def alone(folder: Path = FOLDER) -> TextIO:
    """The lock of this folder, held until the end: a second run would overwrite the files of the first."""
    lock = (folder / "run.lock").open("w", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fail(f"another scripts/run uses {folder}; stop that one first")
    return lock


def write_config(url: str, private: bool, folder: Path = FOLDER) -> Path:
    """The device's config, written at each start; `EDGED_…` variables still override it.

    How the broker is reached is written down, so that `--config` with this file works in a terminal without them.
    """
    given = {name: os.environ.get(f"EDGED_MQTT_{name.upper()}") for name in ACCESS}
    config: dict[str, object] = {
        "identity": {"fleet": "home", **({"device": "pi"} if private else {})},
        "mqtt": {"url": url, **{name: value for name, value in given.items() if value}},
        "state_dir": str(folder / "state"),
    }
    path = folder / "edged.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def effective(config: Path) -> dict[str, dict[str, Any]]:
    """The effective config by `edged check`. Ends with its message where it refuses the config."""
    answer = subprocess.run(
        [PYTHON, "-m", "edged", "check", "--config", str(config)], stdout=subprocess.PIPE, check=False
    )
    if answer.returncode:
        raise SystemExit(answer.returncode)
    found: dict[str, dict[str, Any]] = yaml.safe_load(answer.stdout)
    return found


def access_of(mqtt: dict[str, Any]) -> str:
    """The options of mosquitto's clients for this broker."""
    parts = urlsplit(mqtt["url"])
    secure = parts.scheme == "mqtts"
    words = [f"-h {parts.hostname} -p {parts.port or (8883 if secure else 1883)}"]
    if username := mqtt.get("username"):
        words.append(f"-u {shlex.quote(username)}")
    if password_file := mqtt.get("password_file"):
        words.append(f'-P "$(head -n1 {shlex.quote(password_file)})"')
    if secure:
        words.append(f"--cafile {shlex.quote(ca)}" if (ca := mqtt.get("ca")) else "--tls-use-os-certs")
    words += [f"--{name} {shlex.quote(mqtt[name])}" for name in ("cert", "key") if mqtt.get(name)]
    return " ".join(words)


def next_steps(settings: dict[str, dict[str, Any]], config: Path) -> str:
    fleet, device = settings["identity"]["fleet"], settings["identity"]["device"]
    where = access_of(settings["mqtt"])
    root = f"edged/v1/{fleet}"
    file = config.relative_to(ROOT) if config.is_relative_to(ROOT) else config
    return f"""
Try next, in another terminal:
  .venv/bin/edgectl prompt --config {file} 'Write two lines about the sea.'
  .venv/bin/edgectl chat --config {file}
  mosquitto_sub {where} -v -t '{root}/reply/me/#'
  mosquitto_pub {where} -q 1 -t {root}/device/{device}/prompt/me -m 'What is the capital of Japan?'
  mosquitto_rr {where} -V mqttv5 -q 1 -t {root}/device/{device}/prompt/me -e {root}/reply/me/rr \\
    -m 'What is the capital of Japan?'
  mosquitto_sub {where} -v -t '{root}/device/{device}/#'
"""


def ended(broker: Process | None, daemon: Process, folder: Path) -> str | None:
    """Which of the two has ended, as a sentence; None while both run."""
    if broker is not None and broker.poll() is not None:
        return f"the broker has ended; its log is {folder / 'broker.log'}"
    if (code := daemon.poll()) is not None:
        if code < 0:
            return f"the daemon was killed by {signal.Signals(-code).name}"
        return f"the daemon has ended with exit code {code}; the reason is in its last log lines"
    return None


def stop(process: Process | None, what: str) -> None:
    if process is None or process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        say(f"{what} does not stop; killing it")
        process.kill()
        process.wait()


def interrupted(number: int, _frame: FrameType | None) -> None:
    if number == signal.SIGHUP:  # the terminal is gone: what is still printed goes nowhere
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            if os.isatty(stream) or not _writable(stream):
                os.dup2(nowhere, stream)
    raise Stopped


def _writable(stream: int) -> bool:
    try:
        os.write(stream, b"")
    except OSError:
        return False
    return True


def run(once: bool, folder: Path, screen: Screen) -> None:
    """One run, until the round is over, something ends, or Stopped is raised."""
    broker: Process | None = None
    daemon: subprocess.Popen[bytes] | None = None
    pipe = LogPipe(screen)
    try:
        url, broker = start_broker(folder)
        config = write_config(url, broker is not None, folder)
        settings = effective(config)
        identity = settings["identity"]
        say(f"starting edged as {identity['device']} of the fleet {identity['fleet']}")
        running = daemon = start([PYTHON, "-m", "edged", "run", "--config", str(config)], **pipe.options())
        pipe.start()
        fleet, device = identity["fleet"], identity["device"]
        try:
            first_light_client.round_trip(
                settings["mqtt"], fleet, device, lambda: ended(broker, running, folder), screen
            )
        except (first_light_client.Failed, OSError) as error:
            fail(str(error))
        if once:
            return
        print(next_steps(settings, config), flush=True)
        say("serving until Ctrl-C")
        while (why := ended(broker, daemon, folder)) is None:
            time.sleep(0.5)
        fail(why)
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        running_still = daemon is not None and daemon.poll() is None
        say("stopping; answers in progress have up to 8 s to end" if running_still else "stopping")
        stop(daemon, "the daemon")
        pipe.join()
        stop(broker, "the broker")


def main() -> int:
    arguments = argparse.ArgumentParser(prog="scripts/run", description="From nothing to an answer over MQTT.")
    arguments.add_argument("--once", action="store_true", help="one round of prompts, then stop")
    arguments.add_argument(
        "--folder", type=Path, default=FOLDER, help="where config, models and logs lie (default: .edged)"
    )
    given = arguments.parse_args()
    folder = given.folder.resolve()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, interrupted)
    folder.mkdir(parents=True, exist_ok=True)
    lock = alone(folder)
    try:
        run(given.once, folder, Screen())
    except Stopped:
        with contextlib.suppress(OSError):
            print(file=sys.stderr)
    finally:
        lock.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
