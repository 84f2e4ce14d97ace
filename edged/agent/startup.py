"""Starts the daemon: sets up the log and the state folder, which one daemon at a time may use."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edged import state_files
from edged.agent import logs
from edged.agent.daemon import Daemon
from edged.config.schema import Settings
from edged.core.errors import ConfigError, EdgedError


def run(
    own: dict[str, Any],
    settings: Settings,
    device: str,
    pull_arguments: tuple[str, ...],
    catalog: Mapping[str, str],
    worker: tuple[str, ...] | None = None,
    read_file: Callable[[], dict[str, Any]] | None = None,
) -> int:
    """Run the daemon; returns the exit code. `catalog`: the models that a layer may name, each with its digest.

    `worker` is another worker's command (tests). `read_file` reads the owner's file again, for the command `reload`.

    Raises ConfigError or EdgedError where it cannot start.
    """
    logs.configure(settings.log.level, settings.log.format)
    state_dir = Path(settings.state_dir)
    lock = lock_folder(state_dir)
    try:
        daemon = Daemon(own, device, _boot_id(), pull_arguments, catalog, worker_command=worker, read_file=read_file)
        return daemon.run()
    except sqlite3.Error as error:
        raise EdgedError(
            f"the journal in {state_dir} cannot be written ({error}); free disk space or repair the disk"
        ) from None
    finally:
        os.close(lock)


def lock_folder(state_dir: Path) -> int:
    """Make the state folder if it is missing, and lock it; gives the handle, which whoever locked it closes.

    Raises ConfigError where it cannot be used, EdgedError where a daemon uses it.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds prompts
        # The folder itself is locked: no file that lies in it can be in the way.
        lock = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        state_files.make_private(state_dir)
    except OSError as error:
        raise ConfigError(
            f"state_dir: {state_dir} cannot be used ({error.strerror}); make it writable or set EDGED_STATE_DIR"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise EdgedError(f"another edged runs in {state_dir}; stop it, or give this one its own state_dir") from None
    return lock


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"
