"""What the engine refuses: an exception with a sentence, never a crash in C++, and the model goes on working."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edged.core.errors import ModelError
from edged.engine.backends.base import ComputeError, Slice
from edged.engine.backends.native_backend import NativeBackend
from edged.engine.backends.native_model import NativeModel, Part
from edged.engine.backends.native_open import open_native
from edged.engine.kernels.library import KernelError
from edged.engine.memory import WORKSPACE_BYTES
from edged.models.formats.packed import PackedModel, open_packed
from edged.models.formats.shape import Rope
from edged.models.formats.tiles import Kind
from tests.native.helpers import open_model, pack_overflowing, pack_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in 4 bits."""
    return pack_tiny(tmp_path_factory.mktemp("bad"), "llama", bits=4)[1]


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [Part([], 0, [0])],
        [Part([], 0, [0], wanted=0)],
        [Part([1, 2], 0, [0], wanted=3)],
        [Part([1], 0, [0]), Part([1], 0, [1], wanted=-1)],
        [Part([203], 0, [0])],
        [Part([-1], 0, [0])],
        [Part([2**31], 0, [0])],
        [Part([-(2**40)], 0, [0])],
        [Part([1], -1, [0])],
        [Part([1], 256, list(range(9)))],
        [Part([1], 2**31 - 1, [0])],
        [Part([1] * 33, 0, [0])],
        [Part([1], 0, [])],
        [Part([1], 0, [64])],
        [Part([1], 0, [-1])],
        [Part([1], 40, [0, 2**31 - 1])],
        [Part([1] * 513, 0, list(range(20)))],
        [Part([1], 0, [0]), Part([], 0, [1])],
    ],
)
def test_steps_that_cannot_be_run_are_refused(folder: Path, parts: list[Part]) -> None:
    """Each with KernelError; afterwards the same model still gives the numbers it gave before."""
    with open_model(folder) as model:
        before = model.step([Part([1, 2, 3], 0, [0])])
        with pytest.raises(KernelError, match=r"\w+ \w+"):
            model.step(parts)
        assert np.array_equal(before, model.step([Part([1, 2, 3], 0, [0])]))


@pytest.mark.parametrize(
    "options",
    [{"context": 0}, {"context": 1 << 21}, {"blocks": 0}, {"blocks": 1 << 23}, {"threads": -1}, {"threads": 1000},
     {"max_rows": 0}, {"max_rows": 10**6}, {"kernels": "sse"}],
)  # fmt: skip
def test_absurd_options_are_refused(folder: Path, options: dict[str, int]) -> None:
    """Before anything is allocated."""
    with pytest.raises(KernelError):
        open_model(folder, **options)


@pytest.mark.parametrize(
    "changes",
    [{"width": 56}, {"heads": 3}, {"kv_heads": 3}, {"head_dim": 12}, {"vocabulary": 204}, {"layers": 2}, {"ffn": 89},
     {"ropes": (Rope((float("nan"),) * 8),)}, {"epsilon": -1.0}],
)  # fmt: skip
def test_shapes_that_do_not_fit_the_tensors_are_refused(folder: Path, changes: dict[str, object]) -> None:
    """The kernels check for themselves what the loader has checked before."""
    packed = open_packed(folder)
    shape = replace(packed.manifest.shape, **changes)  # type: ignore[arg-type]
    damaged = PackedModel(folder, replace(packed.manifest, shape=shape), packed.data, packed._places)
    if changes == {"layers": 2}:
        with NativeModel(
            damaged, context=64, blocks=2
        ) as model:  # fewer layers than there are tensors is a smaller model
            assert (1, 203) == model.step([Part([1], 0, [0])]).shape
        return
    with pytest.raises(KernelError):
        NativeModel(damaged, context=64, blocks=2)


