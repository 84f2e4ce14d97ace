"""`edged bench`: the speed of a model on this machine, optionally compared with llama.cpp."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from edged.commands.configured import configured, store_folder
from edged.commands.progress import StepLine
from edged.core.errors import BadValue, EdgedError
from edged.engine.backends.native_open import kernels_here
from edged.measure import bench_report
from edged.measure.awake import awake
from edged.measure.bench import PeerChoice, bench
from edged.models.store.locate import locate
from edged.models.store.packed_cache import packed_model
from edged.models.store.store import Store


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print a table or one JSON document. Raises EdgedError."""
    _, settings, _ = configured(arguments)
    models, progress = store_folder(settings), StepLine()
    if arguments.plot and not arguments.plot.absolute().parent.is_dir():  # checked before minutes of measuring
        raise BadValue(
            "--plot", f"there is no folder {arguments.plot.absolute().parent}; create it, or give another file"
        )
    kernels_here()
    found = locate(arguments.model, None, Store(models))
    packed = packed_model(found, "auto", models, progress)
    wanted = arguments.peer or arguments.peer_python or arguments.llama_bench
    peer = PeerChoice(arguments.peer_python or sys.executable, arguments.llama_bench) if wanted else None
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
            progress=progress,
        )
    result.about["processors_awake"] = kept_awake
    if arguments.json:
        print(json.dumps(bench_report.document(result), ensure_ascii=False))
    else:
        bench_report.show(result)
    if arguments.plot:  # last: the result is printed even where the picture cannot be written
        try:
            arguments.plot.write_text(bench_report.picture(result), "utf-8")
        except OSError as error:
            raise EdgedError(f"{arguments.plot} cannot be written ({error.strerror}); give another file") from None
    return 0
