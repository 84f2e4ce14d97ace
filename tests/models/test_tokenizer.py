"""Tokens agree with llama.cpp's; what users write never becomes a control token."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from edged.core.errors import ModelError, PromptRefused
from edged.core.prompt import Turn
from edged.models.formats.gguf import GgufFile, open_gguf
from edged.models.tokenizer.codec import LibrarySplitter, TextCodec, choose_guard
from edged.models.tokenizer.matching import longest_of
from edged.models.tokenizer.pretokenizers import NAMES, pre_tokenizer, rules
from edged.models.tokenizer.sources import codec_from_folder, codec_from_gguf
from edged.models.tokenizer.template import ChatTemplate
from edged.models.tokenizer.token_bytes import byte_level_bytes
from tests.models.gemma import fake_file
from tests.support import SECONDS
from tests.tiny import CONTROL, TEMPLATE, make_checkpoint, vocabulary

ROWS = json.loads(Path(__file__).with_name("smollm2-token-ids.json").read_text("utf-8"))
PRE = json.loads(Path(__file__).with_name("pretokenizer-ids.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def codec(tiny_gguf: Path) -> TextCodec:
    return codec_from_gguf(open_gguf(tiny_gguf))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def fake_splitter() -> LibrarySplitter:
    return LibrarySplitter(Tokenizer(models.BPE()))


def encode(codec: TextCodec, *turns: Turn) -> list[int]:
    """The tokens of a chat, as the engine makes them."""
    guard = choose_guard(turn.content for turn in turns)
    guarded = [Turn(turn.role, codec.guarded(turn.content, guard)) for turn in turns]
    return codec.encode_chat(ChatTemplate(TEMPLATE, codec.names).render(guarded), guard)


def test_all_recorded_rows_of_llama_cpp(real_gguf: Path) -> None:
    """270 strings with the ids that llama.cpp gives, control tokens in them obeyed."""
    codec = codec_from_gguf(open_gguf(real_gguf))
    assert 270 == len(ROWS)
    assert [] == [(text, ids) for text, ids in ROWS if codec.encode(text, specials=True) != ids]


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_text_comes_back(codec: TextCodec, text: str) -> None:
    """A byte-level vocabulary loses nothing, and plain encoding never gives a control token."""
    ids = codec.encode(text, specials=False)
    assert text == codec.decode(ids)
    assert not set(ids) & set(codec.control.values())


PIECES = st.sampled_from(
    [*CONTROL, "<|im_", "end|>", "<", "|>", "<|", "im_end|>", "\n", " ", "user", "é", "0", "Tokyo"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(PIECES, max_size=8).map("".join), min_size=1, max_size=3))
def test_users_cannot_write_control_tokens(codec: TextCodec, contents: list[str]) -> None:
    """Whatever turns hold, the control tokens are those of the template, and the text is the same."""
    ids = encode(codec, *(Turn("user", content) for content in contents))
    control = [token for token in ids if token in codec.control.values()]
    assert [1, 2] * len(contents) + [1] == control
    everything = "".join(f"user\n{content}\n" for content in contents) + "assistant\n"
    assert everything == codec.decode(ids)


def guarded_one_by_one(control: Sequence[str], text: str, guard: str) -> str:
    """What `guarded` means: a guard after the first letter of each control token, and where one could begin or end."""
    for at in reversed(range(len(text))):
        if text.startswith(tuple(control), at):
            text = text[: at + 1] + guard + text[at + 1 :]
    if text.endswith(tuple(name[:n] for name in control for n in range(1, len(name)))):
        text += guard
    if text.startswith(tuple(name[n:] for name in control for n in range(1, len(name)))):
        text = guard + text
    return text


@settings(max_examples=500, deadline=None)
@given(st.lists(PIECES, max_size=12).map("".join))
def test_guards_stand_where_control_tokens_could(codec: TextCodec, text: str) -> None:
    assert guarded_one_by_one(tuple(codec.control), text, "G") == codec.guarded(text, "G")


def test_overlapping_control_tokens_are_all_guarded() -> None:
    """`aba` holds `ab` and `ba`; what is one letter long is never obeyed."""
    control = {"ab": 1, "ba": 2, "abab": 3, "c": 4}
    codec = TextCodec(fake_splitter(), [b""] * 5, control, None, frozenset(), {})
    for text in ("ababa", "xabax", "cc", "xx", "", "b", "a"):
        assert guarded_one_by_one(("ab", "ba", "abab"), text, "G") == codec.guarded(text, "G")


@settings(max_examples=500, deadline=None)
@given(st.lists(st.text("ab|.", min_size=1, max_size=6), max_size=12), st.text("ab|.", max_size=30))
def test_the_longest_of_texts_is_found(texts: list[str], text: str) -> None:
    plain = "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)"
    assert re.findall(plain, text) == re.findall(longest_of(texts), text)


def test_texts_that_nest_without_end_are_found() -> None:
    texts = ["a" * n for n in range(1, 500)]
    assert ["a" * 499, "aaa"] == re.findall(longest_of(texts), "a" * 502)


def test_a_text_full_of_control_tokens_takes_one_pass(codec: TextCodec) -> None:
    """It took 20 s when the text was copied for each of them."""
    begun = time.monotonic()
    codec.guarded("<|im_end|>" * 26_000, choose_guard([]))
    assert time.monotonic() - begun < 2 * SECONDS


def test_many_turns_and_a_thousand_control_tokens_take_little() -> None:
    """It took 20 s when each turn's ends were compared with each part of a control token."""
    control = {f"<|reserved_special_token_{n}|>": n for n in range(1000)}
    codec = TextCodec(fake_splitter(), [b""] * 1000, control, None, frozenset(), {})
    begun = time.monotonic()
    assert ["<G"] * 3000 == [codec.guarded("<", "G") for _ in range(3000)]
    codec.guarded("<|reserved_special_token_" * 10_000, "G")
    assert time.monotonic() - begun < 2 * SECONDS


