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
from edged.models.tokenizer.codec import LibrarySplitter, Splitter, Strips, TextCodec
from edged.models.tokenizer.pretokenizers import pre_tokenizer, rules
from edged.models.tokenizer.scores import ScoreSplitter
from edged.models.tokenizer.token_bytes import SPACE, byte_level_bytes, sentencepiece_bytes
from edged.models.tokenizer.vocabulary import (
    BYTE,
    CONTROL,
    UNKNOWN,
    Vocabulary,
    ends_of_turns,
    metadata_flag,
    metadata_list,
    read_vocabulary,
)

MAX_TOKENIZER_JSON: Final = 100_000_000


@panics_as(lambda why: ModelError("bad_model", f"The file's tokenizer cannot be used ({why}); fetch the model again."))
def codec_from_gguf(file: GgufFile) -> TextCodec:
    """The tokenizer that a GGUF file describes: `gpt2` (byte-level merges), `llama` (scores) or `gemma4` (merges of
    characters).

    Raises ModelError `unsupported` for another kind, `bad_model` where the lists do not fit together.
    """
    kind = file.get("tokenizer.ggml.model")
    if not isinstance(kind, str) or kind not in {"gpt2", "llama", "gemma4"}:
        raise ModelError(
            "unsupported",
            f"The tokenizer kind {str(kind)[:60]!r} is not supported; use a checkpoint folder with a tokenizer.json.",
        )
    vocabulary = read_vocabulary(file, scored=kind == "llama")
    if kind == "llama":
        splitter: Splitter = _by_score(file, vocabulary)
        add_bos, to_bytes = True, sentencepiece_bytes
    else:
        name = "gemma4" if kind == "gemma4" else file.get("tokenizer.ggml.pre", "default")
        splitter = LibrarySplitter(_by_merges(file, vocabulary, str(name)))
        add_bos = rules(str(name)).add_bos
        to_bytes = sentencepiece_bytes if rules(str(name)).raw else byte_level_bytes
    table = [token.encode() if token in vocabulary.whole else to_bytes(token) for token in vocabulary.tokens]
    bos = vocabulary.ids.get("bos") if metadata_flag(file, "add_bos_token", add_bos) else None
    return TextCodec(splitter, table, vocabulary.control, bos, vocabulary.stops, vocabulary.names, vocabulary.strips)


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
    control |= ends_of_turns(tokenizer.get_vocab())
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
    stops = set(ends_of_turns(control).values())
    stops |= {control[name] for name in (names.get("eos_token"),) if name in control}
    for source in ("generation_config.json", "config.json"):
        ends = read_json(folder / source).get("eos_token_id")
        stops |= {end for end in (ends if isinstance(ends, list) else [ends]) if isinstance(end, int)}
    strips = Strips(
        frozenset(index for index, token in added.items() if token.lstrip and index in control.values()),
        frozenset(index for index, token in added.items() if token.rstrip and index in control.values()),
    )
    return TextCodec(LibrarySplitter(tokenizer), table, control, bos, frozenset(stops), names, strips)


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


def _by_merges(file: GgufFile, vocabulary: Vocabulary, name: str) -> Tokenizer:
    """Merges in the order of the file's list, of bytes or (by the rules `name`) of characters."""
    found, raw = rules(name), rules(name).raw
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    merges = []
    for merge in metadata_list(file, "merges", str):
        at = merge.find(" ", 1)
        left, right = merge[: max(at, 0)], merge[at + 1 :]
        if at < 0 or not {left, right, left + right} <= ids.keys():
            raise ModelError(
                "bad_model",
                f"{file.path.name} has the merge {merge[:60]!r} of tokens that it does not list; fetch it again.",
            )
        merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(ids, merges, ignore_merges=found.whole_first, byte_fallback=raw))
    tokenizer.pre_tokenizer = pre_tokenizer(name)
    whole = dict(vocabulary.whole)
    if raw:
        tokenizer.normalizer = normalizers.Replace(" ", SPACE)
        whole |= {token: at for token, at in ids.items() if len(token) > 1 and not token.strip("\n")}
    else:
        tokenizer.decoder = decoders.ByteLevel()
    strips = vocabulary.strips
    tokenizer.add_tokens(
        [
            AddedToken(token, normalized=False, lstrip=at in strips.before, rstrip=at in strips.behind)
            for token, at in whole.items()
        ]
    )
    return tokenizer


def _by_score(file: GgufFile, vocabulary: Vocabulary) -> ScoreSplitter:
    tokens, types = vocabulary.tokens, vocabulary.types
    apart = {CONTROL, UNKNOWN, BYTE}
    control = frozenset(vocabulary.control.values())
    pieces = {token: at for at, token in enumerate(tokens) if token and types[at] not in apart and at not in control}
    ids = {token: at for at, token in enumerate(tokens)}
    letters = [ids.get(f"<0x{byte:02X}>", ids.get(chr(byte), -1) if byte < 128 else -1) for byte in range(256)]
    return ScoreSplitter(
        pieces,
        vocabulary.scores,
        letters,
        vocabulary.ids.get("unknown"),
        vocabulary.whole,
        metadata_flag(file, "add_space_prefix", True),
    )


def _leading(tokenizer: Tokenizer) -> int | None:
    """The token that the tokenizer puts before every text, if it does."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    full: list[int] = tokenizer.encode("a", add_special_tokens=True).ids
    return full[0] if full and bare and full[0] != bare[0] else None


def _content(value: Any) -> str:
    """A token of tokenizer_config.json: a text, or an object with its `content`."""
    text = value.get("content") if isinstance(value, Mapping) else value
    return text if isinstance(text, str) else ""
