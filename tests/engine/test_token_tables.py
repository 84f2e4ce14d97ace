"""Mapped token tables give the ids that the tokenizers library gives, and damaged ones are refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from edged.core.errors import ModelError
from edged.engine import load_model
from edged.engine.kernels.library import load_library
from edged.engine.table_splitter import TableSplitter, codec_from_tables
from edged.models.packing.pack import pack_path
from edged.models.tokenizer.codec import LibrarySplitter, Strips, TextCodec
from edged.models.tokenizer.sources import codec_from_gguf
from edged.models.tokenizer.table_writer import write_tables
from edged.models.tokenizer.tables import TABLES, open_tables
from edged.models.tokenizer.texts import read_texts
from edged.models.tokenizer.token_bytes import byte_level_bytes, sentencepiece_bytes
from tests.models.gemma import ROWS, gemma_codec, gemma_file
from tests.tiny import CONTROL, vocabulary

ROOT = Path(__file__).parents[2]
PIECES = [
    *CONTROL,
    "<tool>",
    "</tool>",
    "<to",
    "the",
    " that",
    "  ",
    "\n",
    "\t",
    "é",
    "e\u0301",
    "日本",
    "🙂",
    "1",
    "İ",
    "\0",
]


def made(change: Callable[[Tokenizer], None] = lambda _: None, left_out: str = "", **options: object) -> TextCodec:
    """The tiny vocabulary in the library, without the letters `left_out`, and with what `change` does to it."""
    tokens, merges = vocabulary()
    kept = [token for token in tokens if not set(token) & set(left_out)]
    pairs = [tuple(merge.split(" ")) for merge in merges if not set(merge) & set(left_out)]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(kept)}, pairs, **options))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    change(tokenizer)
    tokenizer.encode_special_tokens = True
    names = [tokenizer.id_to_token(token) for token in range(tokenizer.get_vocab_size())]
    return TextCodec(LibrarySplitter(tokenizer), list(map(byte_level_bytes, names)), {}, None, frozenset(), {})


def with_tool(tokenizer: Tokenizer) -> None:
    """Tokens that stand for themselves, one the beginning of another, and a normalizer."""
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens([AddedToken(CONTROL[1], special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("<to", "<tool>", "the")])


def mapped(codec: TextCodec, folder: Path) -> TextCodec:
    folder.mkdir()
    assert write_tables(folder, codec, None, "llama")
    tables = open_tables(folder)
    assert tables
    return codec_from_tables(tables, load_library())


@pytest.fixture(scope="module", params=["plain", "whole words first", "added tokens", "letters missing"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[TextCodec, TextCodec]:
    ours = {
        "plain": made,
        "whole words first": lambda: made(ignore_merges=True),
        "added tokens": lambda: made(with_tool),
        "letters missing": lambda: made(left_out="eĠÃ"),
    }[request.param]()
    return ours, mapped(ours, tmp_path_factory.mktemp("tables") / "folder")


@pytest.fixture(scope="module", params=["Gemma", "space first, no scores", "merges of characters"])
def both_of_characters(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TextCodec, TextCodec]:
    ours = {
        "Gemma": gemma_codec,
        "space first, no scores": lambda: codec_from_gguf(gemma_file(add_space_prefix=True, scores=None)),
        "merges of characters": of_characters,
    }[request.param]()
    return ours, mapped(ours, tmp_path_factory.mktemp("tables") / "folder")


def of_characters() -> TextCodec:
    """As Gemma's or Llama 2's tokenizer.json describes it: marked spaces, merges of characters, bytes for the rest."""
    tokens = [*(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"thea日", "th", "the", "▁the", "▁▁"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "▁")]
    tokenizer = Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, merges, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    names = [tokenizer.id_to_token(token) for token in range(tokenizer.get_vocab_size())]
    return TextCodec(LibrarySplitter(tokenizer), list(map(sentencepiece_bytes, names)), {}, None, frozenset(), {})


@settings(max_examples=150, deadline=None)
@given(text=st.one_of(st.text(), st.lists(st.sampled_from([*PIECES, *"▁ <>/&a"]), max_size=30).map("".join)))
def test_ids_of_characters_are_the_same(both_of_characters: tuple[TextCodec, TextCodec], text: str) -> None:
    slow, tables = both_of_characters
    assert slow.encode(text, specials=False) == tables.encode(text, specials=False)


def test_gemmas_rows_come_from_tables_too(tmp_path: Path) -> None:
    codec = mapped(gemma_codec(), tmp_path / "folder")
    assert [] == [(text, ids) for text, ids in ROWS if codec.encode(text, specials=True) != ids]


def test_what_swallows_blanks_is_kept_in_tables(tmp_path: Path) -> None:
    codec = gemma_codec()
    stripping = TextCodec(
        codec.splitter,
        [b""] * codec.vocabulary,
        codec.control,
        2,
        codec.stops,
        codec.names,
        Strips(behind=frozenset([2])),
    )
    assert [2, 1] == mapped(stripping, tmp_path / "folder").encode("<bos> \n <eos>", specials=True)


@settings(max_examples=150, deadline=None)
@given(text=st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=30).map("".join)))
def test_ids_are_the_librarys(both: tuple[TextCodec, TextCodec], text: str) -> None:
    library, tables = both
    assert library.encode(text, specials=False) == tables.encode(text, specials=False)


def test_a_real_vocabulary(real_gguf: Path, tmp_path: Path) -> None:
    """SmolLM2's 49,152 tokens on this project's own pages and on mixtures; every token writes the same bytes."""
    texts = read_texts(real_gguf)
    tables = mapped(texts.codec, tmp_path / "folder")
    chosen = random.Random(0)
    samples = [path.read_text("utf-8") for path in (*ROOT.glob("docs/**/*.md"), *ROOT.glob("edged/**/*.py"))]
    samples += ["".join(chosen.choices(PIECES, k=30)) for _ in range(300)]
    for text in samples:
        for specials in (False, True):
            assert texts.codec.encode(text, specials) == tables.encode(text, specials)
    assert [texts.codec.token_bytes(token) for token in range(49_200)] == [
        tables.token_bytes(token) for token in range(49_200)
    ]
    assert (texts.codec.stops, texts.codec.bos, texts.codec.names) == (tables.stops, tables.bos, tables.names)


def test_a_very_long_word(both: tuple[TextCodec, TextCodec]) -> None:
    """Letters without end, as somebody may send them, take no time that grows with their square."""
    library, tables = both
    word = "thatthe" * 30_000
    assert library.encode(word, specials=False) == tables.encode(word, specials=False)


def test_other_kinds_have_no_tables(tmp_path: Path) -> None:
    def spaced(tokenizer: Tokenizer) -> None:
        tokenizer.add_tokens([AddedToken("the", lstrip=True, normalized=False)])

    def sentencepiece(tokenizer: Tokenizer) -> None:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()

    kinds = [made(spaced), made(sentencepiece), made(byte_fallback=True), made(left_out="é", unk_token="the")]
    assert [False] * 4 == [write_tables(tmp_path, codec, None, "llama") for codec in kinds]
    assert open_tables(tmp_path) is None


def test_a_packed_model_maps_its_tokenizer(tiny_gguf: Path, tmp_path: Path) -> None:
    """A packed folder is served from its tables; without them (an older one) from its tokenizer.gguf."""
    pack_path(tiny_gguf, tmp_path / "packed")
    assert (tmp_path / "packed" / TABLES).is_file()
    model = load_model(tmp_path / "packed", store_root=tmp_path)
    assert isinstance(model.codec.splitter, TableSplitter)
    assert read_texts(tiny_gguf).codec.encode("the capital", False) == model.codec.encode("the capital", False)


def test_tables_of_another_version_are_not_used(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A packed folder of an older version has its tokenizer read again, as this version reads it."""
    with monkeypatch.context() as older:
        older.setattr("edged.models.tokenizer.table_writer.VERSION", 0)
        pack_path(tiny_gguf, tmp_path / "packed")
    model = load_model(tmp_path / "packed", store_root=tmp_path)
    assert isinstance(model.codec.splitter, LibrarySplitter)
    assert read_texts(tiny_gguf).codec.stops == model.codec.stops


def test_damaged_tables_are_refused(tiny_gguf: Path, tmp_path: Path) -> None:
    pack_path(tiny_gguf, tmp_path / "packed")
    path = tmp_path / "packed" / TABLES
    good = path.read_bytes()
    length = int.from_bytes(good[:8], "little")
    ends = len(good) - 8 - length
    for bad in (
        b"",
        good[:5],
        b"\xff" * 8 + good[8:],
        good[: 8 + length],
        good.replace(b'"ends"', b'"sdne"'),
        good.replace(b"data_offsets", b"data_offset_"),
        good[: 8 + length] + b"\xff" * ends,
        good.replace(b"about", b"tuoba"),
    ):
        path.write_bytes(bad)
        with pytest.raises(ModelError) as error:
            open_tables(tmp_path / "packed")
        assert "pack the model again" in str(error.value)
