"""What a GGUF file says of its tokenizer (`tokenizer.ggml.*`), checked and completed as llama.cpp does it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from edged.core.errors import ModelError
from edged.models.formats.gguf import GgufFile
from edged.models.tokenizer.codec import Strips

MAX_TOKEN: Final = 2_000  # characters; the work for a token grows with the square of its length
UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6  # values of tokenizer.ggml.token_type; 1 is a normal token
# Ends of a turn or an answer: they end one whichever token the metadata names as the end, and whatever their type.
_ENDS: Final = frozenset(
    {
        "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|eot|>", "<end_of_turn>", "<turn|>", "<|return|>",
        "<|call|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_utterance>", "<|END_OF_TURN_TOKEN|>", "<|endofturn|>",
        "[|endofturn|]", "<\uff5cend\u2581of\u2581sentence\uff5c>", "<|fim_pad|>",
        "<|fim_repo|>", "<|repo_name|>", "<|file_sep|>",
    }
)  # fmt: skip
# These may be ordinary text (Gemma has `</s>` as a tag of HTML): they end an answer where they are control tokens.
_ENDS_IF_CONTROL: Final = frozenset(
    {"</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "[e~[", "<|flush|>", "<|calls|>", "<|tool_response>"}
)
_NONE: Final = frozenset({-1, (1 << 32) - 1, (1 << 64) - 1})  # how files write that there is no such token
_IDS: Final = ("bos", "eos", "eot", "eom", "unknown", "padding")
_SCORED_IDS: Final = {"bos": 1, "eos": 2, "unknown": 0}  # of vocabularies with scores, where the file does not say
_NOT_STRIPPING: Final = frozenset({"<unk>", "<s>", "<|endoftext|>"})


@dataclass(frozen=True)
class Vocabulary:
    """A file's tokens. `types` and `scores` are of each; `ids` those of special tokens, by llama.cpp's names.

    `control`: tokens that users cannot write. `whole`: tokens taken as one wherever a text contains their letters.
    `stops` end an answer.
    """

    tokens: list[str]
    types: list[int]
    scores: list[float]
    ids: Mapping[str, int]
    control: dict[str, int]
    whole: dict[str, int]
    stops: frozenset[int]
    strips: Strips

    @property
    def names(self) -> dict[str, str]:
        """The texts of special tokens, for a chat template."""
        return {f"{name}_token": self.tokens[token] for name, token in self.ids.items()}


def read_vocabulary(file: GgufFile, scored: bool) -> Vocabulary:
    """`scored`: a vocabulary with scores (SentencePiece). Raises ModelError `bad_model` for lists that do not fit."""
    tokens: list[str] = metadata_list(file, "tokens", str)
    types: list[int] = _of_each(file, "token_type", int, tokens, 1)
    scores: list[float] = _of_each(file, "scores", float, tokens, 0.0) if scored else []
    if (longest := max(map(len, tokens))) > MAX_TOKEN:
        raise ModelError(
            "bad_model", f"{file.path.name} has a token of {longest:,} characters; that is not a tokenizer."
        )
    ids = _special_ids(file, tokens, types, scored)
    control = _control(tokens, types, ids)
    whole = {
        token: at for at, token in enumerate(tokens) if types[at] == USER_DEFINED and token and control.get(token) != at
    }
    return Vocabulary(
        tokens, types, scores, ids, control, whole, _stops(control, types, ids), _strips(file, scored, control, whole)
    )


def ends_of_turns(ids: Mapping[str, int]) -> dict[str, int]:
    """Those of some tokens that end a turn or an answer, whatever the metadata says of them."""
    return {name: ids[name] for name in _ENDS & ids.keys()}


def metadata_list(file: GgufFile, key: str, kind: type) -> list[Any]:
    """The list `tokenizer.ggml.{key}`. Raises ModelError `bad_model` where it is missing, empty or of another kind."""
    value = file.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, list) or not value or not isinstance(value[0], kind) or isinstance(value[0], bool):
        raise ModelError(
            "bad_model", f"{file.path.name} has no list tokenizer.ggml.{key}; fetch or convert the model again."
        )
    return value


def metadata_flag(file: GgufFile, key: str, default: bool) -> bool:
    """The value `tokenizer.ggml.{key}`, true or false. Raises ModelError `bad_model` where it is anything else."""
    value = file.get(f"tokenizer.ggml.{key}", default)
    if not isinstance(value, bool):
        raise ModelError(
            "bad_model", f"{file.path.name} gives {str(value)[:60]!r} for tokenizer.ggml.{key}, not true or false."
        )
    return value


def _of_each(file: GgufFile, key: str, kind: type, tokens: list[str], default: Any) -> list[Any]:
    """A list with a value for each token; `default` for all where the file has no such list."""
    if file.get(f"tokenizer.ggml.{key}") is None:
        return [default] * len(tokens)
    integers = kind is float and type((file.get(f"tokenizer.ggml.{key}") or [None])[0]) is int
    values = metadata_list(file, key, int if integers else kind)
    if len(values) < len(tokens) or (kind is float and any(map(math.isnan, values))):
        raise ModelError(
            "bad_model",
            f"{file.path.name} lists {len(tokens)} tokens but {len(values)} values of tokenizer.ggml.{key}, or some "
            "that are no numbers; fetch the model again.",
        )
    return values


def _special_ids(file: GgufFile, tokens: list[str], types: list[int], scored: bool) -> dict[str, int]:
    ids: dict[str, int] = {}
    for name in _IDS:
        value = file.get(f"tokenizer.ggml.{name}_token_id")
        if value is None or value in _NONE:
            value = _SCORED_IDS.get(name) if scored else None
            if value is None or value >= len(tokens) or types[value] not in {UNKNOWN, CONTROL}:
                continue
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < len(tokens):
            raise ModelError(
                "bad_model",
                f"{file.path.name} gives {str(value)[:40]} for tokenizer.ggml.{name}_token_id, which is none of its "
                f"{len(tokens)} tokens; fetch it again.",
            )
        ids[name] = value
    return ids


def _control(tokens: list[str], types: list[int], ids: Mapping[str, int]) -> dict[str, int]:
    """Tokens that users cannot write: those typed so, ends of a turn, and special ones that look like a marker."""
    control = {token: at for at, token in enumerate(tokens) if types[at] in {CONTROL, UNKNOWN} and token}
    first = dict(zip(reversed(tokens), range(len(tokens) - 1, -1, -1), strict=True))
    for name in _ENDS & first.keys() - control.keys():
        control[name] = first[name]
    for at in ids.values():
        token = tokens[at]
        if token[:1] in {"<", "["} and token[-1:] in {">", "]"}:
            control.setdefault(token, at)
    return control


def _stops(control: Mapping[str, int], types: list[int], ids: Mapping[str, int]) -> frozenset[int]:
    stops = {ids[name] for name in ("eos", "eot", "eom") if name in ids}
    stops |= {control[name] for name in _ENDS & control.keys()}
    stops |= {control[name] for name in _ENDS_IF_CONTROL & control.keys() if types[control[name]] == CONTROL}
    named = {name for name, at in control.items() if at in stops}
    # gpt-oss and Solar end a part of an answer with `<|end|>`, and all of it with others.
    if {"<|return|>", "<|call|>", "<|end|>"} <= named or {"<|calls|>", "<|flush|>", "<|end|>"} <= named:
        stops.discard(control["<|end|>"])
    if {"<|tool_response>", "</s>"} <= named and ids.get("eos") != control["</s>"]:
        stops.discard(control["</s>"])  # Gemma 4's tag of HTML
    return frozenset(stops)


def _strips(file: GgufFile, scored: bool, control: Mapping[str, int], whole: Mapping[str, int]) -> Strips:
    """Phi-3's markers swallow the blanks behind them; GGUF files do not say so. Phi-3.5's do too, by its own
    tokenizer.json, though llama.cpp looks for `phi-3` in the name."""
    name = str(file.get("general.name", "")).lower()
    if not (scored and file.get("general.architecture") == "phi3") and "phi-3" not in name and "phi3" not in name:
        return Strips()
    return Strips(behind=frozenset(at for token, at in {**control, **whole}.items() if token not in _NOT_STRIPPING))
