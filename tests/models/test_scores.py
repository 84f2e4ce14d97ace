"""Vocabularies with scores: llama.cpp's ids, byte fallback, marked spaces."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.models.tokenizer.codec import TextCodec
from edged.models.tokenizer.scores import ScoreSplitter
from edged.models.tokenizer.sources import codec_from_gguf
from tests.models.gemma import ROWS, fake_file, gemma_codec
from tests.support import SECONDS


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return gemma_codec()


def test_all_recorded_rows_of_llama_cpp_for_gemma(codec: TextCodec) -> None:
    """300 strings: runs of blanks and line breaks, emoji, scripts, tags, control tokens, bytes that are no token."""
    assert 300 == len(ROWS)
    assert [] == [(text, ids) for text, ids in ROWS if codec.encode(text, specials=True) != ids]


def test_gemma_begins_with_one_bos_and_ends_with_its_turn(codec: TextCodec) -> None:
    assert 2 == codec.bos
    assert {1, 106} == codec.stops
    assert "  \n\t日本 x" == codec.decode(codec.encode("  \n\t日本 x", specials=False))


def naive(pieces: dict[str, int], scores: list[float], text: str) -> list[str]:
    """What `ScoreSplitter` means, one merge after the other over the whole text."""
    symbols = list(text)
    while True:
        found = [
            (-scores[pieces[left + right]], at)
            for at, (left, right) in enumerate(pairwise(symbols))
            if left + right in pieces
        ]
        if not found:
            return symbols
        _, at = min(found)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]


@settings(max_examples=400, deadline=None)
@given(
    words=st.lists(st.text("ab▁", min_size=1, max_size=4), max_size=12, unique=True),
    scores=st.lists(st.integers(-3, 0).map(float), min_size=12, max_size=12),
    text=st.text("ab c", max_size=20),
    prefix=st.booleans(),
)
def test_the_best_merge_comes_first_and_the_leftmost_of_equals(
    words: list[str], scores: list[float], text: str, prefix: bool
) -> None:
    """Single letters may be missing, and all scores may be equal (a file without them)."""
    pieces = {word: index for index, word in enumerate(words)}
    letters = [100 + byte for byte in range(256)]
    splitter = ScoreSplitter(pieces, scores, letters, None, {}, prefix)
    marked = ("▁" if prefix and text else "") + text.replace(" ", "▁")
    expected: list[int] = []
    for symbol in naive(pieces, scores, marked):
        expected += [pieces[symbol]] if symbol in pieces else [100 + byte for byte in symbol.encode()]
    assert expected == splitter.ids(text)


def small(**changes: object) -> TextCodec:
    """A vocabulary in the order of Llama 2's: `<unk>`, `<s>`, `</s>`, bytes, pieces."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "ab", "▁ab"]
    given: dict[str, object] = {
        "model": "llama",
        "tokens": tokens,
        "token_type": [2, 3, 3, *[6] * 256, *[1] * 6],
        "scores": [0.0] * 259 + [-9.0, -9.0, -9.0, -2.0, -1.0, -3.0],
    }
    return codec_from_gguf(fake_file({f"tokenizer.ggml.{key}": value for key, value in (given | changes).items()}))


A, B, SPACED_A, AB, SPACED_AB = 260, 261, 262, 263, 264


def test_a_text_begins_with_a_space_unless_the_file_says_otherwise() -> None:
    assert [SPACED_AB] == small().encode("ab", specials=False)
    assert [AB] == small(add_space_prefix=False).encode("ab", specials=False)
    assert [2, SPACED_AB, 1, SPACED_AB] == small().encode("</s>ab<s>ab", specials=True)


def test_missing_scores_and_ids_are_those_of_llama_cpp() -> None:
    """Without scores the leftmost merge comes first; without ids they are 1, 2 and 0."""
    codec = small(scores=None)
    assert [SPACED_AB] == codec.encode("ab", specials=False)
    assert (1, {2}) == (codec.bos, codec.stops)
    for none in (-1, (1 << 32) - 1):
        codec = small(bos_token_id=none, eos_token_id=none, padding_token_id=none)
        assert (1, {2}, {"bos_token", "eos_token", "unknown_token"}) == (codec.bos, codec.stops, set(codec.names))


def test_what_is_no_token_is_written_as_bytes() -> None:
    assert [259, 3 + 0xC3, 3 + 0xA9, A] == small().encode("éa", specials=False)
    assert " éa" == small().decode(small().encode("éa", specials=False))


def test_users_cannot_write_control_tokens_or_bytes() -> None:
    ids = small().encode("<s></s><unk><0x41>", specials=False)
    assert not {0, 1, 2, 3 + 0x41} & set(ids)
    assert " <s></s><unk><0x41>" == small().decode(ids)


def test_a_long_text_without_a_space_takes_little() -> None:
    begun = time.monotonic()
    assert 30_001 == len(small().encode("ab" * 30_000 + "a", specials=False))
    assert time.monotonic() - begun < 3 * SECONDS
