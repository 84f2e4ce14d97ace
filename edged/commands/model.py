"""`edged model pull`, `list`, `show` and `remove`: the models on this device."""

from __future__ import annotations

import argparse
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from edged.command_line import reason, utf8
from edged.commands.configured import configured, store_folder
from edged.commands.model_prune import store_with_room
from edged.commands.progress import progress_bar
from edged.config import checks
from edged.config.schema import Settings
from edged.core.errors import EdgedError, ModelError
from edged.core.model_source import REMOTE, source_kind
from edged.engine.backends.native_open import kernels_here
from edged.engine.memory import available_bytes
from edged.models.own_sampling import own_sampling
from edged.models.store.catalog import CACHE_TOKENS, SPARE_MEMORY, CatalogEntry, catalog
from edged.models.store.download import Progress
from edged.models.store.locate import LocatedModel
from edged.models.store.packed_cache import forget, packed_model
from edged.models.store.pull import pull
from edged.models.store.store import Store, StoredModel

_DIGEST = "sha256: and 64 hex digits"
_FIGURES = {"size", "memory", "context"}
_WIDE = 120  # columns of a terminal
_Row = tuple[CatalogEntry, StoredModel | None]


def run(arguments: argparse.Namespace) -> int:
    """Run the given verb. Raises EdgedError."""
    values, settings, device = configured(arguments)
    root = store_folder(settings)
    if arguments.verb == "pull":
        digest = arguments.digest and checks.text(pattern=checks.DIGEST, like=_DIGEST)("--digest", arguments.digest)
        return model_pull(
            arguments.source,
            settings,
            store_with_room(values, settings, device),
            arguments.json,
            digest=digest,
            progress_as_json=arguments.progress,
            move=arguments.move,
        )
    if arguments.verb == "list":
        return model_list(root, arguments.json)
    if arguments.verb == "show":
        return model_show(arguments.name, root, arguments.json)
    return model_remove(arguments.name, root, arguments.json)


def model_pull(
    source: str,
    settings: Settings,
    store: Store,
    as_json: bool,
    *,
    digest: str | None = None,
    progress_as_json: bool = False,
    move: bool = False,
) -> int:
    """`edged model pull`: fetch and verify a model, and pack it if the native engine can run it. Raises ModelError."""
    with progress_bar(as_json=progress_as_json) as progress:
        model = _pulled(source, store, progress, digest, move=move)
        _pack(model, store.root, settings, progress)
    if as_json:
        print(json.dumps(_document(model), ensure_ascii=False))
    else:
        print(f"{model.name} is in the store: {model.digest}, {model.size / 1e6:.0f} MB, {model.licence}")
    return 0


def _pulled(
    source: str, store: Store, progress: Progress, digest: str | None = None, *, move: bool = False
) -> StoredModel:
    """A model brought into the store. Raises ModelError, also for what the system refuses; BadValue."""
    if source_kind(source) in REMOTE:
        utf8("the source", source)
    root = store.root
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"{root} cannot be written ({error.strerror}); run this as its owner, or set EDGED_STATE_DIR"
        raise ModelError("no_disk", why) from None
    try:
        return pull(source, store, progress, digest, move=move)
    except OSError as error:
        why = f"{source} cannot be pulled ({reason(error, source)}); check that this user may read it and write {root}"
        raise ModelError("unreachable", why) from None


def _pack(model: StoredModel, root: Path, settings: Settings, progress: Progress) -> None:
    """Pack a stored model before its first use. Why one cannot be packed is reported when it is loaded."""
    if settings.model.backend == "torch" or not _native_engine_runs():
        return
    located = LocatedModel(model.name, model.path, model.digest, "gguf", model.size)
    if model.path.is_dir():
        located = replace(located, format="checkpoint")
    with suppress(ModelError):
        packed_model(located, settings.model.bits, root, lambda _: progress(0, None, f"packing {model.name}"))


def model_list(root: Path, as_json: bool) -> int:
    """`edged model list`: the models in the store and those of the catalog, and which fit this board's memory."""
    store, available = Store(root), available_bytes()
    kept = {model.digest: model for model in store.list()}
    rows = [(entry, store.find(entry.key)) for entry in catalog().values()]
    offered = [entry for entry, model in rows if model is None]
    if as_json:
        entries = [_entry_document(entry, available) for entry in offered]
        document = {"models": [_document(m) for m in kept.values()], "catalog": entries, "available_bytes": available}
        print(json.dumps(document, ensure_ascii=False))
        return 0
    console = Console()
    others = [model for model in kept.values() if model.digest not in {stored.digest for _, stored in rows if stored}]
    console.print(_table(others, rows, available, console))
    console.print(
        f"\nmemory: weights, a cache for {CACHE_TOKENS:,} tokens and {_megabytes(SPARE_MEMORY)}, with the native "
        f"engine; {_megabytes(available)} are available here",
        highlight=False,
    )
    return 0


