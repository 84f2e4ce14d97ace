"""Mixtures of experts beyond what every family's tests compare: company, grouping, rounding, odd files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edged.core.errors import ModelError
from edged.engine.backends.native_model import Part
from edged.engine.kernels.library import load_library
from edged.models.formats.gguf import open_gguf
from edged.models.formats.packed import open_packed
from edged.models.formats.tiles import Kind
from edged.models.packing.pack import pack_path
from tests.native.families import reference, write_gguf
from tests.native.helpers import ALL_KERNELS, open_model, pack_tiny, tiny_checkpoint

TOKENS = np.random.default_rng(4).integers(0, 203, 300).tolist()
QWEN: dict[str, Any] = {"head_dim": 16, "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 64}
FEW = {**QWEN, "num_experts": 3, "num_experts_per_tok": 2}  # of 300 tokens each expert gets more than 128


@pytest.mark.parametrize("kernels", ALL_KERNELS)
@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("changes", [QWEN, FEW], ids=["many experts", "few experts"])
def test_a_row_is_the_same_in_any_company(
    tmp_path: Path, changes: dict[str, Any], bits: int | None, kernels: str
) -> None:
    """A prompt at once, and sequences that decode together, by any number of threads: the same bits."""
    _, folder = pack_tiny(tmp_path, "qwen3_moe", bits=bits, **changes)
    with open_model(folder, context=512, threads=1, kernels=kernels) as model:
        whole = model.step([Part(TOKENS, 0, range(10), wanted=300)])
        tables = [range(10 * n, 10 * n + 10) for n in range(1, 6)]
        for at in range(60):
            rows = model.step([Part(TOKENS[at : at + 1], at, table) for table in tables[: 1 + at % 5]])
            assert all(np.array_equal(row, whole[at]) for row in rows)
            for table in tables[1 + at % 5 :]:
                model.step([Part(TOKENS[at : at + 1], at, table, wanted=0)])
    with open_model(folder, context=512, threads=3, kernels=kernels) as model:
        assert np.array_equal(whole, model.step([Part(TOKENS, 0, range(10), wanted=300)]))


def test_weights_that_do_not_add_up_to_one(tmp_path: Path) -> None:
    """Qwen's `norm_topk_prob: false`."""
    model, folder = pack_tiny(tmp_path, "qwen3_moe", **QWEN, norm_topk_prob=False)
    with open_model(folder, context=512) as opened:
        logits = opened.step([Part(TOKENS[:100], 0, range(10), wanted=100)])
    expected = reference(model, TOKENS[:100], half=True)
    assert np.abs(logits - expected).max() < 1e-3 * np.abs(expected).max()


def test_a_router_keeps_its_floats(tmp_path: Path) -> None:
    """Also where all other matrices are rounded."""
    _, folder = pack_tiny(tmp_path, "granitemoe", bits=4, num_local_experts=4, intermediate_size=32)
    kinds = {name: info.kind for name, info in open_packed(folder).manifest.tensors.items()}
    assert Kind.F32 is kinds["layers.0.router"]
    assert {Kind.Q4_BYTE_MIN} == {kinds[f"layers.0.{part}"] for part in ("gate_up", "down", "query")}


def test_quantized_experts_keep_their_codes(tmp_path: Path) -> None:
    """Three-dimensional tensors of a GGUF file, gate and up of different types: as the values they stand for."""
    model = tiny_checkpoint(tmp_path / "checkpoint", "qwen3_moe", **QWEN)
    types = {"ffn_up_exps": "Q5_1", "ffn_down_exps": "Q8_0"}
    pack_path(write_gguf(model, tmp_path / "model.gguf", "Q4_0", types=types), tmp_path / "packed")
    kinds = {name: info.kind for name, info in open_packed(tmp_path / "packed").manifest.tensors.items()}
    assert [Kind.Q4, Kind.Q5_MIN, Kind.Q8] == [kinds[f"layers.2.{part}"] for part in ("gate", "up", "down")]
    file = open_gguf(tmp_path / "model.gguf")
    with open_model(tmp_path / "packed", context=512) as opened:
        for part, rows in (("gate", 64), ("up", 64), ("down", 64)):
            values = file.dequantize(f"blk.2.ffn_{part}_exps.weight")
            for expert, row in ((0, 0), (3, 17), (7, 63)):
                out = np.empty(64, np.float32)
                load_library().dequantize(opened.tensor(f"layers.2.{part}"), expert * rows + row, out.ctypes.data)
                assert np.array_equal(values[expert, row], out)
        assert np.isfinite(opened.step([Part(TOKENS[:50], 0, range(10))])).all()


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [({"expert_count": 7}, "bad_model", "is .8, 64, 64., not"), ({"expert_count": 0}, "bad_model", "expert_count"),
     ({"expert_used_count": 9}, "bad_model", "experts do not fit"), ({"expert_used_count": None}, "bad_model", "used"),
     ({"expert_gating_func": 2}, "unsupported", "softmax"), ({"expert_shared_count": 1}, "unsupported", "shared")],
)  # fmt: skip
def test_odd_experts_are_refused(tmp_path: Path, changes: dict[str, Any], code: str, words: str) -> None:
    """Numbers that do not fit the tensors, and mixtures of other kinds: one sentence."""
    model = tiny_checkpoint(tmp_path / "checkpoint", "qwen3_moe", **QWEN)
    with pytest.raises(ModelError, match=words) as raised:
        pack_path(write_gguf(model, tmp_path / "model.gguf", metadata=changes), tmp_path / "packed")
    assert code == raised.value.code


@pytest.mark.parametrize("changes", [{"mlp_only_layers": [1]}, {"decoder_sparse_step": 2}])
def test_layers_without_experts_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    """By name, before anything is packed."""
    tiny_checkpoint(tmp_path / "checkpoint", "qwen3_moe", **QWEN, **changes)
    with pytest.raises(ModelError, match="layers without experts"):
        pack_path(tmp_path / "checkpoint", tmp_path / "packed")
