"""Whether the default model answers the questions of the first run, README and docs well.

`python -m tests.first_questions MODEL [TIMES]`: each question is asked TIMES times (20) with seeds 0, 1, 2 …, with the
sampling that a device uses where nothing is set; prints how many answers are right. Exit code 1 unless all are.
"""

from __future__ import annotations

import re
import sys

import msgspec

from edged.core.prompt import MODEL_SAMPLING, Choice, Final, Request, Sampling, Turn
from edged.engine import load_model

CAPITAL = r"(?is)(?!.*(osaka|kyoto|nagoya|shinjuku)).*\btokyo\b"
YES = Choice(("yes", "no"))
# question, format, sampling that the question itself sets, what a right answer matches
QUESTIONS = (
    ("What is the capital of Japan?", None, {}, CAPITAL),
    ("Name the capital of France.", None, {"temperature": 0.0, "max_tokens": 40}, r"(?is).*\bparis\b"),
    ("Why is the sky blue?", None, {}, r"(?is).*scatter"),
    ("Is the sky blue?", YES, {}, r"yes\Z"),
    ("Is snow cold?", YES, {}, r"yes\Z"),
    ("Write two lines about the sea.", None, {}, r"(?is).*\b(sea|ocean|waves?)\b"),
)


def main(model: str, times: int) -> int:
    """Prints a line for each question."""
    loaded = load_model(model, context=2048)
    print(f"{loaded.info.name}: sampling {loaded.info.sampling}, template {loaded.info.template}")
    worst = times
    for text, wanted, own, pattern in QUESTIONS:
        answers = []
        for seed in range(times):
            request = Request(
                turns=(Turn("user", text),),
                format=wanted,
                sampling=msgspec.structs.replace(Sampling(seed=seed), **own),
                unset=tuple(name for name in MODEL_SAMPLING if name not in own),
            )
            answers += [piece.text for piece in loaded.generate(request) if isinstance(piece, Final)]
        wrong = [answer for answer in answers if not re.match(pattern, answer)]
        worst = min(worst, times - len(wrong))
        print(f"{times - len(wrong)} of {times}: {text}")
        for answer in sorted(set(wrong)):
            print(f"    {answer[:400]!r}")
    return int(worst < times)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 20))
