"""Whether an answer is what a golden prompt expects: patterns and schemas, matched in a process that can be killed.

As a program it reads {"kind", "expected", "answer"} as JSON from stdin, and prints why the answer does not hold as a
JSON text, or null. A regular expression of Python may need longer than anyone waits, so nothing else calls `why_not`.
"""

from __future__ import annotations

import json
import re
import sys

from edged.core.json_schema import obeys


def why_not(kind: str, expected: str, answer: str) -> str | None:
    """Why `answer` does not hold; None: it does. `kind` is `regex` or `schema`."""
    if kind == "regex":
        return None if re.search(expected, answer) else f"which does not match the pattern {expected}"
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        return "which is not JSON"
    try:
        return None if obeys(json.loads(expected), value) else "which does not obey the schema"
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError, re.error, RecursionError) as error:
        return f"and the schema cannot be checked ({type(error).__name__}: {error})"


def main() -> None:
    """Entry of the process."""
    order = json.load(sys.stdin)
    print(json.dumps(why_not(order["kind"], order["expected"], order["answer"])))


if __name__ == "__main__":
    main()
