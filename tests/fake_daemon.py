"""`edged run` with the fake worker in the model's place: everything else is the real thing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from edged.agent import start
from edged.core.settings import build
from edged.wire import config_file

if __name__ == "__main__":
    config, control = Path(sys.argv[1]), sys.argv[2]
    values = config_file.load(config, os.environ)
    settings = build(values)
    command = (sys.executable, str(Path(__file__).with_name("fake_worker.py")), control)
    sys.exit(start.run(values, settings, settings.identity.device or "pi", ("--config", str(config)), command))
