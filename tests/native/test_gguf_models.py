"""Whole models of every GGUF type and of mixed ones, against the same weights in float64, with activations, keys
and values rounded as the kernels round them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from edged.engine.backends.native_model import Part
from edged.models.formats.gguf import open_gguf
from edged.models.packing.gguf_source import QUANTIZED
from edged.models.packing.pack import pack_path
from tests.native.gguf_types import DIM, HEADS, KV_HEADS, write_model
from tests.native.helpers import open_model, rounded

_QKV = ("attn_q", "attn_k", "attn_v")
TOKENS = [3, 41, 7, 7, 29, 0, 18]


def _norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight)


def _rope(x: np.ndarray) -> np.ndarray:
    """Pairs (2i, 2i + 1) of each head, as Llama's GGUF files order them; x [tokens, heads, DIM]."""
    angles = np.arange(len(x))[:, None] * 10_000.0 ** (-2 * np.arange(DIM // 2) / DIM)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    even, odd = x[..., ::2], x[..., 1::2]
    return np.stack([even * cos - odd * sin, odd * cos + even * sin], -1).reshape(x.shape)


class Reference:
    """The forward pass of a Llama of `write_model`. `types`: of the matrices, by their names without the layer."""

    def __init__(self, weights: dict[str, np.ndarray], types: Mapping[str, str], default: str) -> None:
        self._w = {name.removesuffix(".weight"): values.astype(np.float64) for name, values in weights.items()}
        self._types, self._default = types, default

    def _product(self, x: np.ndarray, name: str) -> np.ndarray:
        coded = self._types.get(name.rsplit(".", 1)[-1], self._default) in QUANTIZED
        return np.asarray((rounded(x.astype(np.float32)) if coded else x) @ self._w[name].T)

    def logits(self, tokens: list[int], layers: int) -> np.ndarray:
        """After each token, float64 [tokens, vocabulary]."""
        x = self._w["token_embd"][tokens]
        mask = np.triu(np.full((len(tokens), len(tokens)), -np.inf), 1)
        for layer in range(layers):
            at = f"blk.{layer}."
            h = _norm(x, self._w[at + "attn_norm"])
            q, k, v = (self._product(h, at + name).reshape(len(tokens), -1, DIM) for name in _QKV)
            cached = (part.astype(np.float16).astype(np.float64) for part in (_rope(k), v))
            k, v = (np.repeat(part, HEADS // KV_HEADS, 1) for part in cached)
            scores = np.einsum("qhd,khd->hqk", _rope(q), k) / np.sqrt(DIM) + mask
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), v)
            x = x + self._product(mixed.reshape(len(tokens), -1), at + "attn_output")
            h = _norm(x, self._w[at + "ffn_norm"])
            gate, up = (self._product(h, at + name) for name in ("ffn_gate", "ffn_up"))
            x = x + self._product(gate / (1 + np.exp(-gate)) * up, at + "ffn_down")
        return self._product(_norm(x, self._w["output_norm"]), "output")


def _check(folder: Path, types: Mapping[str, str], default: str) -> None:
    """Logits are those of the reference, all at once and token by token, to the bit the same."""
    weights = write_model(folder / "model.gguf", types, default, layers=2)
    expected = Reference(weights, types, default).logits(TOKENS, 2)
    pack_path(folder / "model.gguf", folder / "packed")
    with open_model(folder / "packed", context=64, blocks=4) as model:
        at_once = model.step([Part(TOKENS, 0, [0], wanted=len(TOKENS))])
        singly = [model.step([Part([token], at, [1])])[0] for at, token in enumerate(TOKENS)]
    assert np.array_equal(at_once, np.stack(singly))
    off = np.abs(at_once - expected) / np.max(np.abs(expected))
    assert np.max(off) < 2e-2  # a value on the border of two codes may be rounded to the other one


@pytest.mark.parametrize("kind", [*QUANTIZED, "F16", "BF16", "F32"])
def test_logits_are_those_of_the_same_weights_in_floats(tmp_path: Path, kind: str) -> None:
    _check(tmp_path, {}, kind)


@pytest.mark.parametrize("mix", [
    {"attn_v": "Q6_K", "ffn_down": "Q6_K", "token_embd": "Q6_K", "output": "Q8_0"},
    {"attn_q": "Q4_K", "attn_k": "F16", "attn_v": "Q5_0", "ffn_down": "F32"},
    {"attn_q": "BF16", "attn_k": "BF16", "attn_v": "IQ4_XS", "attn_output": "F32", "output": "BF16"},
])  # fmt: skip
def test_types_may_be_mixed(tmp_path: Path, mix: dict[str, str]) -> None:
    """Any type for any matrix, floats beside codes."""
    _check(tmp_path, mix, "Q4_K")


@pytest.mark.parametrize(("gate", "up"), [("Q4_K", "Q6_K"), ("F16", "Q8_0"), ("Q5_0", "F32"), ("MXFP4", "Q2_K")])
def test_gate_and_up_may_have_different_types(tmp_path: Path, gate: str, up: str) -> None:
    _check(tmp_path, {"ffn_gate": gate, "ffn_up": up}, "Q8_0")


def test_a_mixture_is_named_by_the_file_and_its_types(tmp_path: Path) -> None:
    """The name that the file has for itself, then the types by their share of weights; where most weights have the
    type of that name, the name alone."""
    mix = {"attn_v": "Q6_K", "ffn_down": "Q6_K", "output": "Q8_0"}
    for number, default, types, expected in (
        (15, "Q4_K", mix, "q4_k_m: q4_k, q6_k, q8_0"),
        (None, "Q4_K", mix, "q4_k, q6_k, q8_0"),
        (8, "Q5_0", {}, "q5_0"),
        (8, "Q5_0", {"output": "Q8_0"}, "q5_0"),
        (18, "Q8_0", {"output": "Q6_K"}, "q6_k: q8_0, q6_k"),
    ):
        path = tmp_path / f"{default}-{number}-{len(types)}.gguf"
        write_model(path, types, default, file_type=number)
        assert expected == pack_path(path, tmp_path / path.stem).quantization
        assert expected == open_gguf(path).quantization()
