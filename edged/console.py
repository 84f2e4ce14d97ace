"""What `edged` shows of models on a terminal: progress bars, tables, an answer as it streams. Log lines elsewhere."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from rich.markup import escape

from edged.core.errors import EdgedError, ModelError, PromptRefused
from edged.core.prompt import Chunk, Final, Request, Sampling, Turn
from edged.core.settings import SAMPLING, Settings
from edged.models.catalog import catalog
from edged.models.download import Progress
from edged.models.fetch import pull
from edged.models.locate import LocatedModel
from edged.models.packed_cache import forget, packed_model
from edged.models.store import Store, StoredModel
from edged.words import reason, text_or_input, utf8

REMOTE = ("hf:", "http://", "https://")

_LINE_EVERY = 5.0  # seconds between two log lines of one piece of work


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress bar on a terminal's stderr, a log line now and then elsewhere."""
    if not sys.stderr.isatty():
        yield _log_lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(done: int, total: int | None, what: str) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield show


def _log_lines() -> Progress:
    said: dict[str, float] = {}

    def show(done: int, total: int | None, what: str) -> None:
        now = time.monotonic()
        if what in said and now - said[what] < _LINE_EVERY and done != total:
            return
        said[what] = now
        share = f" {done / total:.0%} of {total / 1e6:.0f} MB" if total else ""
        print(f"{what}{share}", file=sys.stderr, flush=True)

    return show


def model_pull(source: str, settings: Settings, as_json: bool) -> int:
    """`edged model pull`: fetches, verifies, and packs for the native engine what that can run. Raises ModelError."""
    root = Path(settings.state_dir) / "models"
    with progress_bar() as progress:
        model = _pulled(source, root, progress)
        _pack(model, root, settings, progress)
    if as_json:
        print(json.dumps(_document(model), ensure_ascii=False))
    else:
        print(f"{model.name} is here: {model.digest}, {model.size / 1e6:.0f} MB, {model.licence}")
    return 0


def _pulled(source: str, root: Path, progress: Progress) -> StoredModel:
    """A model brought into the store at `root`. Raises ModelError, also for what the system refuses; BadValue."""
    if source.startswith(REMOTE):
        utf8("the source", source)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"{root} cannot be written ({error.strerror}); run this as the owner of state_dir, or set EDGED_STATE_DIR"
        raise ModelError("no_disk", why) from None
    try:
        return pull(source, Store(root), progress)
    except OSError as error:
        why = f"{source} cannot be pulled ({reason(error, source)}); see that this user may read it and write {root}"
        raise ModelError("unreachable", why) from None


def _pack(model: StoredModel, root: Path, settings: Settings, progress: Progress) -> None:
    """Packs a stored model ahead of its first use. What cannot be packed is told when it is loaded."""
    if settings.model.backend == "torch" or _kernels()[0] is None:
        return
    located = LocatedModel(model.name, model.path, model.digest, "gguf", model.size)
    if model.path.is_dir():
        located = replace(located, format="checkpoint")
    with suppress(ModelError):
        packed_model(located, settings.model.bits, root, lambda _: progress(0, None, f"packing {model.name}"))


def model_list(root: Path, as_json: bool) -> int:
    """`edged model list`: what is kept, and what the catalog offers beside it."""
    kept = Store(root).list()
    offered = [entry for entry in catalog().values() if entry.digest not in {model.digest for model in kept}]
    if as_json:
        entries = [{"name": e.name, "digest": e.digest, "size_bytes": e.size, "licence": e.licence} for e in offered]
        print(json.dumps({"models": [_document(m) for m in kept], "catalog": entries}, ensure_ascii=False))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "here", "size", "licence", "digest", box=None, header_style="bold")
    for model in kept:
        table.add_row(model.name, "yes", f"{model.size / 1e6:.0f} MB", model.licence, model.digest[:19] + "…")
    for entry in offered:
        table.add_row(entry.name, "no", f"{entry.size / 1e6:.0f} MB", entry.licence, entry.digest[:19] + "…")
    Console().print(table)
    return 0


def model_show(name: str, root: Path, as_json: bool) -> int:
    """`edged model show`: what is known of a model, its bytes hashed again. Raises EdgedError."""
    store = Store(root)
    model = _kept(store, name)
    whole = store.is_whole(model)
    document = {**_document(model), "whole": whole}
    mend = f"edged model remove {model.name}, then edged model pull {model.name}"
    why = f"the bytes of {model.name} are not those of its digest; run: {mend}"
    if as_json:
        error = {} if whole else {"error": {"code": "tampered", "message": why}}
        print(json.dumps({**document, **error}, ensure_ascii=False))
    else:
        for key, value in document.items():
            print(f"{key:<11} {value}")
    if not whole:
        raise EdgedError(why)  # no ModelError: with --json that is a document, and the one is printed
    return 0


