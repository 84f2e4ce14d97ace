"""The architecture: imports point down, and no process loads what it does not need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

FORBIDDEN = (
    "torch",
    "transformers",
    "optimum",
    "numpy",
    "gguf",
    "tokenizers",
    "safetensors",
    "rich",
    "jinja2",
    "llguidance",
    "cryptography",
    "rfc8785",
)


def modules_after(statement: str) -> set[str]:
    """What is loaded in a fresh interpreter after this statement."""
    script = f"import sys, json\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    output = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, env=environment, timeout=60
    ).stdout
    return set(json.loads(output.splitlines()[-1]))


def test_imports_point_only_down() -> None:
    """The contracts in pyproject.toml, checked by import-linter."""
    program = Path(sys.executable).with_name("lint-imports")
    if not program.exists():
        pytest.skip("import-linter is not installed")
    result = subprocess.run([str(program), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert 0 == result.returncode, result.stdout[-3000:]


@pytest.mark.parametrize("statement", ["import edged.agent.daemon", "import edged.commands.run"])
def test_the_agent_loads_no_model_code(statement: str) -> None:
    loaded = modules_after(statement)
    assert not {name.partition(".")[0] for name in loaded} & set(FORBIDDEN)
    unwanted = ("edged.engine", "edged.models", "edged.ctl", "edged.commands.model")
    catalog = {"edged.models", "edged.models.store", "edged.models.store.catalog"}  # a table: names and digests
    assert not [name for name in loaded - catalog if name.startswith(unwanted)]


def test_the_check_of_the_config_and_the_commands_help_load_nothing_heavy() -> None:
    loaded = modules_after("from edged.commands.main import main\ntry: main(['--help'])\nexcept SystemExit: pass")
    assert not loaded & {*FORBIDDEN, "paho", "sqlite3", "structlog"}


def test_the_worker_knows_no_network() -> None:
    loaded = modules_after("import edged.worker.main")
    assert not [name for name in loaded if name.startswith(("paho", "edged.link", "edged.agent", "edged.fleet"))]
    assert not loaded & {"torch", "llguidance"}  # each is loaded when it is needed


@pytest.mark.parametrize("package", ["core", "config", "wire"])
def test_the_lower_packages_do_no_io_when_they_are_imported(package: str) -> None:
    names = [path.stem for path in (ROOT / "edged" / package).glob("*.py") if path.stem != "__init__"]
    loaded = modules_after("\n".join(f"import edged.{package}.{name}" for name in names))
    assert not loaded & {"sqlite3", "subprocess", "paho", "psutil", "structlog"}


def test_promises_have_tests_of_their_number() -> None:
    """Each promise that this version keeps is named by a test; `test_p03_…` holds promise 3."""
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    missing = [number for number in range(1, 13) if f"def test_p{number:02d}_" not in sources]
    assert [] == missing
