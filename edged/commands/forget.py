"""`edged forget`: deletes everything that this device keeps of one requester."""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
from pathlib import Path

from edged.agent import journal_file
from edged.agent.journal import Journal
from edged.agent.startup import lock_folder
from edged.commands.configured import configured
from edged.core.errors import BadValue, EdgedError
from edged.wire.topics import REQUESTER


def run(arguments: argparse.Namespace) -> int:
    """Delete the requester's prompts and answers, and copies of damaged journals, which hold those of everybody.

    Raises EdgedError, also while a daemon runs.
    """
    if not REQUESTER.match(arguments.requester):
        raise BadValue("--requester", "must be 1 to 64 of A-Z, a-z, 0-9, _ and -")
    _, settings, _ = configured(arguments)
    state_dir = Path(settings.state_dir)
    if not state_dir.is_dir():
        raise EdgedError(f"{state_dir} is no folder; give the config of the daemon with --config")
    lock = lock_folder(state_dir)
    try:
        deleted, copies = _forget(state_dir / "journal.db", arguments.requester)
    except (sqlite3.Error, OSError) as error:
        raise EdgedError(f"the journal in {state_dir} cannot be changed ({error}); repair the disk") from None
    finally:
        os.close(lock)
    if arguments.json:
        print(json.dumps({"requester": arguments.requester, "deleted": deleted, "copies": copies}))
        return 0
    print(f"{deleted} prompts and answers of {arguments.requester} were deleted")
    for name in copies:
        print(f"{name}, a copy of a damaged journal with prompts of all requesters, was deleted")
    return 0


def _forget(path: Path, requester: str) -> tuple[int, list[str]]:
    """How many rows were deleted, and the names of the copies that were."""
    deleted = 0
    if os.path.lexists(path):
        journal = Journal(path)
        journal.open()
        try:
            deleted = journal.forget(requester)
        finally:
            journal.close()
        if os.geteuid() == 0:  # with sudo: a journal that was written anew stays the daemon's
            owner = path.parent.stat()
            os.chown(path, owner.st_uid, owner.st_gid)
    return deleted, journal_file.remove_copies(path)
