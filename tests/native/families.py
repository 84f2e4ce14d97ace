"""Tiny random models of every family: checkpoints by transformers, and the GGUF files that llama.cpp's converter would
make of them: its names (the `gguf` package's own map), its permutations, its + 1 of Gemma's norms, its metadata."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from edged.models.formats.config_shape import native_shape_from_config

YARN: Final = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 8.0, "original_max_position_embeddings": 64}
LLAMA3: Final = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LINEAR: Final = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
LOCAL: Final = {"rope_type": "default", "rope_theta": 1e4}
LONGROPE: Final = {
    "rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0 + 0.02 * i for i in range(12)],
    "long_factor": [1.0 + 0.3 * i for i in range(12)], "original_max_position_embeddings": 100,
}  # fmt: skip

DELTA: Final = {
    "head_dim": 32, "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 32,
    "linear_value_head_dim": 48, "rope_parameters": {
        "rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25, "mrope_section": [2, 1, 1],
    },
}  # fmt: skip

# What differs from a plain model of the family: windows and original contexts far shorter than the tests' prompts.
FAMILIES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "llama": ("llama", {}),
    "llama, with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, llama3 rope": ("llama", {"rope_parameters": LLAMA3}),
    "llama, yarn": ("llama", {"rope_parameters": YARN}),
    "llama, linear rope": ("llama", {"rope_parameters": {**LINEAR, "rope_theta": 1e4}}),
    "mistral": ("mistral", {"head_dim": 24, "sliding_window": 40}),
    "ministral3": ("ministral3", {"head_dim": 16, "rope_parameters": {
        **YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.2, "beta_fast": 32.0, "beta_slow": 1.0,
    }}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3_moe": ("qwen3_moe", {"head_dim": 32, "num_experts": 8, "num_experts_per_tok": 4,
                                "moe_intermediate_size": 64, "norm_topk_prob": True}),
    "granitemoe": ("granitemoe", {
        "embedding_multiplier": 6.0, "logits_scaling": 3.0, "residual_multiplier": 0.3, "attention_multiplier": 0.11,
        "num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 32,
    }),
    "gemma": ("gemma", {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma2": ("gemma2", {"head_dim": 16, "sliding_window": 48, "attn_logit_softcapping": 2.0, "num_hidden_layers": 4,
                          "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 16, "tie_word_embeddings": True}),
    "gemma3": ("gemma3", {"head_dim": 16, "sliding_window": 48, "num_hidden_layers": 7, "query_pre_attn_scalar": 16,
                          "tie_word_embeddings": True}),
    "gemma3, linear rope": ("gemma3", {
        "head_dim": 16, "sliding_window": 40, "num_hidden_layers": 7, "query_pre_attn_scalar": 16,
        "tie_word_embeddings": True, "rope_parameters": {"full_attention": LINEAR, "sliding_attention": LOCAL},
    }),
    "granite": ("granite", {"embedding_multiplier": 6.0, "logits_scaling": 3.0, "residual_multiplier": 0.3,
                            "attention_multiplier": 0.11}),
    "smollm3": ("smollm3", {"num_hidden_layers": 5}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {"num_hidden_layers": 4, "sliding_window": 48,
                        "rope_parameters": {"full_attention": YARN, "sliding_attention": LOCAL}}),
    "ernie4_5": ("ernie4_5", {"head_dim": 16}),
    "hunyuan": ("hunyuan", {"head_dim": 16, "rope_parameters": {
        "rope_type": "dynamic", "alpha": 100.0, "factor": 1.0, "rope_theta": 10_000.0,
    }}),
    "exaone4": ("exaone4", {"num_hidden_layers": 4, "sliding_window": 48}),
    "phi3": ("phi3", {"sliding_window": 50}),
    "phi3, partial longrope": ("phi3", {
        "hidden_size": 128, "partial_rotary_factor": 0.75, "original_max_position_embeddings": 100,
        "rope_parameters": {**LONGROPE, "partial_rotary_factor": 0.75},
    }),
    "stablelm": ("stablelm", {"use_qkv_bias": True, "hidden_size": 128}),
    "glm4": ("glm4", {"head_dim": 16}),
    "lfm2": ("lfm2", {"num_hidden_layers": 5, "layer_types": ["conv", "full_attention", "conv", "conv",
                                                             "full_attention"], "tie_word_embeddings": True}),
    "lfm2, two taps": ("lfm2", {"num_hidden_layers": 3, "full_attn_idxs": [1], "conv_L_cache": 2,
                                "block_auto_adjust_ff_dim": False, "tie_word_embeddings": True}),
    "qwen3_5": ("qwen3_5", {**DELTA, "full_attention_interval": 2}),
    "qwen3_5, three values per key": ("qwen3_5", {
        **DELTA, "num_hidden_layers": 4, "linear_num_value_heads": 6, "linear_value_head_dim": 96,
        "tie_word_embeddings": True,
    }),
}  # fmt: skip
GGUF_ARCHITECTURES: Final = {
    "gemma3_text": "gemma3", "ministral3": "mistral3", "hunyuan_v1_dense": "hunyuan-dense", "olmo3": "olmo2",
    "mistral": "llama", "qwen3_moe": "qwen3moe", "qwen3_5_text": "qwen35",
}  # fmt: skip
UNROUNDED: Final = (  # llama.cpp leaves convolutions and routers as they are
    "shortconv.conv.weight", "ssm_conv1d.weight", "ffn_gate_inp.weight",
)  # fmt: skip
HYBRID: Final = frozenset({"lfm2", "qwen35"})  # architectures with recurrent states
_PERMUTED: Final = frozenset({"llama", "mistral3", "granite", "smollm3", "granitemoe"})


def reference(model: Any, tokens: list[int], half: bool = False) -> np.ndarray:
    """transformers' float32 logits [T, V] of one prompt. `half`: keys and values rounded to float16, as our cache
    holds them."""
    import torch
    from transformers import cache_utils

    update = cache_utils.Cache.update

    def rounded(self: Any, *args: Any, **more: Any) -> Any:
        return tuple(part.half().float() for part in update(self, *args, **more))

    try:
        if half:
            cache_utils.Cache.update = rounded
        with torch.no_grad():
            return model(torch.tensor([tokens])).logits[0].float().numpy()
    finally:
        cache_utils.Cache.update = update


def write_gguf(
    model: Any,
    path: Path,
    kind: str = "F32",
    metadata: dict[str, Any] | None = None,
    types: Mapping[str, str] | None = None,
    blocks: Callable[[np.ndarray], tuple[str, np.ndarray] | None] | None = None,
) -> Path:
    """The model as a GGUF file, its matrices as `kind`, or as `types` gives for their names without the layer
    (`ffn_up`). Metadata of a value None is left out. `blocks`: see `fill_with_blocks`."""
    import gguf

    config = model.config.to_dict()
    architecture = GGUF_ARCHITECTURES.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(str(path), architecture)
    figures = {**_figures(config, architecture), **(metadata or {})}
    for key, value in figures.items():
        if value is not None:
            _add(writer, f"{architecture}.{key}", value)
    if architecture in HYBRID:  # torch computes these by transformers, which wants a vocabulary
        size = config["vocab_size"]
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list([f"<{token}>" for token in range(size)])
        writer.add_token_types([1] * size)
        writer.add_token_merges(["< 1"])
    else:
        writer.add_tokenizer_model("none")
    for name, values in gguf_tensors(model, config, architecture).items():
        own = (types or {}).get(name.split(".")[-2], kind)
        if not name.endswith(UNROUNDED) and (stored := blocks and blocks(values)):
            writer.add_tensor(name, stored[1], raw_dtype=gguf.GGMLQuantizationType[stored[0]])
        elif values.ndim == 1 or own == "F32" or name.endswith(UNROUNDED):
            writer.add_tensor(name, values)
        else:
            number = gguf.GGMLQuantizationType[own]
            writer.add_tensor(name, gguf.quantize(values, number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_tensors(model: Any, config: dict[str, Any], architecture: str) -> dict[str, np.ndarray]:
    """All tensors by their names in a GGUF file, float32."""
    import gguf

    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(number, config["num_hidden_layers"])
    tensors = {}
    for name, stored in _llama_cpp_tensors(model):
        values = stored
        if config.get("tie_word_embeddings") and name == "lm_head.weight":
            continue
        if architecture in _PERMUTED and ("q_proj" in name or "k_proj" in name):
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
            values = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
        if (
            (architecture.startswith("gemma") or architecture == "qwen35")
            and name.endswith("norm.weight")
            and "linear_attn" not in name
        ):
            values = values + 1
        if "conv" in name and values.ndim == 3:
            values = values[:, 0]
        if "linear_attn" in name:
            values = np.ascontiguousarray(_tiled(name.split("linear_attn.")[1], values, config))
        if name.endswith("A_log"):
            values = -np.exp(values)
        base, _, suffix = name.replace("dt_bias", "dt_proj.bias").rpartition(".")
        tensors[f"{names.get_name(base)}.{suffix}" if suffix != "A_log" else names.get_name(name)] = values
    return tensors | _rope_tensors(model, config)


def _llama_cpp_tensors(model: Any) -> Iterator[tuple[str, np.ndarray]]:
    """A model's tensors; gate and up of all experts separate, as in GGUF files."""
    for name, parameter in model.state_dict().items():
        values = parameter.float().numpy()
        if name.endswith("experts.gate_up_proj"):
            for part, half in zip(("gate", "up"), np.split(values, 2, 1), strict=True):
                yield name.replace("block_sparse_moe", "mlp").replace("gate_up", part) + ".weight", half
        elif name.endswith("experts.down_proj"):
            yield name.replace("block_sparse_moe", "mlp") + ".weight", values
        else:
            yield name.replace("block_sparse_moe.router.", "block_sparse_moe.router.layer."), values


