"""How a text is split before byte-pair merges, by the name in a GGUF file's `tokenizer.ggml.pre`.

The names and the expressions of each are facts of llama.cpp's `llama-vocab.cpp` and of the models' own `tokenizer.json`
files. Where llama.cpp approximates the expression that a model was trained with (it has no case of letters outside
ASCII), the model's own is used. They are checked against recorded token ids where there are any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tokenizers import Regex, pre_tokenizers

from edged.core.errors import ModelError

_ENDINGS: Final = "'s|'t|'re|'ve|'m|'ll|'d"
_ANY_CASE: Final = f"(?i:{_ENDINGS})"
_SPACES: Final = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CJK: Final = r"[\u4E00-\u9FA5\u3040-\u309F\u30A0-\u30FF]+"
_DIGIT, _DIGITS, _THREE = r"\p{N}", r"\p{N}+", r"\p{N}{1,3}"
_ASCII_MARK: Final = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
_WORD_OR_MARKS: Final = rf"{_ASCII_MARK}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+"


def _words(number: str, ending: str = _ANY_CASE + "|", marks: str = r"[^\s\p{L}\p{N}]+[\r\n]*") -> str:
    """Words with one leading character that is neither letter nor digit, numbers, marks, spaces."""
    return rf"{ending}[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{number}| ?{marks}" + _SPACES


def _cased(number: str, ending: str = f"{_ANY_CASE}?", marks: str = r"[\r\n/]*", han: str = "") -> str:
    """Words that also end where a lower case letter is followed by an upper case one."""
    upper, lower = (f"[{letters}{han}]" if han else letters for letters in (_UPPER, _LOWER))
    start = r"[^\r\n\p{L}\p{N}]?"
    words = f"{start}{upper}*{lower}+{ending}|{start}{upper}+{lower}*{ending}"
    return rf"{words}|{number}| ?[^\s\p{{L}}\p{{N}}]+{marks}" + _SPACES


_GPT2: Final = rf"{_ENDINGS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
_LLAMA3, _QWEN2 = _words(_THREE), _words(_DIGIT)
_GPT4O: Final = _cased(_THREE)
_DEEPSEEK3: Final = (_THREE, _CJK, rf"{_WORD_OR_MARKS}[\r\n]*" + _SPACES)
_BLOOM: Final = r" ?[^(\s|.,!?…。，、।۔،)]+"
_NEWLINES: Final = r"[^\n]+|[\n]+"
_LETTERS_OF_CASES: Final = (  # cased letters of some scripts
    r"[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-Ֆ"
    r"Ⴀ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝ\u1F5F-\u1F7Dᾀ-ᾴᾶ-ᾼ"
    r"\u1FBEῂ-ῄῆ-ῌῐ-\u1FD3ῖ-\u1FDBῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212A-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿ"
    r"ﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)
_IDEOGRAPHS: Final = r"[\u4E00-\u9FA5\u0800-\u4E00\uAC00-\uD7FF]+"


@dataclass(frozen=True)
class Rules:
    """How text is split, and what else comes with the name.

    `steps`: expressions, applied one after the other to each piece that the one before made. `whole_first`: a piece
    that is a token is taken before any merge. `add_bos`: prompts begin with the beginning-of-sequence token, unless the
    file says otherwise. `raw`: merges work on characters with marked spaces, not on bytes.
    """

    steps: tuple[str, ...]
    whole_first: bool = False
    add_bos: bool = False
    raw: bool = False


def _named(names: str, rules: Rules) -> dict[str, Rules]:
    return dict.fromkeys(names.split(), rules)


_RULES: Final[dict[str, Rules]] = {
    **_named(
        "gpt-2 gpt2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert jina-v1-en jina-en "
        "jina-v2-code roberta-bpe mpt olmo jais trillion granite-docling exaone4",
        Rules((_GPT2,)),
    ),
    **_named(
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
        Rules((_DIGIT, _GPT2)),
    ),
    **_named(
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        Rules((_LLAMA3,), whole_first=True, add_bos=True),
    ),
    **_named("dbrx smaug-bpe glm4 chatglm-bpe", Rules((_LLAMA3,))),
    **_named(
        "qwen2 stablelm2 deepseek-r1-qwen kormo f2llmv2 megrez hunyuan solar-open grok-2",
        Rules((_QWEN2,)),
    ),
    **_named("gpt-4o llama4 kanana2 talkie minimax-m2", Rules((_GPT4O,))),
    **_named("deepseek-v3 hunyuan-dense joyai-llm hy_v4", Rules(_DEEPSEEK3)),
    **_named("poro-chat bloom gpt3-finnish", Rules((_BLOOM,))),
    **_named("tiny_aya cohere2moe", Rules((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O))),
    **_named(
        "bailingmoe bailingmoe2 llada-moe",
        Rules((_words(_DIGIT, "'(?i:[sdmt]|ll|ve|re)|").replace(r"\s*[\r\n]+", r"\s*[\r\n]"),)),
    ),
    **_named("gemma4 granite-embed-multi-311m", Rules((_NEWLINES,), add_bos=True, raw=True)),
    "sarvam-moe": Rules((_NEWLINES,), raw=True),
    "whitespace": Rules((r"\S+",), raw=True),
    "default": Rules((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, _DIGITS, "[0-9][0-9][0-9]")),
    "falcon": Rules((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "tekken": Rules((_cased(_DIGIT, ""),), whole_first=True, add_bos=True),
    "granite-embed-multi-97m": Rules((_GPT4O,), whole_first=True),
    "qwen35": Rules(
        (
            rf"{_ANY_CASE}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
            + _SPACES,
        )
    ),
    "minicpm5": Rules((_THREE, _words(_DIGITS)), whole_first=True),
    "jais-2": Rules(
        (
            rf"{_ANY_CASE}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|"
            + "|".join(rf"\s{{{size}}}(?!\S)" for size in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2"))
            + r"|\s{1}",
        )
    ),
    "seed-coder": Rules((_words(_DIGIT, marks=r"[^\s\p{L}\p{N}\r\n]+"),)),
    "ufakzeka": Rules((_words(_DIGIT, ""),)),
    "laguna": Rules((_NEWLINES, _QWEN2)),
    "exaone-moe": Rules(
        (
            (
                rf"{_ANY_CASE}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
                r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
            ),
        )
    ),
    "viking": Rules((_BLOOM, _DIGIT)),
    "superbpe": Rules((_DIGITS, r"(?=(\d{3})+(?!\d))")),
    "kimi-k2": Rules((r"\p{Han}+|" + _cased(_THREE, marks=r"[\r\n]*", han=r"&&[^\p{Han}]"),)),
    "deepseek-llm": Rules(
        (
            r"[\r\n]",
            r"\s?" + _LETTERS_OF_CASES,
            r"\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
            r"\s+$",
            _IDEOGRAPHS,
            _DIGITS,
        )
    ),
    "deepseek-coder": Rules((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _IDEOGRAPHS, _DIGIT)),
    "spark2_5": Rules((_THREE, _CJK, rf"{_WORD_OR_MARKS}|[\r\n]|\s+(?!\S)|\s+", _DIGIT)),
    "youtu": Rules(
        (
            r"[\uAC00-\uD7A3\u3131-\u318E]+|[！…“”‘’—：；，\u3001-\u303F\uFE30-\uFE4F]+|[\u3105-\u312F]+|" + _CJK,
            _cased(_DIGIT),
        ),
        whole_first=True,
    ),
    "chameleon": Rules(
        (
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            _DIGIT,
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
        add_bos=True,
    ),
    "afmoe": Rules(
        (
            r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
            (
                r"[\u4E00-\u9FFF\u3400-\u4DBF\uF900-\uFAFF\u3040-\u309F\u30A0-\u30FF\uFF65-\uFF9F"
                r"\u2F00-\u2FDF\u0E00-\u0E7F"
                r"\u0E80-\u0EFF\u1780-\u17FF\u1000-\u109F\uAA60-\uAA7F\uA9E0-\uA9FF\uAC00-\uD7AF\u1100-\u11FF]+"
            ),
            rf"{_WORD_OR_MARKS}[\r\n]*" + _SPACES,
        )
    ),
}
NAMES: Final = tuple(_RULES)


def rules(name: str) -> Rules:
    """The rules of that name. Raises ModelError `unsupported` for a name not known here."""
    found = _RULES.get(name)
    if found is None:
        raise ModelError(
            "unsupported",
            f"The tokenizer splits text by the rules {name[:60]!r}, which this version does not know; "
            "use the model's checkpoint folder with its tokenizer.json.",
        )
    return found


def pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    """The splitter of that name. Raises ModelError `unsupported` for a name not known here."""
    found = rules(name)
    splits = [pre_tokenizers.Split(Regex(_plain(step)), "isolated") for step in found.steps]
    if found.raw:
        return pre_tokenizers.Sequence(splits)
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _plain(step: str) -> str:
    r"""Escapes `\uXXXX` as the letters themselves: the library's expressions do not know them."""
    return step.encode("raw_unicode_escape").decode("raw_unicode_escape") if "\\u" in step else step
