"""Text to token ids and back, with control tokens kept separate from what users write.

A control token (`<|im_end|>`) is produced only where the caller asks for it: `encode(text, specials=True)` for texts of
the operator, `encode_chat` for a rendered template. Text of users goes through `specials=False`, where the same letters
are plain text. Decoding gives bytes, because one character may be spread over several tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from tokenizers import Tokenizer

from edged.core.errors import ModelError, PromptRefused
from edged.models.panics import panics_as
from edged.models.tokenizer.matching import Beginnings, LongestOf

_PRIVATE_USE: Final = range(0xF0000, 0xFFFFE)
_MAX_PARTS: Final = 10_000_000  # characters of all beginnings of control tokens, which grow with the square of a name
BLANKS: Final = " \t\n\v\f\r"


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


@dataclass(frozen=True)
class Strips:
    """Control tokens that swallow the blanks `before` and `behind` them (Phi-3's `<|end|>` its line break)."""

    before: frozenset[int] = frozenset()
    behind: frozenset[int] = frozenset()


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
        strips: Strips = Strips(),
    ) -> None:
        self.control = control
        self.bos = bos
        self.stops = stops
        self.names = names
        self.splitter = splitter
        self.strips = strips
        self._bytes = token_bytes
        self._control_ids = frozenset(control.values())
        # A control token of one letter cannot be distinguished from text, so it is never used.
        longer = [name for name in control if len(name) > 1]
        if sum(len(name) ** 2 for name in longer) // 2 > _MAX_PARTS:
            raise ModelError("bad_model", "The names of the control tokens are far too long; that is not a tokenizer.")
        self._control = LongestOf(longer)
        self._heads, self._tails = Beginnings(longer), Beginnings([name[::-1] for name in longer])  # tails backwards
        self._parts = range(1, max(map(len, longer), default=1))  # the lengths of both

    @property
    def vocabulary(self) -> int:
        """The number of token ids that have a text."""
        return len(self._bytes)

    def encode(self, text: str, specials: bool) -> list[int]:
        """Token ids of a text, without a beginning-of-sequence token. `specials`: control tokens in it are such."""
        return self._with_controls(text, "") if specials else self._plain(text)

    def encode_chat(self, rendered: str, guard: str) -> list[int]:
        """Token ids of a rendered template whose user texts went through `guarded`, begun as the model wants."""
        return self.begun(self._with_controls(rendered, guard))

    def begun(self, ids: list[int]) -> list[int]:
        """The ids behind exactly one beginning-of-sequence token, where the model has one."""
        if self.bos is None:
            return ids
        first = next((at for at, token in enumerate(ids) if token != self.bos), len(ids))
        return [self.bos, *ids[first:]]

    def guarded(self, text: str, guard: str) -> str:
        """The text with `guard` inside what reads like a control token, and at an end that could become part of one."""
        text = guard.join(self._split_controls(text))
        if any(text[-n:] in self._heads for n in self._parts):
            text += guard
        if any(text[:n][::-1] in self._tails for n in self._parts):
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

    def _with_controls(self, text: str, guard: str) -> list[int]:
        """Token ids of a text whose control tokens are such; `guard`, where not empty, is left out of the rest."""
        ids: list[int] = []
        pieces = list(self._control.split(text))
        for index, piece in enumerate(pieces):
            if index % 2:
                ids.append(self.control[piece])
                continue
            if index and self.control[pieces[index - 1]] in self.strips.behind:
                piece = piece.lstrip(BLANKS)  # noqa: PLW2901
            if index + 1 < len(pieces) and self.control[pieces[index + 1]] in self.strips.before:
                piece = piece.rstrip(BLANKS)  # noqa: PLW2901
            if plain := piece.replace(guard, "").replace(_escaped(guard), "") if guard else piece:
                ids += self._plain(plain)
        return ids

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
        while found := self._control.search(text, last):
            yield text[last : found[0] + 1]
            last = found[0] + 1
        yield text[last:]


def choose_guard(texts: Iterable[str]) -> str:
    """A private-use character that none of the texts contains. Raises PromptRefused `invalid` where there is none."""
    text = "".join(texts)
    used = set(text)
    free = (letter for letter in map(chr, _PRIVATE_USE) if letter not in used and _escaped(letter) not in text)
    guard = next(free, None)
    if guard is None:
        raise PromptRefused("invalid", "prompt", "The prompt contains every private-use character; remove some.")
    return guard


def _escaped(guard: str) -> str:
    """A guard as a template writes it that asks for JSON in ASCII."""
    return json.dumps(guard)[1:-1]