def _tiled(part: str, values: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """A tensor of linear attention with its value heads as llama.cpp orders them: the first of each key head first."""
    keys, count, dim = (config[f"linear_{size}"] for size in ("num_key_heads", "num_value_heads", "value_head_dim"))
    order = np.arange(count).reshape(keys, -1).T.reshape(-1)
    rows = (order[:, None] * dim + np.arange(dim)).reshape(-1)
    if part == "out_proj.weight":
        return values[:, rows]
    if part in {"in_proj_qkv.weight", "conv1d.weight"}:
        first = 2 * keys * config["linear_key_head_dim"]
        return np.concatenate([values[:first], values[first:][rows]])
    if part == "norm.weight":
        return values
    return values[rows] if part == "in_proj_z.weight" else values[order]


def _rope_tensors(model: Any, config: dict[str, Any]) -> dict[str, np.ndarray]:
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") == "longrope":
        return {
            f"rope_factors_{part}.weight": np.array(rope[f"{part}_factor"], np.float32) for part in ("long", "short")
        }
    if rope.get("rope_type") == "llama3":
        scaled = model.model.rotary_emb.inv_freq.numpy()
        plain = rope["rope_theta"] ** (-np.arange(len(scaled)) / len(scaled))
        return {"rope_freqs.weight": (plain / scaled).astype(np.float32)}
    return {}


def _add(writer: Any, key: str, value: Any) -> None:
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    add.get(type(value), writer.add_array)(key, value)


def _figures(config: dict[str, Any], architecture: str) -> dict[str, Any]:
    """The metadata below the architecture's name."""
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    figures = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": config["num_key_value_heads"],
        "vocab_size": config["vocab_size"],
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
    }
    if architecture == "lfm2":
        attends = [kind == "full_attention" for kind in config["layer_types"]]
        figures |= {
            "attention.head_count_kv": [config["num_key_value_heads"] * attend for attend in attends],
            "attention.layer_norm_rms_epsilon": config["norm_eps"], "shortconv.l_cache": config["conv_L_cache"],
            "feed_forward_length": native_shape_from_config(config).ffn,
        }  # fmt: skip
    elif architecture == "stablelm":
        figures |= {"attention.layer_norm_epsilon": config["layer_norm_eps"], "use_parallel_residual": False}
    else:
        figures["attention.layer_norm_rms_epsilon"] = config["rms_norm_eps"]
    if architecture == "qwen35":
        values = config["linear_num_value_heads"] * config["linear_value_head_dim"]
        figures |= {
            "ssm.conv_kernel": config["linear_conv_kernel_dim"], "ssm.state_size": config["linear_key_head_dim"],
            "ssm.group_count": config["linear_num_key_heads"], "ssm.inner_size": values,
            "ssm.time_step_rank": config["linear_num_value_heads"], "rope.dimension_sections": [2, 1, 1, 0],
            "full_attention_interval": config["layer_types"].index("full_attention") + 1,
        }  # fmt: skip
    if architecture == "qwen3moe":
        figures |= {
            "expert_count": config["num_local_experts"],
            "expert_used_count": config["num_experts_per_tok"],
            "expert_feed_forward_length": config["moe_intermediate_size"],
        }
    if architecture == "granitemoe":
        figures |= {"expert_count": config["num_local_experts"], "expert_used_count": config["num_experts_per_tok"]}
    if architecture in {"granite", "granitemoe"}:
        figures |= {
            "attention.scale": config["attention_multiplier"], "embedding_scale": config["embedding_multiplier"],
            "residual_scale": config["residual_multiplier"], "logit_scale": config["logits_scaling"],
        }  # fmt: skip
    if architecture == "gemma2":
        figures |= {f"{part}_logit_softcapping": config[f"{part}_logit_softcapping"] for part in ("attn", "final")}
    if config.get("sliding_window") and architecture != "llama":
        figures["attention.sliding_window"] = config["sliding_window"]
    if architecture == "exaone4":  # without this list only the size of 64 layers has windows
        figures["attention.sliding_window_pattern"] = [kind == "sliding_attention" for kind in config["layer_types"]]
    return figures | _rope_figures(config, architecture, head_dim)


