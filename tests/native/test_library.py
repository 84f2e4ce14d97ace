"""The compiled library: found without a home, and errors of the system told in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.engine.kernels.library import load_library


def test_it_is_found_by_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """No HOME and no entry in passwd: what was built beside the sources is loaded as ever."""
    there = load_library().path

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("XDG_CACHE_HOME", "KERNELS_LIBRARY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("edged.engine.kernels.library.HERE", there.parent)
    monkeypatch.setattr(Path, "home", no_home)
    assert there == load_library.__wrapped__().path
