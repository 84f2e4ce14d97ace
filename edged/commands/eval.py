"""`edged eval`: how well a model predicts a text, and what quantization cost."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

from edged.commands.configured import configured, store_folder
from edged.commands.progress import StepLine
from edged.config.schema import Settings
from edged.core.errors import EdgedError
from edged.engine import Model, load_model
from edged.engine.backends.native_model import usable_cores
from edged.measure.eval import Predictor, Quality, evaluate, windows
from edged.measure.peer import LlamaPeer
from edged.models.formats.packed import is_packed
from edged.models.store.locate import locate
from edged.models.store.store import Store


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, and print a table or one JSON document. Raises EdgedError."""
    _, settings, _ = configured(arguments)
    models = store_folder(settings)
    try:
        text = Path(arguments.file).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EdgedError(f"{arguments.file} cannot be read as UTF-8 text ({error})") from None
    model = _load(arguments.model, arguments.backend, arguments.window, settings, models)
    cut = windows(model.codec.encode(text, False), arguments.window, arguments.windows)
    named: dict[str, Predictor] = {_name(model): model}
    reference = _reference(arguments, model, settings, models) if arguments.reference else None
    with ExitStack() as stack:
        if arguments.peer or arguments.peer_python:
            path = locate(arguments.model, None, Store(models)).path
            threads = settings.model.threads or usable_cores()
            peer = LlamaPeer(path, threads, arguments.window, arguments.peer_python or sys.executable)
            stack.callback(peer.close)
            named[str(peer.about["name"])] = peer
        found = evaluate(cut, named, reference, StepLine())
    if arguments.json:
        document = {"tokens": len(cut) * (arguments.window - 1), "models": [quality.document() for quality in found]}
        print(json.dumps(document, ensure_ascii=False))
    else:
        _show(found, len(cut), arguments.window)
    return 0


def _reference(arguments: argparse.Namespace, model: Model, settings: Settings, models: Path) -> tuple[str, Predictor]:
    """The reference, computed in float32 by torch; a packed folder by the native engine, since torch cannot read it."""
    backend = "native" if is_packed(Path(arguments.reference)) else "torch"
    exact = _load(arguments.reference, backend, arguments.window, settings, models, exact=True)
    if exact.codec.vocabulary != model.codec.vocabulary:
        raise EdgedError("the reference has another vocabulary; give a model of the same family")
    return f"reference: {_name(exact)}", exact


def _name(model: Model) -> str:
    return f"{model.info.name}, {model.info.backend}, {model.info.quantization}"


def _load(source: str, backend: str, context: int, settings: Settings, models: Path, exact: bool = False) -> Model:
    return load_model(
        source,
        backend,
        context=context,
        threads=settings.model.threads,
        store_root=models,
        on_progress=StepLine(),
        exact=exact,
    )


def _show(found: Sequence[Quality], count: int, window: int) -> None:
    table = Table("", "perplexity", "against the reference", "mean KL", "top-1", box=None, header_style="bold")
    for quality in found:
        cells = [f"{quality.perplexity.value:.3f} ({quality.perplexity.low:.3f} – {quality.perplexity.high:.3f})"]
        if quality.ratio and quality.kl and quality.top1:
            ratio, kl, top = quality.ratio, quality.kl, quality.top1
            cells.append(f"{ratio.value - 1:+.2%} ({ratio.low - 1:+.2%} – {ratio.high - 1:+.2%})")
            cells.append(f"{kl.value:.5f} ({kl.low:.5f} – {kl.high:.5f})")
            cells.append(f"{top.value:.4f} ({top.low:.4f} – {top.high:.4f})")
        table.add_row(quality.name, *cells)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    console.print(table)
    console.print(f"[dim]{count} windows of {window} tokens; 95 % intervals in parentheses[/]")
