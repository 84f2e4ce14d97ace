"""The files of `hf:owner/name[/file][@revision]`, from Hugging Face's public HTTP API."""

from __future__ import annotations

import os
import re
import urllib.parse
from dataclasses import dataclass
from typing import Any, Final

from edged.core.errors import ModelError
from edged.models.store.download import Remote, fetch_json

_SOURCE: Final = re.compile(r"hf:([\w.-]+)/([\w.-]+)(?:/([\w./ -]+))?(?:@([\w./-]+))?")
_TEXTS: Final = frozenset(
    {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
     "model.safetensors.index.json", "chat_template.jinja"}
)  # fmt: skip


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
    listed = {str(entry.get("rfilename")): entry for entry in answer.get("siblings", [])}
    if file:
        chosen = [file] if file in listed else []
    else:
        chosen = [path for path in listed if "/" not in path and (path.endswith(".safetensors") or path in _TEXTS)]
    if not chosen or not (file or any(path.endswith(".safetensors") for path in chosen)):
        ggufs = sorted(path for path in listed if path.endswith(".gguf"))
        hint = f"; name one of its files: {', '.join(ggufs[:8])}" if ggufs and not file else "; check its name"
        raise ModelError("missing", f"{owner}/{name} has no {file or 'safetensors files'}{hint}.")
    names = [path.rsplit("/", 1)[-1] for path in chosen]
    if len({short.casefold() for short in names}) < len(names) or any(short.startswith(".") for short in names):
        raise ModelError(
            "unsupported", f"{owner}/{name} has several files of one name, or hidden ones; download the files yourself."
        )
    commit = urllib.parse.quote(str(answer.get("sha") or revision or "main"), safe="")
    files = {
        short: _remote(f"{base}/{owner}/{name}/resolve/{commit}/{urllib.parse.quote(path)}", path, listed[path])
        for short, path in zip(names, chosen, strict=True)
    }
    size = sum(remote.size or 0 for remote in files.values())
    return HubPlan(files, file is None, size, _licence(answer))


def _remote(url: str, what: str, entry: dict[str, Any]) -> Remote:
    large = entry.get("lfs") or {}
    size = large.get("size", entry.get("size"))
    return Remote(url, what, size if isinstance(size, int) else None, large.get("sha256"))


def _licence(answer: dict[str, Any]) -> str:
    card = answer.get("cardData") or {}
    return str(card.get("license") or "unknown") if isinstance(card, dict) else "unknown"
