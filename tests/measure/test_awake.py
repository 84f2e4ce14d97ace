"""Processors kept awake while something is measured: what Linux is asked, and where nobody may ask."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from edged.measure.awake import awake


def test_a_latency_of_zero_is_asked_for_as_long_as_the_file_is_open(tmp_path: Path) -> None:
    """A pipe replaces the device: the wish is there at once, and its end is when the pipe's last writer leaves."""
    device = tmp_path / "cpu_dma_latency"
    os.mkfifo(device)
    reader = os.open(device, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with awake(device) as asked:
            assert asked
            assert (0,) == struct.unpack("=i", os.read(reader, 100))
            with pytest.raises(BlockingIOError):  # the end of the pipe would be b""
                os.read(reader, 1)
        assert b"" == os.read(reader, 1)
    finally:
        os.close(reader)


def test_without_the_device_all_goes_on(tmp_path: Path) -> None:
    with awake(tmp_path / "cpu_dma_latency") as asked:
        assert not asked
    assert not list(tmp_path.iterdir())