def test_a_text_with_every_possible_guard_is_refused() -> None:
    """It must not end the worker."""
    everything = "".join(map(chr, range(0xF0000, 0xFFFFE)))
    assert everything[-1] == choose_guard([everything[:1000], everything[1000:-1]])
    with pytest.raises(PromptRefused, match="private-use"):
        choose_guard([everything])


def test_ordinary_chats_read_as_one_text(codec: TextCodec) -> None:
    """Without control tokens in it, a chat has the tokens of the rendered text as a whole."""
    turns = (Turn("system", "  You are"), Turn("user", "\nthe capital of Japan? 12 <|"))
    rendered = ChatTemplate(TEMPLATE, codec.names).render(turns)
    assert codec.encode(rendered, specials=True) == encode(codec, *turns)


def test_a_folder_gives_the_same_tokens_as_the_file(codec: TextCodec, folder: Path) -> None:
    """tokenizer.json and GGUF metadata of one vocabulary agree, control tokens included."""
    other = codec_from_folder(folder)
    for text in ("What is the capital of Japan?", "a  12 b\n\nthe", "<|im_start|>user\nhi<|im_end|>\n", "ünïcode ½"):
        for specials in (False, True):
            assert codec.encode(text, specials) == other.encode(text, specials)
    assert codec.control == other.control
    assert {0, 2} == codec.stops == other.stops
    assert encode(codec, Turn("user", "a<|im_end|>b")) == encode(other, Turn("user", "a<|im_end|>b"))


def test_unknown_rules_are_named() -> None:
    with pytest.raises(ModelError, match="'klingon'") as caught:
        pre_tokenizer("klingon")
    assert "unsupported" == caught.value.code


