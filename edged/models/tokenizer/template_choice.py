"""Which chat template a model gets: its own, one that the config names, or a built-in one that fits its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final

from edged.core.chat_templates import AUTO, BUILT_IN, is_file
from edged.core.errors import ModelError
from edged.models.tokenizer.codec import TextCodec
from edged.models.tokenizer.template import MAX_SOURCE, ChatTemplate
from edged.models.tokenizer.template_check import check_template

OWN: Final = "model"
FILE: Final = "file"
Source = str | Mapping[str, str]
"""A template, or several by name."""

# The first whose texts are control tokens of the model is taken; llama2 has none of its own.
_MARKS: Final[Mapping[str, tuple[str, ...]]] = {
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "phi4": ("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "command-r": ("<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>"),
    "granite": ("<|start_of_role|>", "<|end_of_role|>"),
    "deepseek": ("<｜User｜>", "<｜Assistant｜>"),
    "exaone": ("[|user|]", "[|assistant|]", "[|endofturn|]"),
    "glm4": ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>"),
    "phi3": ("<|user|>", "<|assistant|>", "<|end|>"),
    "zephyr": ("<|user|>", "<|assistant|>"),
    "mistral": ("[INST]", "[/INST]"),
}


@dataclass(frozen=True)
class ChosenTemplate:
    """`template` None: only raw prompts can be answered, for the reason `problem` where the model has a template.

    `name`: `model` for the model's own, `file`, a built-in one's name, "" for none.
    """

    template: ChatTemplate | None
    name: str = ""
    problem: str = ""


def choose_template(wanted: str, own: Source | None, codec: TextCodec) -> ChosenTemplate:
    """`wanted` is `model.template`: `auto`, a built-in template's name, or a file.

    A template that cannot be rendered is no error: the model then answers raw prompts.
    """
    try:
        if wanted == AUTO and own:
            return ChosenTemplate(_checked(own, codec.names), OWN)
        if is_file(wanted):
            return ChosenTemplate(_checked(_read(Path(wanted).expanduser()), codec.names), FILE)
    except ModelError as error:
        advice = f"only raw prompts are answered; set model.template to a file or to one of {', '.join(BUILT_IN)}"
        return ChosenTemplate(None, problem=f"{str(error).removesuffix('; use another model.')}; {advice}")
    name = fitting(codec) if wanted == AUTO else wanted
    return ChosenTemplate(built_in(name, codec.names), name) if name else ChosenTemplate(None)


def fitting(codec: TextCodec) -> str:
    """The built-in template whose marks are single tokens of this model; "" for none."""

    def is_token(text: str) -> bool:
        return text in codec.control or len(codec.encode(text, specials=True)) == 1

    return next((name for name, marks in _MARKS.items() if all(map(is_token, marks))), "")


def built_in(name: str, names: Mapping[str, str]) -> ChatTemplate:
    """A built-in template, for a model with these special tokens. Raises ModelError `bad_model` for another name."""
    if name not in BUILT_IN:
        raise ModelError("bad_model", f"There is no built-in chat template {name}; use one of {', '.join(BUILT_IN)}.")
    return ChatTemplate(_source(name), names)


@cache
def _source(name: str) -> str:
    return files("edged.models.tokenizer").joinpath(f"templates/{name}.jinja").read_text("utf-8")


def _checked(source: Source, names: Mapping[str, str]) -> ChatTemplate:
    check_template(source, names)
    return ChatTemplate(source, names)


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(MAX_SOURCE + 1)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ModelError("bad_model", f"model.template {path} cannot be read ({why})") from error
