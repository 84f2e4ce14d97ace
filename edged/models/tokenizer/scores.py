"""Vocabularies with scores (SentencePiece's byte-pair models): text to ids as llama.cpp does it.

Spaces are marked (`▁`); of all neighbours that are a token together, those with the highest score become one, of equal
scores the leftmost, until none is left; letters that are no token are written as bytes. This is the readable form of
it; a packed folder's tables (`tables.py`) give the same ids faster.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from edged.models.tokenizer.matching import LongestOf
from edged.models.tokenizer.token_bytes import SPACE

_MAX_KEPT: Final = 20_000  # words whose ids are remembered


class ScoreSplitter:
    """Text to ids by scores.

    `pieces`: the tokens that may be merged, by text. `scores`: of each id. `letters` [256]: the token of each byte, −1
    where there is none, which `unknown` is used for. `whole`: tokens taken as one wherever a text contains their
    letters. `prefix`: a text begins with a marked space.
    """

    def __init__(
        self,
        pieces: Mapping[str, int],
        scores: Sequence[float],
        letters: Sequence[int],
        unknown: int | None,
        whole: Mapping[str, int],
        prefix: bool,
    ) -> None:
        self.pieces = pieces
        self.scores = scores
        self.letters = letters
        self.unknown = unknown
        self.whole = whole
        self.prefix = prefix
        self._whole = LongestOf(whole)
        # No merge leads over a space unless a token has one behind these letters.
        inner = {
            piece[at - 1] for piece in pieces if (at := piece.find(SPACE, len(piece) - len(piece.lstrip(SPACE)))) > 0
        }
        self._open = inner | {SPACE}
        self._known: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        """Token ids of a text in which no control token is obeyed."""
        ids: list[int] = []
        for index, piece in enumerate(self._whole.split(text)):
            if index % 2:
                ids.append(self.whole[piece])
            elif piece:
                marked = piece.replace(" ", SPACE)
                for word in self._words(SPACE + marked if self.prefix else marked):
                    ids += self._word(word)
        return ids

    def as_bytes(self, letter: str) -> Iterator[int]:
        """The ids of a letter that is no token."""
        for byte in letter.encode("utf-8", "replace"):
            token = self.letters[byte]
            if token >= 0 or self.unknown is not None:
                yield token if token >= 0 or self.unknown is None else self.unknown

    def _words(self, text: str) -> Iterator[str]:
        """The text in pieces that no merge leads over: before a space, mostly."""
        begin = 0
        while (at := text.find(SPACE, begin + 1)) > 0:
            while at > 0 and text[at - 1] in self._open:
                at = text.find(SPACE, at + 1)
            if at < 0:
                break
            yield text[begin:at]
            begin = at
        yield text[begin:]

    def _word(self, word: str) -> list[int]:
        known = self._known.get(word)
        if known is None:
            known = self._merged(word)
            if len(self._known) < _MAX_KEPT:
                self._known[word] = known
        return known

    def _merged(self, word: str) -> list[int]:
        """Merges the highest score first; a symbol that was merged into the one before it is empty."""
        symbols = list(word)
        before, after = list(range(-1, len(word) - 1)), list(range(1, len(word) + 1))
        queue: list[tuple[float, int, int, int]] = []

        def offer(left: int, right: int) -> None:
            if left >= 0 and right < len(symbols):
                token = self.pieces.get(symbols[left] + symbols[right])
                if token is not None:
                    length = len(symbols[left]) + len(symbols[right])
                    heapq.heappush(queue, (-self.scores[token], left, right, length))

        for at in range(len(word) - 1):
            offer(at, at + 1)
        while queue:
            _, left, right, length = heapq.heappop(queue)
            if not symbols[left] or not symbols[right] or len(symbols[left]) + len(symbols[right]) != length:
                continue  # one of them was merged since
            symbols[left] += symbols[right]
            symbols[right] = ""
            after[left] = after[right]
            if after[left] < len(symbols):
                before[after[left]] = left
            offer(before[left], left)
            offer(left, after[left])
        ids: list[int] = []
        for symbol in filter(None, symbols):
            token = self.pieces.get(symbol)
            ids += self.as_bytes(symbol) if token is None else [token]
        return ids