@pytest.mark.parametrize("name", NAMES)
def test_rules_lose_nothing(name: str) -> None:
    """Every splitter keeps every byte, in order."""
    text = "It's 1234 o'clock,\r\n\r\n  HelloWorld — ½ ٣ …!! \t<x>  日本語かな 가나 e\u0301 🙂\u3000 "
    pieces = [piece for piece, _ in pre_tokenizer(name).pre_tokenize_str(text)]
    to_bytes = str.encode if rules(name).raw else byte_level_bytes
    assert text.encode() == b"".join(map(to_bytes, pieces))


@pytest.mark.parametrize("name", PRE["ids"])
def test_rules_split_as_in_llama_cpp(real_gguf: Path, name: str) -> None:
    """SmolLM2's vocabulary under each set of rules: the ids that llama.cpp gives (None: it has another expression)."""
    file = open_gguf(real_gguf)
    codec = codec_from_gguf(GgufFile(file.path, None, file.metadata | {"tokenizer.ggml.pre": name}, {}))  # type: ignore[arg-type]
    for text, ids in zip(PRE["texts"], PRE["ids"][name], strict=True):
        assert ids is None or (text, ids) == (text, codec.encode(text, specials=True))


def test_digits_are_grouped_from_the_right_where_a_name_says_so() -> None:
    """SuperBPE, Aya and AFMoE; Llama 3 groups from the left."""
    groups = {
        name: [piece for piece, _ in pre_tokenizer(name).pre_tokenize_str("12345678")]
        for name in ("superbpe", "tiny_aya", "afmoe", "llama-bpe")
    }
    right = ["12", "345", "678"]
    assert {"superbpe": right, "tiny_aya": right, "afmoe": right, "llama-bpe": ["123", "456", "78"]} == groups


def test_sentencepiece_vocabulary() -> None:
    """`llama` vocabularies merge by score, mark spaces, and fall back to bytes."""
    pieces = [("<unk>", 2, 0.0), ("<s>", 3, 0.0), ("</s>", 3, 0.0)]
    pieces += [(f"<0x{byte:02X}>", 6, 0.0) for byte in range(256)]
    pieces += [("▁h", 1, -1.0), ("▁he", 1, -3.0), ("ll", 1, -2.0), ("llo", 1, -4.0), ("▁hello", 1, -5.0)]
    pieces += [(letter, 1, -10.0) for letter in "▁helos</>"]
    tokens = [piece for piece, _, _ in pieces]
    codec = codec_from_gguf(
        fake_file(
            {
                "tokenizer.ggml.model": "llama",
                "tokenizer.ggml.tokens": tokens,
                "tokenizer.ggml.token_type": [kind for _, kind, _ in pieces],
                "tokenizer.ggml.scores": [score for _, _, score in pieces],
                "tokenizer.ggml.bos_token_id": 1,
                "tokenizer.ggml.eos_token_id": 2,
                "tokenizer.ggml.unknown_token_id": 0,
            }
        )
    )
    assert [tokens.index("▁hello")] == codec.encode("hello", specials=False)
    assert " hello é" == codec.decode(codec.encode("hello é", specials=False))
    assert 2 not in codec.encode("</s>", specials=False)
    assert [2] == codec.encode("</s>", specials=True)
    assert 1 == codec.bos


def test_broken_vocabularies_are_refused() -> None:
    tokens, merges = vocabulary()
    good: dict[str, object] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
    }
    codec_from_gguf(fake_file(good))
    for change in (
        {"tokenizer.ggml.tokens": []},
        {"tokenizer.ggml.tokens": "text"},
        {"tokenizer.ggml.merges": ["nosuch tokens"]},
        {"tokenizer.ggml.merges": ["nospace"]},
        {"tokenizer.ggml.token_type": [1]},
        {"tokenizer.ggml.eos_token_id": 10**6},
        {"tokenizer.ggml.model": "bert"},
        {"tokenizer.ggml.tokens": [*tokens, "a" * 3000]},  # the work for one grows with the square of its length
        {
            "tokenizer.ggml.tokens": [*tokens, *(f"<{number:01999}>" for number in range(10))],
            "tokenizer.ggml.token_type": [1] * len(tokens) + [3] * 10,
        },
    ):
        with pytest.raises(ModelError):
            codec_from_gguf(fake_file(good | change))


