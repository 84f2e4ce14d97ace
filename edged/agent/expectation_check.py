"""Matches an answer with a pattern or a schema in a process of its own, which is killed where that takes too long."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable

import msgspec

from edged.core.golden import Matches, Obeys

_WITHIN = 5.0  # seconds, with the start of the process


class ExpectationChecked(msgspec.Struct, frozen=True):
    """Check number `number` ended: why the answer does not hold, None where it does."""

    number: int
    why: str | None


def check(number: int, expect: Matches | Obeys, answer: str, post: Callable[[ExpectationChecked], None]) -> None:
    """Check beside the caller; `post` is called once, from another thread."""
    kind, expected = ("regex", expect.pattern) if isinstance(expect, Matches) else ("schema", expect.schema)
    order = json.dumps({"kind": kind, "expected": expected, "answer": answer}).encode()
    threading.Thread(
        target=lambda: post(ExpectationChecked(number, _run(order, kind))), name="expectation", daemon=True
    ).start()


def _run(order: bytes, kind: str) -> str | None:
    command = [sys.executable, "-m", "edged.fleet.expectation"]
    try:
        done = subprocess.run(command, input=order, stdout=subprocess.PIPE, timeout=_WITHIN, check=True)
        why = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return f"and matching the {kind} took longer than {_WITHIN:g} s; use a simpler one"
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        return f"and the {kind} could not be checked ({type(error).__name__})"
    return None if why is None else str(why)
