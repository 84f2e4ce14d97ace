"""What a board is, and what the doctor says about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from edged.core.reading import Disk, Memory, ProcessMemory, Reading, Throttle
from edged.device.board import Board, describe, limits_for, memory_cgroup
from edged.device.board_facts import Advice, examine_board
from tests.device.boards import GARBAGE, JETSON, PC, PI, Tree

GB = 10**9
WELL = Reading(
    at=1_800_000_000.0,
    uptime_s=100.0,
    memory=Memory(8 * GB, 6 * GB, 2 * GB, 0, 0),
    temperature_c=50.0,
    throttled=False,
    throttle=Throttle(),
    disk=Disk(32 * GB, 20 * GB),
    clock_synced=True,
)
BOARD = Board("Raspberry Pi 5", "raspberry_pi", "aarch64", 4, ("asimd", "asimddp"), 8 * GB, True, "6.12")


def test_a_raspberry_pi(tree: Tree) -> None:
    """Devicetree model without its NUL, ARM features by hwcap name, version 2 cgroups without memory."""
    board = describe(tree(PI), machine="aarch64", release="6.12.25+rpt-rpi-2712")
    assert "Raspberry Pi 5 Model B Rev 1.0" == board.model
    assert "raspberry_pi" == board.kind
    assert ("asimd", "asimddp", "fphp", "asimdhp") == board.features
    assert board.has_dot_products
    assert board.memory_cgroup is False
    assert (2, 8_000_000 * 1024) == (board.cores, board.memory_bytes)
    assert ("aarch64", "6.12.25+rpt-rpi-2712") == (board.architecture, board.kernel)
    assert 80.0 == limits_for(board).temperature_c


def test_a_jetson(tree: Tree) -> None:
    """Known by its model, its GPU by the load file."""
    board = describe(tree(JETSON))
    assert ("jetson", "NVIDIA Tegra") == (board.kind, board.gpu)
    assert 90.0 == limits_for(board).temperature_c


def test_a_pc(tree: Tree) -> None:
    """DMI vendor and product, x86 flags, version 1 cgroups, the NVIDIA driver's own file."""
    board = describe(
        tree({**PC, "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA T400\nIRQ: 1\n"})
    )
    assert ("Beelink EQ12", "other", "NVIDIA T400") == (board.model, board.kind, board.gpu)
    assert ("avx2", "fma", "f16c", "avx_vnni") == board.features
    assert board.memory_cgroup is True


def test_a_board_that_tells_nothing(tmp_path: Path) -> None:
    """Still described; what is not known is None."""
    board = describe(tmp_path)
    assert ("unknown", None, None, ()) == (board.model, board.memory_cgroup, board.memory_bytes, board.features)
    assert board.cores >= 1


@pytest.mark.parametrize("content", GARBAGE)
def test_garbage_does_not_stop_the_description(tree: Tree, content: bytes) -> None:
    """The doctor is asked when things are bad."""
    board = describe(tree(dict.fromkeys([*PI, *PC], content)))
    assert len(board.model) <= 80
    assert board.model.isprintable()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n"}, True),
        ({"sys/fs/cgroup/cgroup.controllers": "\n", "proc/cgroups": "memory\t0\t23\t1\n"}, False),
        ({"proc/cgroups": "#subsys_name\thierarchy\tnum_cgroups\tenabled\nmemory\t0\t105\t0\n"}, False),
        ({"proc/cgroups": "#subsys_name\thierarchy\tnum_cgroups\tenabled\n"}, False),
        ({}, None),
    ],
)
def test_memory_cgroup(tree: Tree, files: dict[str, str], expected: bool | None) -> None:
    """cgroup-v2.rst: cgroup.controllers lists them; cgroups(7): the last column of /proc/cgroups is enabled."""
    assert memory_cgroup(tree(files)) is expected


