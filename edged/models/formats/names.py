"""How a model's quantization is named for people: the file's own name, then the types of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

# ggml's `llama_ftype` in `llama.h`, in lower case and without `mostly_`.
_FILE_TYPES: Final = {
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 7: "q8_0", 8: "q5_0", 9: "q5_1", 10: "q2_k", 11: "q3_k_s", 12: "q3_k_m",
    13: "q3_k_l", 14: "q4_k_s", 15: "q4_k_m", 16: "q5_k_s", 17: "q5_k_m", 18: "q6_k", 19: "iq2_xxs", 20: "iq2_xs",
    21: "q2_k_s", 22: "iq3_xs", 23: "iq3_xxs", 24: "iq1_s", 25: "iq4_nl", 26: "iq3_s", 27: "iq3_m", 28: "iq2_s",
    29: "iq2_m", 30: "iq4_xs", 31: "iq1_m", 32: "bf16", 36: "tq1_0", 37: "tq2_0", 38: "mxfp4_moe",
}  # fmt: skip


def file_type(metadata: Mapping[str, Any]) -> str:
    """The name that a GGUF file gives itself (`q4_k_m`); empty where it has none."""
    number = metadata.get("general.file_type")
    return _FILE_TYPES.get(number, "") if isinstance(number, int) else ""


def quantization_name(own: str, weights: Mapping[str, int]) -> str:
    """`q4_k_m: q5_0, q8_0, q4_k`, or `q4_1` where most weights have that type.

    `own`: the file's name for itself, may be empty. `weights`: how many weights have each type.
    """
    types = sorted(weights, key=lambda kind: -weights[kind])
    if own in types[:1]:
        return own
    named = ", ".join(types) or "none"
    return f"{own}: {named}" if own and len(types) > 1 else named
