"""What drafts give: tokens a second of greedy answers with and without them, and llama.cpp's with the same prompts.

    .venv/bin/python scripts/drafts_speed.py [ROUNDS] [--model MODEL.gguf] [--threads N] [--peer-python PYTHON]

Each task is answered with and without drafts (and by llama-cpp-python in the given Python, without), in turns; it
prints medians, and the median of the ratios. The answers with and without must be the same text. The first token and
the prompt are not timed.
"""

from __future__ import annotations

import argparse
import sys
from statistics import median

from first_light import FOLDER

from edged.core.errors import EdgedError
from edged.core.prompt import Final, Sampling
from edged.engine import Model, load_model
from edged.engine.backends.native_backend import MAX_DRAFTS, NativeBackend
from edged.measure.peer import LlamaPeer
from edged.models.store.catalog import default_model
from edged.models.store.locate import locate
from edged.models.store.store import Store

MODELS = FOLDER / "state" / "models"
LETTER = (
    "Dear Ms Miller, the pump in the north hall stopped on Monday at 6:40. Its temperature had been above 80 degrees "
    "since Sunday evening, and the fan ran at full speed all night. We replaced the bearing on Tuesday, and it has run "
    "at 55 degrees since. Please send us two more bearings of type 6204 and one seal before the end of the month. "
    "The south hall was not affected. Kind regards, Tom Baker"
)
LOG = "\n".join(
    f"2026-11-24 08:{minute:02} sensor-{minute % 4} temperature={20 + minute % 7}.{minute % 10} humidity=4{minute % 9}"
    for minute in range(0, 40, 2)
)
TASKS = {
    "one fact": "What is the capital of Japan?",
    "a story": "Tell me a long story about the sea.",
    "an explanation": "Explain how a refrigerator works.",
    "code": "Write a Python class for a bank account with deposit, withdraw and transfer, and tests for each.",
    "a list as JSON": "List ten European countries with their capitals as a JSON array of objects.",
    "a letter corrected": f"Correct the spelling of this letter and give back the whole letter:\n{LETTER}",
    "a letter in short": f"Summarize this letter in three sentences:\n{LETTER}",
    "a log repeated": f"Repeat these lines exactly:\n{LOG}",
}
TOKENS = 256


def answer(model: Model, task: str, drafts: int) -> Final:
    """One greedy answer."""
    assert isinstance(model.backend, NativeBackend)
    model.backend.drafts = drafts
    *_, final = model.generate(task, Sampling(temperature=0, max_tokens=TOKENS))
    assert isinstance(final, Final)
    return final


def speed(final: Final) -> float:
    """Tokens a second after the first."""
    return (final.usage.completion_tokens - 1) / final.decode_ms * 1e3


def measure(model: Model, peer: LlamaPeer | None, task: str) -> tuple[int, float, float, float]:
    """The answer's tokens; tokens a second without drafts, with, and of the peer (0 without one)."""
    prompt = model.encode(task)
    plain, drafted = answer(model, task, 0), answer(model, task, MAX_DRAFTS)
    if plain.text != drafted.text:
        sys.exit(f"drafts_speed: the answers differ: {plain.text!r}, {drafted.text!r}")
    count = plain.usage.completion_tokens
    return count, speed(plain), speed(drafted), peer.continue_greedily(prompt, count - 1) if peer else 0.0


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("rounds", nargs="?", type=int, default=5)
    parser.add_argument("--model", default=default_model())
    parser.add_argument("--threads", type=int)
    parser.add_argument("--peer-python")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("ROUNDS must be at least 1")
    try:
        run(arguments)
    except EdgedError as error:
        sys.exit(f"drafts_speed: {error}")


def run(arguments: argparse.Namespace) -> None:
    """Measure and print one line per task."""
    model = load_model(arguments.model, "native", context=2048, threads=arguments.threads, store_root=MODELS)
    assert isinstance(model.backend, NativeBackend)
    peer = None
    if arguments.peer_python:
        path = locate(arguments.model, None, Store(MODELS)).path
        peer = LlamaPeer(path, model.backend.model.threads, 2048, arguments.peer_python)
    print(f"{'':20}tokens  without  with drafts          llama.cpp")
    for name, task in TASKS.items():
        rounds = [measure(model, peer, task) for _ in range(arguments.rounds)]
        count, plain, drafted, theirs = (median(found) for found in zip(*rounds, strict=True))
        line = f"{name:20}{count:6.0f}{plain:9.0f}{drafted:9.0f}  {median(b / a for _, a, b, _ in rounds):.2f} x"
        if peer:
            line += f"{theirs:14.0f}  {median(b / c for _, _, b, c in rounds):.2f} x"
        print(line, flush=True)
    if peer:
        peer.close()


if __name__ == "__main__":
    main()
