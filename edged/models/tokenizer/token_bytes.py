"""The bytes of a token: the two ways in which vocabularies write bytes as text."""

from __future__ import annotations

import re
from functools import cache
from typing import Final

_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE: Final = "\u2581"  # how SentencePiece vocabularies write a space


@cache
def _letter_to_byte() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 characters are themselves, the other 68 bytes U+0100 and on, in order."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(0x100 + index): byte for index, byte in enumerate(rest)}


def byte_level_letters() -> list[str]:
    """The letter of each byte 0…255 in a byte-level vocabulary."""
    return [letter for letter, _ in sorted(_letter_to_byte().items(), key=lambda pair: pair[1])]


def byte_level_bytes(token: str) -> bytes:
    """A token of a byte-level vocabulary (`ĠTokyo` → b" Tokyo"); one with other letters is plain UTF-8."""
    letters = _letter_to_byte()
    if all(letter in letters for letter in token):
        return bytes(letters[letter] for letter in token)
    return token.encode("utf-8", "replace")


def sentencepiece_bytes(token: str) -> bytes:
    """A token of a SentencePiece vocabulary (`▁Tokyo` → b" Tokyo", `<0x0A>` → b"\\n")."""
    byte = _BYTE_TOKEN.fullmatch(token)
    if byte:
        return bytes([int(byte[1], 16)])
    return token.replace(SPACE, " ").encode("utf-8", "replace")
