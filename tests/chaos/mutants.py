"""Checks the checker: a copy of the source with one safety line removed at a time, in which chaos must find a fault."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.support import ROOT


class Mutant(NamedTuple):
    """A safety line: in this file `old` becomes `new`."""

    name: str
    path: str
    old: str
    new: str


MUTANTS = (
    Mutant(
        "a prompt is written to the journal",
        "edged/agent/journal.py",
        "None, None, None, 0, 1)\n        self._db.execute(journal_file.INSERT, journal_file.sealed(row))",
        "None, None, None, 0, 1)",
    ),
    Mutant(
        "a transaction is committed",
        "edged/agent/journal.py",
        'self._db.execute("COMMIT")',
        'self._db.execute("ROLLBACK")',
    ),
    Mutant(
        "a final is written before it is published",
        "edged/agent/prompt_queue.py",
        "self._journal.finish(prompt.seq, reason, payload, self._stored_time())",
        "pass",
    ),
    Mutant(
        "the id of a delivered answer stays used",
        "edged/agent/journal.py",
        "            if reason in FREED:",
        "            if reason is not None:",
    ),
    Mutant(
        "what was accepted is queued again after a start",
        "edged/agent/daemon.py",
        "self._queue.restore(self._journal.open_entries())",
        "self._journal.open_entries()",
    ),
    Mutant(
        "what a dead worker had waits again",
        "edged/agent/prompt_queue.py",
        "poisoned(prompt, how)\n            else:\n                self._return_to_order(prompt)",
        "poisoned(prompt, how)",
    ),
    Mutant(
        "a finished prompt is answered with its stored final",
        "edged/agent/admission.py",
        "            self._replies.send_final(job.reply_to, job.id, stored.final, stored.seq)",
        "            pass",
    ),
    Mutant(
        "a number is not used for two prompts",
        "edged/agent/journal.py",
        'number."""\n        (seq,) = self._db.execute(_NEXT).fetchone()',
        'number."""\n        seq = 1',
    ),
    Mutant(
        "the worker gets the request of the prompt it answers",
        "edged/agent/prompt_queue.py",
        "frames.Add(str(prompt.seq), prompt.job.request,",
        "frames.Add(str(prompt.seq), next(iter(self._prompts.values())).job.request,",
    ),
    Mutant(
        "the end of the worker reaches the queue",
        "edged/agent/dispatch.py",
        "self.queue.worker_exited(",
        "str(",
    ),
)


def check(seconds: float, seed: int) -> list[dict[str, object]]:
    """Run chaos on the source as it is, which must hold, and on each mutant; `found` says whether a run failed."""
    results: list[dict[str, object]] = []
    for mutant in (None, *MUTANTS):
        with tempfile.TemporaryDirectory(prefix="edged-mutant-") as folder:
            name = "nothing" if mutant is None else mutant.name
            results.append({"removed": name, **_run(Path(folder), mutant, seconds, seed)})
        print(f"==> {results[-1]}", file=sys.stderr, flush=True)
    return results


def _run(folder: Path, mutant: Mutant | None, seconds: float, seed: int) -> dict[str, object]:
    for name in ("edged", "tests", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    if mutant is not None:
        mutate(folder, mutant)
    command = [sys.executable, "-m", "tests.chaos", "--json", "--seconds", str(seconds), "--seed", str(seed)]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    ended = subprocess.run(
        [*command, "--settle", "8"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    try:
        document = json.loads(ended.stdout)
    except ValueError:  # the run itself failed, which is no finding
        return {"found": False, "error": ended.stderr[-500:]}
    return {"found": not document["held"], **{name: document[name] for name in ("lost", "doubled", "wrong")}}


def mutate(folder: Path, mutant: Mutant) -> None:
    """Change the line in a copy. Raises ValueError where the source has it not exactly once."""
    path = folder / mutant.path
    source = path.read_text("utf-8")
    if source.count(mutant.old) != 1:
        raise ValueError(f"{mutant.path} has {source.count(mutant.old)} times: {mutant.old}")
    path.write_text(source.replace(mutant.old, mutant.new), "utf-8")