def model_remove(name: str, root: Path, as_json: bool) -> int:
    """`edged model remove`. Raises ModelError."""
    store = Store(root)
    model = _kept(store, name)
    try:
        store.remove(model)
    except OSError as error:
        why = f"{root} cannot be written ({error.strerror}); run this as the owner of state_dir"
        raise ModelError("no_disk", f"{model.name} is not removed: {why}") from None
    forget(store.root, model.digest)
    print(json.dumps(_document(model), ensure_ascii=False) if as_json else f"{model.name} is removed")
    return 0


def _kept(store: Store, name: str) -> StoredModel:
    model = store.find(name)
    if model is None:
        names = ", ".join(sorted({kept.name for kept in store.list()})) or "none"
        raise ModelError("missing", f"no model {name} is kept here (there are: {names}); see edged model list")
    return model


def doctor(settings: Settings, device: str, as_json: bool) -> int:
    """`edged doctor`: facts and what to mend; exit code 1 where something must be mended."""
    from edged.agent.doctor import examine

    store = Store(Path(settings.state_dir) / "models")
    entry = catalog().get(settings.model.source)
    kept = store.find(settings.model.source)
    kernels, why = _kernels()
    advice = examine(settings, device, kept.size if kept else entry.size if entry else None, kernels, why)
    if as_json:
        print(json.dumps({"advice": msgspec.to_builtins(advice)}, ensure_ascii=False))
    else:
        from rich.console import Console

        marks = {"ok": "[green]ok  [/]", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}
        console = Console(highlight=False)
        for fact in advice:
            console.print(f"{marks[fact.status]} {escape(fact.fact)}")
            if fact.mend:
                console.print(f"     [dim]→[/] {escape(fact.mend)}")
    return 1 if any(fact.status == "fail" for fact in advice) else 0


def _kernels() -> tuple[str | None, str]:
    """The native engine's kernels that run here, or None and why there are none."""
    from edged.engine.backends.native_open import kernels_here

    try:
        return kernels_here(), ""
    except ModelError as error:
        return None, str(error).rstrip(".")


def _document(model: StoredModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "source": model.source,
        "licence": model.licence,
        "digest": model.digest,
        "size_bytes": model.size,
        "path": str(model.path),
    }


def generate(arguments: argparse.Namespace, settings: Settings) -> int:
    """`edged generate`: one prompt, its answer as it streams. Raises EdgedError, BadValue."""
    from edged.engine import load_model

    sampling = Sampling(
        max_tokens=SAMPLING["max_tokens"]("--max-tokens", arguments.max_tokens),
        temperature=SAMPLING["temperature"]("--temperature", arguments.temperature),
        seed=None if arguments.seed is None else SAMPLING["seed"]("--seed", arguments.seed),
    )
    text = text_or_input("TEXT", arguments.text)
    root = Path(settings.state_dir) / "models"
    _fetch(arguments.model, root)
    try:
        model = load_model(
            arguments.model,
            arguments.backend,
            context=settings.model.context,
            threads=settings.model.threads,
            bits=settings.model.bits,
            store_root=root,
            on_progress=_doing,
        )
    except OSError as error:
        why = reason(error, arguments.model)
        raise ModelError("unreachable", f"{arguments.model} cannot be read ({why}); name a model that can") from None
    request = Request(
        turns=() if arguments.raw else (Turn("user", text),), raw=text if arguments.raw else None, sampling=sampling
    )
    if model.info.fallback:
        print(f"edged: the torch backend computes: {model.info.fallback}", file=sys.stderr)
    for piece in model.generate(request):
        if isinstance(piece, Chunk):
            if not arguments.json:
                print(piece.text, end="", flush=True)
        elif arguments.json:
            print(json.dumps(_answer(piece, model.info.name, model.info.quantization), ensure_ascii=False))
        else:
            print()
            _summary(piece)
        if isinstance(piece, Final) and piece.reason not in {"stop", "length"}:
            raise PromptRefused(piece.reason, "engine", f"the answer ended as {piece.reason}")
    return 0


def _fetch(source: str, root: Path) -> None:
    """What stands in the catalog or at an address and is not in the store is fetched first, as the daemon does."""
    entry = catalog().get(source)
    if (entry or source.startswith(REMOTE)) and Store(root).find(entry.digest if entry else source) is None:
        with progress_bar() as progress:
            _pulled(source, root, progress)


def _doing(what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[2m{what} …\x1b[0m\x1b[K\r", end="", file=sys.stderr, flush=True)


def _answer(final: Final, model: str, quantization: str) -> dict[str, Any]:
    return {
        "reason": final.reason,
        "text": final.text,
        "usage": {
            "prompt_tokens": final.usage.prompt_tokens,
            "cached_tokens": final.usage.cached_tokens,
            "completion_tokens": final.usage.completion_tokens,
        },
        "prefill_ms": round(final.prefill_ms, 1),
        "decode_ms": round(final.decode_ms, 1),
        "seed": final.seed,
        "model": model,
        "quantization": quantization,
    }


def _summary(final: Final) -> None:
    tokens = final.usage.completion_tokens
    speed = f", {(tokens - 1) / final.decode_ms * 1000:.1f} tokens/s" if tokens > 1 and final.decode_ms else ""
    print(f"— {final.reason}, {tokens} tokens{speed}", file=sys.stderr)