def test_short_and_misdeclared_tensors_are_refused(folder: Path) -> None:
    """A tensor shorter than its shape, of an unknown group, or declared as floats."""
    packed = open_packed(folder)
    name = "layers.1.gate_up"
    info, (offset, size) = packed.manifest.tensors[name], packed._places[name]
    for change, place in (
        (info, (offset, size // 2)),
        (replace(info, group=48), (offset, size)),
        (replace(info, kind=Kind.F32, group=0), (offset, size)),
        (info, (offset + 1, size)),
    ):
        manifest = replace(packed.manifest, tensors={**packed.manifest.tensors, name: change})
        with pytest.raises(KernelError, match="gate and up of layer 1"):
            NativeModel(
                PackedModel(folder, manifest, packed.data, {**packed._places, name: place}), context=64, blocks=2
            )


@pytest.mark.parametrize("bits", [4, 8, None])
def test_weights_damaged_after_packing_are_refused(tmp_path: Path, bits: int | None) -> None:
    """Scales or floats that became NaN are found when the model is opened."""
    _, folder = pack_tiny(tmp_path, "llama", bits=bits)
    offset, size = open_packed(folder).place("layers.0.gate_up") or (0, 0)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[offset + size // 2 : offset + size] = b"\xff" * (size // 2)
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(KernelError, match="gate and up of layer 0 has values that are not finite"):
        open_model(folder)


def test_numbers_beyond_float32_are_an_error(tmp_path: Path) -> None:
    """Weights that make the activations overflow: the step says so."""
    for bits in (None, 4):
        with (
            open_model(pack_overflowing(tmp_path / str(bits), bits)) as opened,
            pytest.raises(KernelError, match="not finite"),
        ):
            opened.step([Part([1, 2, 3], 0, [0])])


def test_a_closed_model_says_so(folder: Path) -> None:
    """No use after close."""
    model = open_model(folder)
    model.close()
    model.close()
    with pytest.raises(KernelError, match="closed"):
        model.step([Part([1], 0, [0])])
    with pytest.raises(KernelError, match="closed"):
        model.copy_block(0, 1)


@pytest.mark.parametrize("blocks", [(-1, 0), (0, 64), (64, 0), (0, 2**31 - 1)])
def test_a_block_outside_the_cache_is_not_copied(folder: Path, blocks: tuple[int, int]) -> None:
    """KernelError, as for a step."""
    with open_model(folder) as model, pytest.raises(KernelError, match="outside the cache"):
        model.copy_block(*blocks)


def test_the_backend_keeps_the_protocol(folder: Path) -> None:
    """Slots run together with the same logits as alone; a refused slice gets its error, the others their logits."""
    model = open_model(folder, blocks=20)
    backend = NativeBackend(model, slots=2)
    tokens = [list(range(50)), list(range(100, 190))]
    one, two = backend.open(), backend.open()
    together = backend.run([Slice(one, 0, tokens[0]), Slice(two, 0, tokens[1])])
    backend.close(one)
    one = backend.open()
    assert 49 == backend.reuse(one, tokens[0])
    assert np.array_equal(backend.run([Slice(one, 49, tokens[0][49:])])[0], together[0])
    backend.close(two)
    two = backend.open()
    every = backend.run([Slice(two, 0, tokens[1])], every=True)[0]
    assert (90, 203) == every.shape
    assert np.array_equal(every[-1:], together[1])
    for bad in (Slice(one, 49, [1]), Slice(one, 50, [999]), Slice(one, 50, []), Slice(one, 50, [1] * 240)):
        refused, fine = backend.run([bad, Slice(two, len(backend._slots[two].tokens), [7])])
        assert isinstance(refused, ComputeError)
        assert (1, 203) == fine.shape
    results = backend.run([Slice(backend.open(), 0, [1] * 256) for _ in range(2)])
    assert [False, True] == [isinstance(result, ComputeError) for result in results]
    model.close()


def test_memory_is_admitted_before_it_is_used(folder: Path) -> None:
    """Too little is said before anything is loaded."""
    packed = open_packed(folder)
    with pytest.raises(ModelError, match="are free"):
        open_native(packed, None, 1, lambda: 1000)
    backend = open_native(packed, 100, 1, lambda: 10**9)
    assert (100, 8) == (backend.context, backend.slots)
    backend.model.close()
    for spare in (400_000, 1_000_000, 4_000_000):  # the pool fills in time, so all of it must have been admitted
        room = packed.weights_bytes + WORKSPACE_BYTES + spare
        backend = open_native(packed, 256, 1, lambda room=room: room)
        assert backend.model.memory()[0] <= spare
        assert backend.slots >= 1
        backend.model.close()
