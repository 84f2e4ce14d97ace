"""llguidance within limits, and a trial compilation in a process of its own.

The library bounds the work of a step, but not of every compilation: some schemas (many patterns that must hold at
once) keep it busy for minutes. So a schema or pattern is first compiled in a child that may use one second of processor
time and 512 MB; what the child survives is then compiled by the engine. Should the board run out of memory, the kernel
ends the child before the model. The child is this file run by its path, because importing the package would cost more
than the check.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

CPU_SECONDS: Final = 1
WALL_SECONDS: Final = 5.0  # for a machine whose processor is busy with others
MEMORY_BYTES: Final = 512_000_000
# What must be free before a child is started: it took 24 MB for small schemas, 36 MB for one of 60 KB, and up to 81 MB
# for bombs in their second of processor time.
USUAL_BYTES: Final = 64_000_000
# By the kernel for processor time, by the library itself where memory ran out. SIGKILL comes from outside.
_LIMIT_SIGNALS: Final = frozenset({signal.SIGXCPU, signal.SIGABRT, signal.SIGSEGV})
_LIMITS: Final[dict[str, Any]] = {
    "initial_lexer_fuel": 300_000,  # about 6 ms
    "step_lexer_fuel": 100_000,  # about 7 ms
    "max_lexer_states": 20_000,  # about 40 MB
    "verbose_errors": False,
}


class TooComplexError(Exception):
    """The trial compilation used up its processor time or memory."""


class NoMemoryError(Exception):
    """The board has too little memory for a trial compilation now."""


class _Tokens:
    """A vocabulary in the form that the library takes; the last token is the end. It is never asked to encode."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes]) -> None:
        self.tokens = tokens
        self.eos_token_id = len(tokens) - 1

    def __call__(self, _text: bytes | str) -> list[int]:
        return []


def tokenizer(tokens: list[bytes]) -> LLTokenizer:
    """The library's view of a vocabulary. Tokens that write nothing are never allowed; the last one is the end."""
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Tokens(tokens)), len(tokens), eos_token=len(tokens) - 1)


def matcher(view: LLTokenizer, grammar: str) -> LLMatcher:
    """A grammar compiled for a vocabulary. It never raises; `is_error` says whether it is of use."""
    from llguidance import LLMatcher
    from llguidance._lib import LLParserLimits  # the package does not name it at its top

    return LLMatcher(view, grammar, log_level=0, limits=LLParserLimits(**_LIMITS))


def grammar_error(grammar: str, available: int) -> str:
    """The library's error for a grammar, from a trial compilation in a child; "" for one that can be used.

    `available`: the board's free memory in bytes. Raises TooComplexError; NoMemoryError, or RuntimeError where the
    child could not finish for other reasons than the grammar.
    """
    if available < USUAL_BYTES:
        raise NoMemoryError
    command = [sys.executable, str(Path(__file__).resolve())]
    try:
        done = subprocess.run(command, input=grammar.encode(), capture_output=True, timeout=WALL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise RuntimeError("this machine is too busy") from None
    if -done.returncode in _LIMIT_SIGNALS:
        raise TooComplexError
    if done.returncode == -signal.SIGKILL:  # by the kernel, for which the child is the first to end
        raise NoMemoryError
    if done.returncode:
        raise RuntimeError(f"the check of a format cannot run: {done.stderr.decode('utf-8', 'replace')[-500:]}")
    message: str = json.loads(done.stdout)
    return message


def trial(grammar: str) -> str:
    """Compiles a grammar for single bytes and takes its first step; returns the library's error, "" for none."""
    compiled = matcher(tokenizer([*(bytes([byte]) for byte in range(255)), b"", b""]), grammar)
    if not compiled.is_error():
        compiled.compute_bitmask()
    if compiled.is_error():
        return str(compiled.get_error())
    return "; ".join(map(str, compiled.get_grammar_warnings()))


def main() -> None:
    """The child: a grammar on standard input, the error as JSON on standard output."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")  # the worker's is 600
    os.nice(19)  # the model computes meanwhile
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    print(json.dumps(trial(sys.stdin.buffer.read().decode())))


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    sys.path = [folder for folder in sys.path if Path(folder).resolve() != here]  # else its modules would shadow others
    main()
