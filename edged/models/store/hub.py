"""The files of `hf:owner/name[/file][@revision]`, from Hugging Face's public HTTP API."""

from __future__ import annotations

import os
import re
import urllib.parse
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec

from edged.core.errors import ModelError
from edged.models.store.download import Remote, fetch_json

_SOURCE: Final = re.compile(r"hf:([\w.-]+)/([\w.-]+)(?:/([\w./ -]+))?(?:@([\w./-]+))?")
_TEXTS: Final = frozenset(
    {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
     "model.safetensors.index.json", "chat_template.jinja"}
)  # fmt: skip


_Size = Annotated[int, msgspec.Meta(ge=0)]


class _Large(msgspec.Struct):
    """A large file of a repository, as the API lists it."""

    size: _Size | None = None
    sha256: str | None = None


class _Entry(msgspec.Struct):
    """A file of a repository, as the API lists it."""

    rfilename: str
    size: _Size | None = None
    lfs: _Large | None = None


class _Answer(msgspec.Struct):
    """What is used of the API's answer about a repository at a revision."""

    siblings: list[_Entry] = []
    sha: str | None = None
    cardData: Any = None  # noqa: N815  - the API's name


@dataclass(frozen=True)
class HubPlan:
    """Files by their name in the model's folder. `whole`: a checkpoint folder, else one GGUF file. `size` in bytes."""

    files: dict[str, Remote]
    whole: bool
    size: int
    licence: str


def hub_files(source: str) -> HubPlan:
    """The files of a source at a fixed commit. Raises ModelError `missing`, `unreachable`, `unsupported`."""
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise ModelError(
            "missing",
            f"{source} is not of the form hf:owner/name, hf:owner/name/file or either with @revision; correct it.",
        )
    owner, name, file, revision = match.groups()
    base = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    quoted = urllib.parse.quote(revision or "main", safe="")
    answer = fetch_json(
        f"{base}/api/models/{owner}/{name}/revision/{quoted}?blobs=true", "application/json", f"{owner}/{name}"
    )
    known = _answer(answer, f"{owner}/{name}", base)
    listed = {entry.rfilename: entry for entry in known.siblings}
    if file:
        chosen = [file] if file in listed else []
    else:
        chosen = [path for path in listed if "/" not in path and (path.endswith(".safetensors") or path in _TEXTS)]
    if not chosen or not (file or any(path.endswith(".safetensors") for path in chosen)):
        ggufs = sorted(path for path in listed if path.endswith(".gguf"))
        hint = f"; name one of its files: {', '.join(ggufs[:8])}" if ggufs and not file else "; check its name"
        raise ModelError("missing", f"{owner}/{name} has no {file or 'safetensors files'}{hint}.")
    names = [path.rsplit("/", 1)[-1] for path in chosen]
    if len({short.casefold() for short in names}) < len(names) or any(short[:1] in {"", "."} for short in names):
        raise ModelError(
            "unsupported", f"{owner}/{name} has several files of one name, or hidden ones; download the files yourself."
        )
    commit = urllib.parse.quote(known.sha or revision or "main", safe="")
    files = {
        short: _remote(f"{base}/{owner}/{name}/resolve/{commit}/{urllib.parse.quote(path)}", path, listed[path])
        for short, path in zip(names, chosen, strict=True)
    }
    size = sum(remote.size or 0 for remote in files.values())
    return HubPlan(files, file is None, size, _licence(known.cardData))


def _answer(answer: Any, what: str, base: str) -> _Answer:
    try:
        return msgspec.convert(answer, _Answer)
    except msgspec.ValidationError as error:
        raise ModelError(
            "unreachable", f"The answer of {base} about {what} cannot be read ({error}); try again later."
        ) from error


def _remote(url: str, what: str, entry: _Entry) -> Remote:
    if entry.lfs is not None:
        return Remote(url, what, entry.lfs.size if entry.lfs.size is not None else entry.size, entry.lfs.sha256)
    return Remote(url, what, entry.size)


def _licence(card: Any) -> str:
    return str(card.get("license") or "unknown") if isinstance(card, dict) else "unknown"
