"""`edged run` with the fake worker in the model's place: everything else is the real thing.

Words after the control folder shorten times: `edged.agent.supervisor:HANG_DEADLINE=1.0`.
"""

from __future__ import annotations

import ast
import importlib
import os
import sys
from pathlib import Path

from edged.agent import model_pull
from edged.agent import startup as start
from edged.config import file as config_file
from edged.config.schema import build

MODELS = ("smollm2-135m-instruct", "good", "second", "broken", "crash", "wait", "large", "dies-late")
"""The catalog: what the fake worker does with each is described there; `fake_model_command.py` fetches them."""

if __name__ == "__main__":
    config, control = Path(sys.argv[1]), sys.argv[2]
    for patch in sys.argv[3:]:
        place, _, value = patch.partition("=")
        module, _, name = place.partition(":")
        getattr(importlib.import_module(module), name)  # a name that is gone must not be patched in silence
        setattr(importlib.import_module(module), name, ast.literal_eval(value))
    values = config_file.load(config, os.environ)
    settings = build(values)
    if not (Path(control) / "real-models").exists():
        model_pull.COMMAND = (sys.executable, str(Path(__file__).with_name("fake_model_command.py")), control)
    catalog = {name: f"sha256:{index:064x}" for index, name in enumerate(MODELS)}
    command = (sys.executable, str(Path(__file__).with_name("fake_worker.py")), control)
    name, arguments = settings.identity.device or "pi", ("--config", str(config))
    sys.exit(
        start.run(
            values, settings, name, arguments, catalog, command, read_file=lambda: config_file.load(config, os.environ)
        )
    )
