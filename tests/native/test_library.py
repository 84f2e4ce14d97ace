"""The compiled library: found without a home, and errors of the system told in words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edged.engine.kernels.build import HERE
from edged.engine.kernels.library import Config, Decoding, Merges, SamplingCall, Step, Tensor, load_library
from edged.models.packing.pack import pack_path
from tests.support import ROOT
from tests.tiny import make_gguf


def test_it_is_found_by_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """No HOME and no entry in passwd: what was built beside the sources is loaded as ever."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("XDG_CACHE_HOME", "KERNELS_LIBRARY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert HERE == load_library.__wrapped__().path.parent


@pytest.mark.parametrize("struct", [Config, Decoding, Merges, SamplingCall, Step, Tensor])
def test_a_field_that_a_struct_does_not_have_is_refused(struct: type) -> None:
    with pytest.raises(AttributeError, match="misspelled"):
        struct().misspelled = 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user of its own, whose tasks are counted alone")
def test_threads_that_cannot_start_are_an_error(tmp_path: Path) -> None:
    """A limit of tasks stops some of the threads: KernelError for a model, a product and a reading, and no hang."""
    folder = tmp_path / "packed"
    pack_path(make_gguf(tmp_path / "tiny.gguf"), folder)
    code = f"""
import os, resource, sys, threading
import numpy as np
from pathlib import Path
from edged.engine.backends.native_model import NativeModel
from edged.engine.kernels.library import KernelError, load_library
from edged.models.formats.packed import open_packed
from edged.models.formats.tiles import Kind
from tests.native.helpers import Packed

packed, library = open_packed(Path({str(folder)!r})), load_library()
os.setgroups([])
os.setgid(54321)
os.setuid(54321)
limit = len(os.listdir("/proc/self/task")) + 5
resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
gate, started = threading.Event(), []
try:
    for _ in range(64):
        thread = threading.Thread(target=gate.wait)
        thread.start()
        started.append(thread)
except RuntimeError:
    pass
gate.set()
for thread in started:
    thread.join()
if len(started) == 64:
    print("no limit")
    sys.exit()
room = np.ones(4096)
matrix = Packed(np.ones((32, 64), np.float32), Kind.Q8)
for attempt in (
    lambda: NativeModel(packed, context=64, blocks=4, threads=64),
    lambda: matrix.times(np.ones((1, 64)), threads=64),
    lambda: library.read_bandwidth(room.ctypes.data, room.nbytes, 64, 1),
):
    try:
        attempt()
    except KernelError as error:
        print(error)
NativeModel(packed, context=64, blocks=4, threads=2).close()
print("done")
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    if result.stdout == "no limit\n":
        pytest.skip("this system does not count a user's tasks")
    said = result.stdout.splitlines()
    assert 0 == result.returncode, result.stderr
    assert ["done"] == said[3:]
    assert all("of 64 threads run" in words and "set model.threads lower" in words for words in said[:2])
    assert "64 threads" in said[2]
