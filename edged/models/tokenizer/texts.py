"""A model's tokenizer, chat template and architecture's name, read from a GGUF file or a model's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edged.core.errors import ModelError
from edged.models.formats.checkpoint import chat_template
from edged.models.formats.gguf import GgufFile, open_gguf
from edged.models.formats.packed import GGUF_TOKENIZER
from edged.models.tokenizer.codec import TextCodec
from edged.models.tokenizer.sources import codec_from_folder, codec_from_gguf, read_json
from edged.models.tokenizer.template import DEFAULT


@dataclass(frozen=True)
class Texts:
    """`template`: the chat template's source, of several each by its name; None where the model has none."""

    codec: TextCodec
    template: str | dict[str, str] | None
    architecture: str


def read_texts(path: Path) -> Texts:
    """Reads them with the tokenizers library. Raises ModelError `missing`, `unsupported` or `bad_model`."""
    file_path = path / GGUF_TOKENIZER if (path / GGUF_TOKENIZER).is_file() else path
    if file_path.is_file():
        file = open_gguf(file_path)
        codec, template = codec_from_gguf(file), _template(file)
        architecture = file.get("general.architecture", "unknown")
    else:
        codec, template = codec_from_folder(path), chat_template(path)
        architecture = read_json(path / "config.json").get("model_type", "unknown")
    return Texts(codec, template or None, str(architecture))


def _template(file: GgufFile) -> str | dict[str, str] | None:
    """`tokenizer.chat_template`, and those that `tokenizer.chat_templates` lists, at `tokenizer.chat_template.NAME`."""
    names = file.get("tokenizer.chat_templates")
    named = {name: file.get(f"tokenizer.chat_template.{name}") for name in names} if isinstance(names, list) else {}
    template = file.get("tokenizer.chat_template")
    found = {DEFAULT: template, **named} if template is not None else named
    for name, source in found.items():
        if not isinstance(source, str):
            where = "tokenizer.chat_template" + ("" if name == DEFAULT else f".{name}")
            raise ModelError("bad_model", f"{file.path.name} gives no text for {where}; fetch or convert it again.")
    return found if named else template