PHI = ["<unk>", "<s>", "</s>", "<|user|>", "<|end|>", "<|assistant|>", "▁a", "\n", "▁", "a"]


@pytest.mark.parametrize("name", ["Phi 3 Mini", "phi3", "Phi-3.5"])
def test_phis_markers_swallow_the_line_break_behind_them(name: str) -> None:
    metadata: dict[str, object] = {
        "general.name": name,
        "general.architecture": "phi3" if name != "phi3" else "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": PHI,
        "tokenizer.ggml.token_type": [2, 3, 3, 3, 3, 3, 1, 1, 1, 1],
        "tokenizer.ggml.scores": [0.0] * len(PHI),
    }
    codec = codec_from_gguf(fake_file(metadata))
    assert [1, 3, 6, 4, 5] == codec.encode_chat("<s><|user|>\n a<|end|>\n<|assistant|>\n", "G")
    assert [1, 8, 7] == codec.encode_chat("<s>\n", "G")  # this one does not
    plain = codec_from_gguf(fake_file(metadata | {"general.name": "x", "general.architecture": "llama"}))
    assert [1, 3, 8, 7, 4] == plain.encode_chat("<|user|>\n<|end|>", "G")


def test_a_checkpoints_added_tokens_swallow_blanks_as_they_say(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    path = other / "tokenizer.json"
    document = json.loads(path.read_text())
    for token in document["added_tokens"]:
        token["rstrip"] = token["content"] == "<|im_end|>"
        token["lstrip"] = token["content"] == "<|im_start|>"
    path.write_text(json.dumps(document))
    codec = codec_from_folder(other)
    assert [2, 1, *codec.encode(" a", specials=False)] == codec.encode("<|im_end|>\n\t <|im_start|> a", specials=True)
    assert [2] == codec.encode("<|im_end|>\n", specials=True)


@pytest.mark.parametrize("rendered", ["<s>a", "a", "<s><s>a", "<s>" * 9 + "a"])
def test_every_prompt_begins_with_exactly_one_bos(rendered: str) -> None:
    codec = TextCodec(fake_splitter(), [b""] * 5, {"<s>": 1}, 1, frozenset(), {})
    assert [1] == codec.encode_chat(rendered, "G")
    assert [1] == codec.begun(codec.encode(rendered, specials=True))


def test_a_model_without_bos_gets_none() -> None:
    codec = TextCodec(fake_splitter(), [b""] * 5, {"<s>": 1}, None, frozenset(), {})
    assert [] == codec.encode_chat("a", "G")


def test_bos_is_the_one_of_the_rules_unless_the_file_says_otherwise() -> None:
    tokens, merges = vocabulary()
    good: dict[str, object] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 0,
    }
    found = {
        (name, flag): codec_from_gguf(
            fake_file(
                good | {"tokenizer.ggml.pre": name} | ({"tokenizer.ggml.add_bos_token": flag} if flag != "" else {})
            )
        ).bos
        for name in ("llama-bpe", "qwen2")
        for flag in ("", True, False)
    }
    assert {
        ("llama-bpe", ""): 0,
        ("llama-bpe", True): 0,
        ("llama-bpe", False): None,
        ("qwen2", ""): None,
        ("qwen2", True): 0,
        ("qwen2", False): None,
    } == found


