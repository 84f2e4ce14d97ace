"""Text to token ids and back, with control tokens kept separate from what users write.

A control token (`<|im_end|>`) is produced only where the caller asks for it: `encode(text, specials=True)` for texts of
the operator, `encode_chat` for a rendered template. Text of users goes through `specials=False`, where the same letters
are plain text. Decoding gives bytes, because one character may be spread over several tokens.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Final, Protocol

from tokenizers import Tokenizer

from edged.core.errors import ModelError, PromptRefused
from edged.models.panics import panics_as

_PRIVATE_USE: Final = range(0xF0000, 0xFFFFE)
_MAX_PARTS: Final = 10_000_000  # characters of all beginnings of control tokens, which grow with the square of a name
_MAX_DEPTH: Final = 40  # of an expression; a file's tokens could nest deeper than `re` can


class Splitter(Protocol):
    """Encodes a text; control tokens in it are plain text."""

    def ids(self, text: str) -> list[int]:
        """Token ids of a text."""


class LibrarySplitter:
    """The tokenizers library's `tokenizer`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def ids(self, text: str) -> list[int]:
        """Token ids of a text."""
        with panics_as(lambda why: PromptRefused("failed", "tokenizer", f"The model's tokenizer gave up: {why}.")):
            ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


class TextCodec:
    """A model's tokenizer; every method is pure.

    `splitter` encodes text, control tokens as plain text. `token_bytes`: the bytes of each id. `control` maps
    control tokens to ids. `bos` is the id that begins every prompt (None: there is none), `stops` are the ids
    that end an answer. `names` gives a template the texts of special tokens (`bos_token`, `eos_token`).
    Raises ModelError `bad_model`.
    """

    def __init__(
        self,
        splitter: Splitter,
        token_bytes: Sequence[bytes],
        control: Mapping[str, int],
        bos: int | None,
        stops: frozenset[int],
        names: Mapping[str, str],
    ) -> None:
        self.control = control
        self.bos = bos
        self.stops = stops
        self.names = names
        self.splitter = splitter
        self._bytes = token_bytes
        self._control_ids = frozenset(control.values())
        # A control token of one letter cannot be distinguished from text, so it is never used.
        longer = [name for name in control if len(name) > 1]
        if sum(len(name) ** 2 for name in longer) // 2 > _MAX_PARTS:
            raise ModelError("bad_model", "The names of the control tokens are far too long; that is not a tokenizer.")
        either = longest_of(longer)
        self._control = re.compile(f"({either})")
        self._control_start = re.compile(f"(?={either})")
        self._heads = frozenset(name[:n] for name in longer for n in range(1, len(name)))
        self._tails = frozenset(name[n:] for name in longer for n in range(1, len(name)))
        self._parts = range(1, max(map(len, longer), default=1))  # the lengths of both

    @property
    def vocabulary(self) -> int:
        """The number of token ids that have a text."""
        return len(self._bytes)

    def encode(self, text: str, specials: bool) -> list[int]:
        """Token ids of a text, without a beginning-of-sequence token. `specials`: control tokens in it are such."""
        if not specials:
            return self._plain(text)
        ids: list[int] = []
        for index, piece in enumerate(self._control.split(text)):
            if index % 2:
                ids.append(self.control[piece])
            elif piece:
                ids += self._plain(piece)
        return ids

    def encode_chat(self, rendered: str, guard: str) -> list[int]:
        """Token ids of a rendered template whose user texts went through `guarded`, begun as the model wants."""
        ids: list[int] = []
        for index, piece in enumerate(self._control.split(rendered)):
            if index % 2:
                ids.append(self.control[piece])
            elif piece:
                ids += self._plain(piece.replace(guard, ""))
        if self.bos is not None and ids[:1] != [self.bos]:
            ids.insert(0, self.bos)
        return ids

    def guarded(self, text: str, guard: str) -> str:
        """The text with `guard` inside what reads like a control token, and at an end that could become part of one."""
        text = guard.join(self._split_controls(text))
        if any(text[-n:] in self._heads for n in self._parts):
            text += guard
        if any(text[:n] in self._tails for n in self._parts):
            text = guard + text
        return text

    def token_bytes(self, token: int) -> bytes:
        """What a token writes; control tokens and ids without a text write nothing."""
        return b"" if token in self._control_ids or token >= len(self._bytes) else self._bytes[token]

    def written(self, token: int) -> bytes:
        """The bytes of a token in the vocabulary, a control token's name among them."""
        return self._bytes[token]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens, with the replacement character where bytes are no UTF-8."""
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", "replace")

    def _plain(self, text: str) -> list[int]:
        ids = self.splitter.ids(text)
        if self._control_ids.isdisjoint(ids):
            return ids
        # This vocabulary's merges lead from plain letters to a control token: split the text where one would begin.
        ids = [token for piece in self._split_controls(text) for token in self.splitter.ids(piece)]
        return [token for token in ids if token not in self._control_ids]

    def _split_controls(self, text: str) -> Iterator[str]:
        """The text in pieces, cut after the first letter of all that reads like a control token."""
        last = 0
        for match in self._control_start.finditer(text):
            yield text[last : match.start() + 1]
            last = match.start() + 1
        yield text[last:]


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


def choose_guard(texts: Iterable[str]) -> str:
    """A private-use character that none of the texts contains. Raises PromptRefused `invalid` where there is none."""
    used = set("".join(texts))
    guard = next((letter for letter in map(chr, _PRIVATE_USE) if letter not in used), None)
    if guard is None:
        raise PromptRefused("invalid", "prompt", "The prompt contains every private-use character; remove some.")
    return guard
