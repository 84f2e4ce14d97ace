"""What a process's mappings say."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.measure import footprint

SMAPS = """\
7f2a00000000-7f2a00800000 r--s 00000000 fd:01 2154516                    /models/a folder/model.safetensors
Size:               8192 kB
KernelPageSize:        4 kB
Rss:                6144 kB
ShmemPmdMapped:        0 kB
FilePmdMapped:      2048 kB
VmFlags: rd mr me ms sd hg
7f2a10000000-7f2a10001000 rw-p 00000000 00:00 0
Size:                  4 kB
Rss:                   0 kB
FilePmdMapped:         0 kB
"""


def test_mappings_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Names with spaces, sizes in bytes; of what is in memory a third lies in huge pages, and of nothing none."""
    weights = Path("/models/a folder/model.safetensors")
    assert footprint.mappings(SMAPS) == [
        footprint.Mapping(str(weights), 8192 << 10, 6144 << 10, 2048 << 10),
        footprint.Mapping("", 4096, 0, 0),
    ]
    (tmp_path / "smaps").write_text(SMAPS)
    monkeypatch.setattr(footprint, "SMAPS", tmp_path / "smaps")
    assert footprint.huge_share(weights) == pytest.approx(1 / 3)
    assert 0 == footprint.huge_share(Path("/models/other"))
