"""`edged trust reset`: the owner sets the revision floors of this device anew."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from edged.agent.startup import lock_folder
from edged.commands.configured import configured
from edged.core.errors import EdgedError
from edged.fleet import trust_store
from edged.fleet.desired import TRUST_FILE
from edged.fleet.trust import TrustRecord


def run(arguments: argparse.Namespace) -> int:
    """Forget the floors, with `--keys` also the keys by layers. Raises EdgedError, also while a daemon runs."""
    _, settings, _ = configured(arguments)
    state_dir = Path(settings.state_dir)
    if not state_dir.is_dir():
        raise EdgedError(f"{state_dir} is no folder; give the config of the daemon with --config")
    lock = lock_folder(state_dir)
    try:
        before = _reset(state_dir, forget_keys=arguments.keys)
    finally:
        os.close(lock)
    floors = {topic: floor.revision for topic, floor in sorted(before.floors.items())}
    if arguments.json:
        print(json.dumps({"floors": floors, "keys": arguments.keys}))
        return 0
    for topic, revision in floors.items():
        print(f"{topic}: the floor was {revision}")
    print("the next layer of each topic may have any revision; push one as soon as edged runs again")
    return 0


def _reset(state_dir: Path, *, forget_keys: bool) -> TrustRecord:
    """Replace the record; gives the one before, an empty one where it was damaged."""
    path = state_dir / TRUST_FILE
    try:
        before = trust_store.load(path) or TrustRecord()
    except trust_store.DamagedError:
        before = TrustRecord()
    kept = TrustRecord() if forget_keys else TrustRecord({}, before.added, before.withdrawn)
    trust_store.save(path, kept)
    if os.geteuid() == 0:  # with sudo: the files stay the daemon's
        owner = state_dir.stat()
        for file in trust_store.files(path):
            os.chown(file, owner.st_uid, owner.st_gid)
    return before
