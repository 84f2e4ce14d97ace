"""Our end of a peer process: llama.cpp by `llama-cpp-python`, in this Python or another, or a given `llama-bench`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edged.core.errors import ModelError

SCRIPT: Final = Path(__file__).with_name("llama_peer.py")
INSTALL: Final = "install it (pip install llama-cpp-python), or name a Python that has it with --peer-python"


class LlamaPeer:
    """A running peer. `about` says what it is. Raises ModelError where it cannot run the file."""

    def __init__(self, path: Path, threads: int, context: int, python: str = sys.executable) -> None:
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 closed with us
        command = [python, str(SCRIPT), str(path), str(threads), str(context)]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
            )
        except OSError as error:
            raise ModelError("missing", f"{python} cannot be started ({error.strerror}); {INSTALL}.") from error
        self.about: dict[str, Any] = self._line()

    def ask(self, case: str, number: int) -> float:
        """One case's value."""
        return float(self._request({"case": case, "n": number}))

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """The logits after each token, float32 [tokens, vocabulary]."""
        with tempfile.NamedTemporaryFile(suffix=".npy") as file:
            self._request({"case": "logits", "tokens": list(tokens), "file": file.name})
            logits: npt.NDArray[np.float32] = np.load(file.name)
        return logits

    def continue_greedily(self, tokens: Sequence[int], count: int) -> float:
        """Tokens a second of `count` greedy ones that follow the first after a prompt."""
        return self._request({"case": "continue", "tokens": list(tokens), "n": count})

    def close(self) -> None:
        """Ends the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(30)
        self._log.close()

    def _request(self, request: dict[str, Any]) -> float:
        assert self._process.stdin is not None  # noqa: S101 a pipe was asked for
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # reading the answer below reports why
        return float(self._line()["value"])

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101 a pipe was asked for
        line = self._process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self._process.wait()
        self._log.seek(0)
        output = self._log.read().strip().splitlines() or ["it wrote no message"]
        if "No module named 'llama_cpp'" in output[-1]:
            raise ModelError("missing", f"llama-cpp-python is not installed; {INSTALL}.")
        raise ModelError("failed", f"The peer ended: {output[-1]}")


class LlamaBench:
    """The program `llama-bench` of llama.cpp: decode and prefill, a run of it for each case."""

    def __init__(self, program: Path, path: Path, threads: int) -> None:
        self._command = [str(program), "-m", str(path), "-t", str(threads), "-ngl", "0", "-r", "1", "-o", "json"]
        self.about: dict[str, Any] = {"name": str(program.name), "system": "see llama-bench", "peak_bytes": None}

    def ask(self, case: str, number: int) -> float | None:
        """One case's value; None for cases that llama-bench does not have."""
        if case == "batch":
            return None
        sizes = ["-p", "0", "-n", str(number)] if case == "decode" else ["-p", str(number), "-n", "0"]
        try:
            result = subprocess.run([*self._command, *sizes], capture_output=True, text=True, check=True)
            (result_row,) = json.loads(result.stdout)
        except (OSError, subprocess.CalledProcessError, ValueError) as error:
            raise ModelError("failed", f"llama-bench could not be run: {error}") from error
        self.about["name"] = f"llama-bench {result_row.get('build_commit', '')}".strip()
        self.about["system"] = str(result_row.get("cpu_info", ""))
        return float(result_row["avg_ts"])

    def close(self) -> None:
        """Nothing runs between the cases."""