def _table(others: list[StoredModel], rows: list[_Row], available: int, console: Console) -> Table:
    """`others`: stored models that are not of the catalog. A narrow terminal shows neither context nor licence."""
    wide = console.width >= _WIDE
    table = Table(box=None, header_style="bold")
    for name in ("model", "stored", "size", "memory", "fits", *(("context", "licence") if wide else ()), "good at"):
        justify: Literal["left", "right"] = "right" if name in _FIGURES else "left"
        table.add_column(name, no_wrap=name not in {"licence", "good at"}, justify=justify)
    for model in others:
        table.add_row(model.name, "yes", _megabytes(model.size), "", "", *(("", model.licence) if wide else ()))
    for entry, stored in rows:
        size = (
            f"{'about ' if entry.approximate and not stored else ''}{_megabytes(stored.size if stored else entry.size)}"
        )
        table.add_row(
            entry.name,
            "yes" if stored else "no",
            size,
            _megabytes(entry.memory),
            "yes" if entry.memory <= available else "no",
            *((f"{entry.context:,}", entry.licence) if wide else ()),
            entry.about,
        )
    return table


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def _entry_document(entry: CatalogEntry, available: int) -> dict[str, Any]:
    return {
        "name": entry.name,
        "source": entry.source,
        "digest": entry.digest or None,
        "size_bytes": entry.size,
        "size_approximate": entry.approximate,
        "licence": entry.licence,
        "context": entry.context,
        "memory_bytes": entry.memory,
        "fits": entry.memory <= available,
        "about": entry.about,
    }


def model_show(name: str, root: Path, as_json: bool) -> int:
    """`edged model show`: the facts about a model; its bytes are hashed again. Raises EdgedError."""
    store = Store(root)
    model = _kept(store, name)
    whole = store.digest_matches(model)
    sampling = own_sampling(model.name, model.digest, model.path)
    document = {**_document(model), "sampling": sampling, "whole": whole}
    fix = f"edged model remove {model.name}, then edged model pull {model.name}"
    why = f"the bytes of {model.name} do not match its digest; run: {fix}"
    if as_json:
        error = {} if whole else {"error": {"code": "tampered", "message": why}}
        print(json.dumps({**document, **error}, ensure_ascii=False))
    else:
        settings = ", ".join(f"{key} {value:g}" for key, value in sampling.items())
        for key, value in {**document, "sampling": settings or "none of its own"}.items():
            print(f"{key:<11} {value}")
    if not whole:
        raise EdgedError(why)  # not a ModelError: with --json that would print a second document
    return 0


def model_remove(name: str, root: Path, as_json: bool) -> int:
    """`edged model remove`. Raises ModelError."""
    store = Store(root)
    model = _kept(store, name)
    try:
        store.remove(model)
    except OSError as error:
        why = f"{root} cannot be written ({error.strerror}); run this as its owner"
        raise ModelError("no_disk", f"{model.name} is not removed: {why}") from None
    forget(store.root, model.digest)
    print(json.dumps(_document(model), ensure_ascii=False) if as_json else f"{model.name} is removed")
    return 0


def _kept(store: Store, name: str) -> StoredModel:
    model = store.find(name)
    if model is None:
        names = ", ".join(sorted({kept.name for kept in store.list()})) or "none"
        raise ModelError("missing", f"no model {name} is in the store (there are: {names}); see edged model list")
    return model


def _document(model: StoredModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "source": model.source,
        "licence": model.licence,
        "digest": model.digest,
        "size_bytes": model.size,
        "path": str(model.path),
    }


def fetch_missing(source: str, root: Path) -> None:
    """Fetch a model of the catalog or of an address (`hf:`, URL) if it is not in the store yet."""
    entry = catalog().get(source)
    if (entry or source_kind(source) in REMOTE) and Store(root).find(entry.key if entry else source) is None:
        with progress_bar() as progress:
            _pulled(source, Store(root), progress)


def _native_engine_runs() -> bool:
    try:
        kernels_here()
    except ModelError:
        return False
    return True
