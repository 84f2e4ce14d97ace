"""A tiny model on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import make_gguf


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")
