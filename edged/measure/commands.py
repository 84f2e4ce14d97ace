"""The commands `edged pack`, `edged bench` and `edged eval`: words in, tables or one JSON document out."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from edged.core.errors import BadValue, EdgedError
from edged.core.settings import Settings
from edged.engine import Model, load_model
from edged.engine.backends.native_model import usable_cores
from edged.engine.backends.native_open import kernels_here
from edged.measure import bench_report
from edged.measure.awake import awake
from edged.measure.bench import PeerOrder, bench
from edged.measure.peer import LlamaPeer
from edged.measure.quality import Predictor, Quality, evaluate, windows
from edged.models.locate import locate
from edged.models.pack import open_source, pack, pack_shape
from edged.models.packed import is_packed, open_packed
from edged.models.packed_cache import CHECKPOINT_BITS, packed_model
from edged.models.store import Store

SAY_EVERY = 10.0  # seconds


class Doing:
    """Says what takes long: one line that is written over on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._said = -SAY_EVERY

    def __call__(self, what: str) -> None:
        """`what` is done now."""
        if sys.stderr.isatty():
            print(f"\r\x1b[2m{what} …\x1b[0m\x1b[K\r", end="", file=sys.stderr, flush=True)
        elif (now := time.monotonic()) - self._said >= SAY_EVERY:
            self._said = now
            print(f"{what} …", file=sys.stderr, flush=True)


doing = Doing()


def pack_command(arguments: argparse.Namespace, models: Path) -> int:
    """`edged pack`. Raises EdgedError."""
    wanted = 1 if arguments.shape else 2
    if len(arguments.paths) != wanted:
        raise BadValue("edged pack", "takes SOURCE DEST, or --shape NAME DEST")
    if arguments.tokenizer and not arguments.shape:
        raise BadValue("--tokenizer", "goes with --shape; a model has its own")
    if arguments.scale_only and arguments.bits == 8:
        raise BadValue("--scale-only", "goes with --bits 4: 8 bits have no minimum")
    destination = Path(arguments.paths[-1])
    if arguments.shape:
        bits, group = arguments.bits or 4, arguments.group or 32
        pack_shape(arguments.shape, destination, bits=bits, group=group, texts=arguments.tokenizer, progress=doing)
    else:
        _pack(arguments, destination, models)
    packed = open_packed(destination)
    about = {
        "path": str(destination),
        "name": packed.manifest.name,
        "quantization": packed.manifest.quantization,
        "size_bytes": packed.weights_bytes,
        "digest": locate(str(destination), None, Store(models)).digest,
    }
    if arguments.json:
        print(json.dumps(about, ensure_ascii=False))
    else:
        print(f"{destination} holds {about['name']} as {about['quantization']}, {packed.weights_bytes / 1e6:.0f} MB")
    return 0


def _pack(arguments: argparse.Namespace, destination: Path, models: Path) -> None:
    found = locate(arguments.paths[0], None, Store(models))
    if found.format == "packed":
        raise EdgedError(f"{found.path} is packed already; give the model that it was made from")
    bits = arguments.bits or (CHECKPOINT_BITS if found.format == "checkpoint" else None)
    if arguments.group and bits is None:
        raise BadValue("--group", "needs --bits: without, the weights stay as the file has them")
    if arguments.scale_only and bits is None:
        raise BadValue("--scale-only", "needs --bits 4: without, the weights stay as the file has them")
    pack(
        open_source(found.path),
        destination,
        bits=bits,
        group=arguments.group or 32,
        minimum=not arguments.scale_only,
        source_digest=found.digest,
        progress=doing,
    )


def bench_command(arguments: argparse.Namespace, settings: Settings, models: Path) -> int:
    """`edged bench`. Raises EdgedError."""
    if arguments.plot and not arguments.plot.absolute().parent.is_dir():  # said before minutes of measuring
        raise BadValue("--plot", f"there is no folder {arguments.plot.absolute().parent}; make it, or name another")
    kernels_here()
    found = locate(arguments.model, None, Store(models))
    packed = packed_model(found, "auto", models, doing)
    wanted = arguments.peer or arguments.peer_python or arguments.llama_bench
    peer = PeerOrder(arguments.peer_python or sys.executable, arguments.llama_bench) if wanted else None
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as work, awake() as kept_awake:
        result = bench(
            found,
            packed,
            models,
            threads=arguments.threads or settings.model.threads,
            rounds=arguments.rounds,
            kernels=arguments.kernels,
            peer=peer,
            work=Path(work),
            progress=doing,
        )
    result.about["processors_awake"] = kept_awake
    if arguments.json:
        print(json.dumps(bench_report.document(result), ensure_ascii=False))
    else:
        bench_report.show(result)
    if arguments.plot:  # last: what was measured is told even where the picture cannot be written
        try:
            arguments.plot.write_text(bench_report.picture(result), "utf-8")
        except OSError as error:
            raise EdgedError(f"{arguments.plot} cannot be written ({error.strerror}); name another file") from None
    return 0


def eval_command(arguments: argparse.Namespace, settings: Settings, models: Path) -> int:
    """`edged eval`. Raises EdgedError."""
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
        found = evaluate(cut, named, reference, doing)
    if arguments.json:
        document = {"tokens": len(cut) * (arguments.window - 1), "models": [quality.document() for quality in found]}
        print(json.dumps(document, ensure_ascii=False))
    else:
        _show(found, len(cut), arguments.window)
    return 0


def _reference(arguments: argparse.Namespace, model: Model, settings: Settings, models: Path) -> tuple[str, Predictor]:
    """The reference: computed exactly by torch, but for a packed folder, which only the native engine reads."""
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
        on_progress=doing,
        exact=exact,
    )


def _show(found: Sequence[Quality], count: int, window: int) -> None:
    from rich.console import Console
    from rich.table import Table

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