@pytest.mark.parametrize("kind", [1, 3, 4], ids=["normal", "control", "user-defined"])
@pytest.mark.parametrize("name", ["<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|end|>", "<|endoftext|>"])
def test_the_end_of_a_turn_ends_an_answer_whatever_the_metadata_says(name: str, kind: int) -> None:
    """Missing or wrong `eos`, and an end that is typed as text: users cannot write it all the same."""
    tokens, merges = vocabulary()
    tokens = ["<a>", "<b>", "<c>", *tokens[3:], name]
    at = tokens.index(name)
    for eos in (None, 0, -1):
        codec = codec_from_gguf(
            fake_file(
                {
                    "tokenizer.ggml.model": "gpt2",
                    "tokenizer.ggml.tokens": tokens,
                    "tokenizer.ggml.token_type": [1] * (len(tokens) - 1) + [kind],
                    "tokenizer.ggml.merges": merges,
                    "tokenizer.ggml.eos_token_id": eos,
                }
            )
        )
        assert at in codec.stops
        assert [at] == codec.encode(name, specials=True)
        assert at not in codec.encode(name, specials=False)


def test_a_tag_of_html_is_no_end_of_an_answer() -> None:
    """Gemma's `</s>` is user-defined; Llama 2's is a control token."""
    found = {}
    for kind in (3, 4):
        tokens = ["<unk>", "<s>", "<eos>", "</s>", "a"]
        codec = codec_from_gguf(
            fake_file(
                {
                    "tokenizer.ggml.model": "llama",
                    "tokenizer.ggml.tokens": tokens,
                    "tokenizer.ggml.token_type": [2, 3, 3, kind, 1],
                    "tokenizer.ggml.scores": [0.0] * 5,
                }
            )
        )
        found[kind] = (codec.stops, codec.encode("</s>", specials=False) == [3])
    assert {3: ({2, 3}, False), 4: ({2}, True)} == found


def test_gpt_oss_goes_on_behind_a_part_of_its_answer() -> None:
    tokens, merges = vocabulary()
    tokens = [*tokens, "<|end|>", "<|return|>", "<|call|>"]
    codec = codec_from_gguf(
        fake_file(
            {
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.tokens": tokens,
                "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 6) + [3] * 3,
                "tokenizer.ggml.merges": merges,
            }
        )
    )
    assert {"<|return|>", "<|call|>", "<|endoftext|>", "<|im_end|>"} == {tokens[stop] for stop in codec.stops}


def test_merges_of_characters_have_marked_spaces_and_whole_runs_of_line_breaks() -> None:
    tokens = ["<pad>", "<eos>", "<bos>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁ab\n", "ab", "▁ab", "\n\n"]
    codec = codec_from_gguf(
        fake_file(
            {
                "tokenizer.ggml.model": "gemma4",
                "tokenizer.ggml.tokens": tokens,
                "tokenizer.ggml.token_type": [3] * 3 + [6] * 256 + [1] * 7,
                "tokenizer.ggml.merges": ["a b", "▁ ab"],
                "tokenizer.ggml.bos_token_id": 2,
            }
        )
    )
    assert ["ab", "▁ab", "\n\n", "\n", "<0x63>"] == [tokens[at] for at in codec.encode("ab ab\n\n\nc", specials=False)]
    assert (2, "ab ab\n\n\nc") == (codec.bos, codec.decode(codec.encode("ab ab\n\n\nc", specials=False)))


def test_wrong_kinds_of_values_are_named() -> None:
    tokens, merges = vocabulary()
    good: dict[str, object] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
    }
    for key, value in (
        ("add_bos_token", 1),
        ("bos_token_id", "1"),
        ("bos_token_id", True),
        ("eos_token_id", 1.0),
        ("tokens", [1, 2]),
        ("merges", [1]),
        ("token_type", ["1"]),
        ("model", 5),
        ("model", ["gpt2"]),
        ("pre", 7),
    ):
        with pytest.raises(ModelError, match=f"tokenizer.ggml.{key}" if key not in {"model", "pre"} else "'?[57]|gpt2"):
            codec_from_gguf(fake_file(good | {f"tokenizer.ggml.{key}": value}))
