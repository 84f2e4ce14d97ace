"""`edged model pull|show|prune` without a store, for tests of trials: files in the control folder say how it goes.

`no-pull`: the fetch fails. `hold-pull`: it waits while the file is there, at a half. `no-show`: the verification fails.
`prune` leaves a file `pruned`. `size`: the bytes of the model (1,000 without it). `hold-show`: the verification waits
while the file is there.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> int:
    control, verb = Path(sys.argv[1]), sys.argv[2]
    if verb == "prune":
        (control / "pruned").touch()
        return 0
    if verb == "pull":
        print(json.dumps({"done": 50, "total": 100, "what": sys.argv[3]}), file=sys.stderr, flush=True)
    while (control / f"hold-{verb}").exists():
        time.sleep(0.01)
    if (control / f"no-{verb}").exists():
        print(json.dumps({"error": {"code": "tampered", "message": f"{verb} failed as the test asked"}}))
        return 1
    size = control / "size"
    print(json.dumps({"size_bytes": int(size.read_text()) if size.exists() else 1000}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