def _rope_figures(config: dict[str, Any], architecture: str, head_dim: int) -> dict[str, Any]:
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    kind, base = rope.get("rope_type", "default"), float(rope.get("rope_theta", 10_000.0))
    figures: dict[str, Any] = {"rope.freq_base": base}
    if architecture not in {"gemma", "gemma2", "gemma3"}:
        figures["rope.dimension_count"] = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    if kind == "dynamic":  # Hunyuan's
        scaled = base * rope["alpha"] ** (head_dim / (head_dim - 2))
        figures |= {"rope.freq_base": scaled, "rope.scaling.type": "none", "rope.scaling.factor": 1.0}
    if kind in {"linear", "yarn"}:
        figures |= {"rope.scaling.type": kind, "rope.scaling.factor": rope["factor"]}
    trained = rope.get("original_max_position_embeddings", 0)
    if kind in {"yarn", "longrope"}:
        figures["rope.scaling.original_context_length"] = trained
    if kind == "longrope":
        factor = config["max_position_embeddings"] / trained
        scale = math.sqrt(1 + math.log(factor) / math.log(trained))
        figures |= {"rope.scaling.type": "longrope", "rope.scaling.attn_factor": scale}
    if architecture == "mistral3":
        figures |= {
            "rope.scaling.yarn_beta_fast": rope["beta_fast"], "rope.scaling.yarn_beta_slow": rope["beta_slow"],
            "rope.scaling.yarn_log_multiplier": rope["mscale_all_dim"],
            "attention.temperature_scale": rope["llama_4_scaling_beta"],
        }  # fmt: skip
    return figures
