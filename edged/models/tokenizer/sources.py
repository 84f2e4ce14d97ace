"""Where a model's tokenizer comes from: a GGUF file's metadata, or the tokenizer.json of a checkpoint folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from edged.core.errors import ModelError
from edged.models.formats.gguf import GgufFile
from edged.models.panics import panics_as
from edged.models.tokenizer.codec import LibrarySplitter, TextCodec
from edged.models.tokenizer.pretokenizers import pre_tokenizer, rules
from edged.models.tokenizer.token_bytes import SPACE, byte_level_bytes, sentencepiece_bytes

MAX_TOKENIZER_JSON: Final = 100_000_000
MAX_TOKEN: Final = 2_000  # characters; the work for a token grows with the square of its length
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # values of tokenizer.ggml.token_type
# Names of tokens that end a turn, whichever token the metadata names as the end of a sequence.
_TURN_ENDS: Final = frozenset(
    {
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|eot|>",
    }
)


@panics_as(lambda why: ModelError("bad_model", f"The file's tokenizer cannot be used ({why}); fetch the model again."))
def codec_from_gguf(file: GgufFile) -> TextCodec:
    """The tokenizer that a GGUF file describes (`gpt2`: byte-level merges; `llama`: SentencePiece).

    Raises ModelError `unsupported` for another kind, `bad_model` where the lists do not fit together.
    """
    kind = file.get("tokenizer.ggml.model")
    tokens: list[str] = _list(file, "tokenizer.ggml.tokens", str)
    types: list[int] = _list(file, "tokenizer.ggml.token_type", int, default=[1] * len(tokens))
    if len(types) != len(tokens):
        raise ModelError(
            "bad_model",
            f"{file.path.name} lists {len(tokens)} tokens but {len(types)} token types; fetch the model again.",
        )
    if (longest := max(map(len, tokens))) > MAX_TOKEN:
        raise ModelError(
            "bad_model", f"{file.path.name} has a token of {longest:,} characters; that is not a tokenizer."
        )
    control = {token: index for index, token in enumerate(tokens) if types[index] in {_CONTROL, _UNKNOWN} and token}
    whole = [token for index, token in enumerate(tokens) if types[index] == _USER_DEFINED and token]
    if kind == "gpt2":
        tokenizer, add_bos, to_bytes = _byte_level(file, tokens), False, byte_level_bytes
    elif kind == "llama":
        tokenizer, add_bos, to_bytes = _sentencepiece(file, tokens, types), True, sentencepiece_bytes
    else:
        raise ModelError(
            "unsupported", f"The tokenizer kind {kind!r} is not supported; use a checkpoint folder instead."
        )
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in whole])
    spelled = set(whole)
    table = [token.encode() if token in spelled else to_bytes(token) for token in tokens]
    ids = {
        name: file.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot", "eom", "unknown", "padding")
    }
    if any(not isinstance(token, int) or token >= len(tokens) for token in ids.values() if token is not None):
        raise ModelError("bad_model", f"{file.path.name} names a special token that it does not list; fetch it again.")
    stops = {ids[name] for name in ("eos", "eot", "eom")} | {control[name] for name in _TURN_ENDS & control.keys()}
    names = {f"{name}_token": tokens[token] for name, token in ids.items() if token is not None}
    bos = ids["bos"] if file.get("tokenizer.ggml.add_bos_token", add_bos) else None
    return TextCodec(LibrarySplitter(tokenizer), table, control, bos, frozenset(stops - {None}), names)


@panics_as(lambda why: ModelError("bad_model", f"tokenizer.json cannot be used ({why}); fetch the model again."))
def codec_from_folder(folder: Path) -> TextCodec:
    """The tokenizer of a checkpoint folder. Raises ModelError `missing` or `bad_model` for its tokenizer.json."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(
            "missing", f"{folder} has no tokenizer.json; save the tokenizer with the model (save_pretrained)."
        )
    if path.stat().st_size > MAX_TOKENIZER_JSON:
        raise ModelError("bad_model", f"{path} is larger than {MAX_TOKENIZER_JSON:,} bytes; that is not a tokenizer.")
    try:
        tokenizer = Tokenizer.from_str(path.read_text("utf-8"))
    except Exception as error:
        raise ModelError("bad_model", f"{path} cannot be read ({error}); fetch the model again.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    bos = _leading(tokenizer)
    tokenizer.encode_special_tokens = True
    added = tokenizer.get_added_tokens_decoder()
    control = {token.content: index for index, token in added.items() if token.special}
    decoder = tokenizer.decoder.__getstate__().decode() if tokenizer.decoder else ""
    if "ByteLevel" in decoder:
        to_bytes = byte_level_bytes
    elif SPACE in str(json.loads(f"[{decoder}]")) or "Metaspace" in decoder:
        to_bytes = sentencepiece_bytes
    else:
        raise ModelError(
            "unsupported", f"{path} is neither a byte-level nor a SentencePiece tokenizer; use another model."
        )
    table = [b""] * (max(tokenizer.get_vocab().values(), default=-1) + 1)
    for token, index in tokenizer.get_vocab().items():
        table[index] = token.encode() if index in added else to_bytes(token)
    config = read_json(folder / "tokenizer_config.json")
    names = {key: _content(value) for key, value in config.items() if key.endswith("_token") and _content(value)}
    stops = {control[name] for name in _TURN_ENDS & control.keys()}
    stops |= {control[name] for name in (names.get("eos_token"),) if name in control}
    for source in ("generation_config.json", "config.json"):
        ends = read_json(folder / source).get("eos_token_id")
        stops |= {end for end in (ends if isinstance(ends, list) else [ends]) if isinstance(end, int)}
    return TextCodec(LibrarySplitter(tokenizer), table, control, bos, frozenset(stops), names)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint folder; {} where the file is missing. Raises ModelError `bad_model`."""
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > MAX_TOKENIZER_JSON:
            raise ValueError("it is far too large")
        value = json.loads(path.read_text("utf-8"))
        if not isinstance(value, dict):
            raise TypeError("it is not an object")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ModelError("bad_model", f"{path} cannot be read ({error}); fetch the model again.") from error
    return value


def _byte_level(file: GgufFile, tokens: list[str]) -> Tokenizer:
    splitter = str(file.get("tokenizer.ggml.pre", "default"))
    merges = [tuple(merge.split(" ", 1)) for merge in _list(file, "tokenizer.ggml.merges", str)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    for pair in merges:
        if len(pair) != 2 or not {pair[0], pair[1], pair[0] + pair[1]} <= vocabulary.keys():
            raise ModelError(
                "bad_model",
                f"{file.path.name} has the merge {' '.join(pair)!r} of tokens that "
                "it does not list; fetch the model again.",
            )
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=rules(splitter).whole_first))
    tokenizer.pre_tokenizer = pre_tokenizer(splitter)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(file: GgufFile, tokens: list[str], types: list[int]) -> Tokenizer:
    """Merges in the order of the merged token's score, as SentencePiece's byte-pair models join their pieces."""
    scores: list[float] = _list(file, "tokenizer.ggml.scores", float)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(scores) != len(tokens):
        raise ModelError(
            "bad_model", f"{file.path.name} lists {len(tokens)} tokens but {len(scores)} scores; fetch the model again."
        )
    merges: list[tuple[float, int, str, str]] = []
    for index, token in enumerate(tokens):
        if types[index] == 1:
            halves = ((token[:at], token[at:]) for at in range(1, len(token)))
            merges += [
                (-scores[index], vocabulary[left], left, right)
                for left, right in halves
                if left in vocabulary and right in vocabulary
            ]
    merges.sort()
    unknown = file.get("tokenizer.ggml.unknown_token_id")
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            [(left, right) for _, _, left, right in merges],
            unk_token=tokens[unknown] if isinstance(unknown, int) and unknown < len(tokens) else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", SPACE)
    prefixed = file.get("tokenizer.ggml.add_space_prefix", True)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefixed else spaces
    return tokenizer


def _leading(tokenizer: Tokenizer) -> int | None:
    """The token that the tokenizer puts before every text, if it does."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    full: list[int] = tokenizer.encode("a", add_special_tokens=True).ids
    return full[0] if full and bare and full[0] != bare[0] else None


def _content(value: Any) -> str:
    """A token of tokenizer_config.json: a text, or an object with its `content`."""
    text = value.get("content") if isinstance(value, Mapping) else value
    return text if isinstance(text, str) else ""


def _list(file: GgufFile, key: str, kind: type, default: list[Any] | None = None) -> list[Any]:
    value = file.get(key, default)
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value[:1]) or not value:
        raise ModelError("bad_model", f"{file.path.name} has no list {key}; fetch or convert the model again.")
    return value
