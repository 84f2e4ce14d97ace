"""Finding the longest of some texts at the first place where any begins: control tokens and tokens taken whole."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Iterator
from itertools import groupby
from typing import Final

_MAX_DEPTH: Final = 40  # of an expression; a file's tokens could nest deeper than `re` can
_MAX_LENGTHS: Final = 48  # different lengths of texts with the same first letter that are tried one by one


class LongestOf:
    """The longest of `texts` at a position.

    Gemma has 6,249 control tokens: looking up slices in a set needs no expression of 21,000 characters, which takes
    0.2 s to compile. Where too many lengths would have to be tried (a hostile file), there is one all the same.
    """

    def __init__(self, texts: Collection[str]) -> None:
        self._texts = frozenset(texts) - {""}
        lengths: dict[str, set[int]] = {}
        for text in self._texts:
            lengths.setdefault(text[0], set()).add(len(text))
        self._lengths = {letter: sorted(found, reverse=True) for letter, found in lengths.items()}
        self._first = re.compile(f"[{''.join(map(re.escape, self._lengths))}]" if self._lengths else "(?!)")
        many = any(len(found) > _MAX_LENGTHS for found in lengths.values())
        self._expression = re.compile(longest_of(self._texts)) if many else None

    def search(self, text: str, at: int = 0) -> tuple[int, int] | None:
        """Begin and end of the first one from `at` on; None where there is none."""
        if self._expression:
            match = self._expression.search(text, at)
            return match.span() if match else None
        for first in self._first.finditer(text, at):
            begin = first.start()
            for length in self._lengths[text[begin]]:
                if text[begin : begin + length] in self._texts:
                    return begin, begin + length
        return None

    def split(self, text: str) -> Iterator[str]:
        """What lies before, between and behind the texts, and at every second place one of them."""
        last = 0
        while found := self.search(text, last):
            begin, end = found
            yield text[last:begin]
            yield text[begin:end]
            last = end
        yield text[last:]


class Beginnings:
    """The proper beginnings of some texts, without a set of them all: Gemma's control tokens have 60,000."""

    def __init__(self, texts: Collection[str]) -> None:
        self._texts = sorted(set(texts))

    def __contains__(self, part: str) -> bool:
        at = bisect_left(self._texts, part)
        if at < len(self._texts) and self._texts[at] == part:
            at += 1
        return part != "" and at < len(self._texts) and self._texts[at].startswith(part)


def longest_of(texts: Collection[str]) -> str:
    """An expression for the longest of some texts at a position; fast even where a thousand have the same beginning."""
    return f"(?:{_branches(sorted(set(texts)), 0)})" if texts else "(?!)"


def _branches(texts: list[str], depth: int) -> str:
    """What sorted texts share, then one branch for each letter that may follow."""
    if depth == _MAX_DEPTH:
        return "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))
    first, last = texts[0], texts[-1]
    start = first[: next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]
    rests = groupby((text[len(start) :] for text in texts if text != start), key=lambda rest: rest[0])
    either = "|".join(_branches(list(rest), depth + 1) for _, rest in rests)
    end = "?" if start in texts else ""
    return re.escape(start) + (f"(?:{either}){end}" if either else "")
