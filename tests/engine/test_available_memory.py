"""What counts as available: the board's memory, and what each cgroup around the process leaves of it (promise 7)."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.engine.memory import available_bytes

SERVICE = "sys/fs/cgroup/system.slice/edged.service"
V1 = "sys/fs/cgroup/memory/docker/abc"
BOARD = {"proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable: 4000000 kB\n"}
IN_SERVICE = BOARD | {"proc/self/cgroup": "0::/system.slice/edged.service\n"}


def group(folder: str, current: int, **limits: str) -> dict[str, str]:
    """A cgroup of version 2 in which 300 of its bytes are cached files."""
    stat = "anon 5\nfile 900\ninactive_anon 7\ninactive_file 200\nactive_file 100\n"
    figures = {"memory.current": f"{current}\n", "memory.stat": stat}
    return {f"{folder}/{name}": text for name, text in figures.items()} | {
        f"{folder}/memory.{name}": f"{limit}\n" for name, limit in limits.items()
    }


def older(folder: str, limit: int) -> dict[str, str]:
    """A cgroup of version 1 that uses 1,000 bytes, of which 300 are cached files."""
    stat = "inactive_file 1\nactive_file 1\ntotal_inactive_file 200\ntotal_active_file 100\n"
    figures = {"memory.limit_in_bytes": f"{limit}\n", "memory.usage_in_bytes": "1000\n", "memory.stat": stat}
    return {f"{folder}/{name}": text for name, text in figures.items()}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (BOARD, 4_096_000_000),
        (IN_SERVICE, 4_096_000_000),
        (IN_SERVICE | group(SERVICE, 1000, max="max", high="max"), 4_096_000_000),
        (IN_SERVICE | group(SERVICE, 1000, max="3000"), 2300),
        (IN_SERVICE | group(SERVICE, 1000, max="3000", high="2500"), 1800),
        (IN_SERVICE | group(SERVICE, 1000, max="max") | group("sys/fs/cgroup/system.slice", 2000, max="5000"), 3300),
        (IN_SERVICE | group("sys/fs/cgroup", 2000, max="2100"), 400),  # a container's own, whose path is the host's
        (IN_SERVICE | group(SERVICE, 4000, max="3000"), 0),
        (IN_SERVICE | {f"{SERVICE}/memory.max": "3000\n"}, 4_096_000_000),
        (BOARD | {"proc/self/cgroup": "4:cpu,memory:/docker/abc\n0::/\n"} | older(V1, 5000), 4300),
        (BOARD | {"proc/self/cgroup": "4:cpuset:/docker/abc\n"} | older(V1, 5000), 4_096_000_000),
    ],
)
def test_p07_memory_is_what_board_and_cgroups_have_left(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, "ascii")
    assert expected == available_bytes(tmp_path)


def test_this_machine_has_memory() -> None:
    assert 10_000_000 < available_bytes() < 10**14
