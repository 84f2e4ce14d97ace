"""How a text is split before byte-pair merges, by the name in a GGUF file's `tokenizer.ggml.pre`.

The expressions are facts of the tokenizers that models were trained with, as listed in llama.cpp's `llama-vocab.cpp`
and in the models' own `tokenizer.json` files; they are checked against recorded token ids where there are any.
"""

from __future__ import annotations

from typing import Final

from tokenizers import Regex, pre_tokenizers

from edged.core.errors import ModelError

_GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2: Final = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN: Final = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# name → the expressions, applied one after the other to what the one before left
_STEPS: Final[dict[str, tuple[str, ...]]] = (
    dict.fromkeys(("gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jina-en", "roberta-bpe"), (_GPT2,))
    | dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "command-r", "exaone"), (r"\p{N}", _GPT2))
    | dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "llama4", "falcon3", "smaug-bpe", "dbrx"), (_LLAMA3,))
    | dict.fromkeys(("qwen2", "qwen35", "stablelm2", "deepseek-r1-qwen", "hunyuan", "megrez"), (_QWEN2,))
    | {
        "tekken": (_TEKKEN,),
        "default": (r"[\p{P}\$\+<=>\^~\|]+", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+|\s+(?!\S)", r"\p{N}+"),
    }
)
# These look a whole piece up in the vocabulary before they merge.
IGNORE_MERGES: Final = frozenset({"llama-bpe", "llama3", "llama-v3", "llama4", "falcon3", "tekken"})


def pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    """The splitter of that name. Raises ModelError `unsupported` for a name not known here."""
    steps = _STEPS.get(name)
    if steps is None:
        raise ModelError(
            "unsupported",
            f"The tokenizer splits text by the rules {name!r}, which this version does not know; "
            "use the model's checkpoint folder with its tokenizer.json.",
        )
    splits = [pre_tokenizers.Split(Regex(step), "isolated") for step in steps]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