def _advice(code: str, board: Board = BOARD, model_bytes: int | None = None, **fields: Any) -> Advice:
    found = examine_board(
        board, msgspec.structs.replace(WELL, **fields), limits=limits_for(board), model_bytes=model_bytes
    )
    return next(advice for advice in found if advice.code == code)


def test_a_board_that_is_well() -> None:
    """All facts are good, none asks for anything."""
    found = examine_board(BOARD, WELL, model_bytes=GB)
    assert {"ok"} == {advice.status for advice in found}
    assert all(advice.fix is None for advice in found)
    assert len({advice.code for advice in found}) == len(found)


@pytest.mark.parametrize(
    ("code", "status", "fields", "words"),
    [
        ("clock", "fail", {"at": 100.0}, "not set"),
        ("clock", "warn", {"clock_synced": False}, "not synchronised"),
        ("disk", "warn", {"disk": Disk(32 * GB, GB)}, "1.0 GB of 32.0 GB"),
        ("disk", "fail", {"disk": Disk(32 * GB, GB // 10)}, "100 MB"),
        ("disk", "warn", {"disk": None}, "cannot be read"),
        ("memory", "warn", {"memory": Memory(8 * GB, GB // 2, 7 * GB, 0, 0)}, "500 MB of 8.0 GB"),
        ("memory", "warn", {"memory": None}, "cannot be read"),
        ("swap", "warn", {"memory": Memory(8 * GB, 4 * GB, 4 * GB, 4 * GB, 3 * GB)}, "3.0 GB of 4.0 GB swap"),
        ("temperature", "warn", {"temperature_c": 81.0}, "81.0 °C, the limit is 80 °C"),
        ("temperature", "fail", {"temperature_c": 90.0}, "90.0"),
        ("throttled", "warn", {"throttle": Throttle(("throttled",), ("throttled",))}, "now by throttling"),
        ("throttled_since_boot", "warn", {"throttle": Throttle((), ("under_voltage",))}, "too low a voltage"),
        ("throttled", "warn", {"throttle": None}, "cannot be read"),
        ("sensors", "warn", {"broken": ("gpu",), "stuck": ("disk",)}, "wrong values from: gpu; no answer from: disk"),
    ],
)
def test_each_trouble_has_a_fact_and_what_to_do(code: str, status: str, fields: dict[str, Any], words: str) -> None:
    """One line a fact, one sentence what to do."""
    advice = _advice(code, **fields)
    assert status == advice.status
    assert words in advice.fact
    assert advice.fix is not None
    assert advice.fix.endswith(".")


def test_memory_cgroup_off_names_the_kernels_command_line() -> None:
    """Raspberry Pi OS boots with it off."""
    advice = _advice("memory_cgroup", msgspec.structs.replace(BOARD, memory_cgroup=False))
    assert "warn" == advice.status
    assert "cgroup_enable=memory" in str(advice.fix)
    assert "cmdline.txt" in str(advice.fix)


@pytest.mark.parametrize(
    ("features", "status"), [(("asimd",), "warn"), (("asimd", "asimddp"), "ok"), (("avx2",), "ok"), ((), "warn")]
)
def test_dot_products(features: tuple[str, ...], status: str) -> None:
    """A Raspberry Pi 4 has none; AVX2 comes near them."""
    assert status == _advice("cpu_features", msgspec.structs.replace(BOARD, features=features)).status


@pytest.mark.parametrize(
    ("size", "worker", "status", "words"),
    [
        (9 * GB, None, "fail", "the board's memory"),
        (7 * GB, None, "fail", "what is available"),
        (7 * GB, ProcessMemory(rss_bytes=2 * GB), "ok", "fits"),
        (GB, None, "ok", "fits"),
    ],
)
def test_a_model_larger_than_memory(size: int, worker: ProcessMemory | None, status: str, words: str) -> None:
    """Against the board, then against what is free; the worker's own memory comes free when the model changes."""
    advice = _advice("model_memory", model_bytes=size, worker=worker)
    assert (status, True) == (advice.status, words in advice.fact)
