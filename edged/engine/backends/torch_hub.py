"""Models in transformers' own classes: checkpoint folders, and GGUF files of architectures that `torch_llama` lacks.

Checkpoints are rounded to 8 bits at load with optimum-quanto (contract: `bits: auto`). On a CPU computing stays in
float32: bfloat16 prefill is far slower on boards without bfloat16 matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from math import prod
from typing import Any

import torch

from edged.core.errors import ModelError
from edged.engine.backends.extras import needs_extra
from edged.engine.backends.torch_backend import TorchBackend
from edged.engine.memory import admit
from edged.models.formats.gguf import open_gguf
from edged.models.store.locate import LocatedModel


class HubNetwork:
    """A causal language model of transformers. A cache is its DynamicCache."""

    def __init__(self, model: Any) -> None:
        self._model = model
        # transformers 5.24 gave the argument a new name, and takes the old one no longer from 5.40 on.
        self._cache_name = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"

    def new_cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self._model.config)

    def forward(self, cache: Any, tokens: Any, start: int, every: bool) -> Any:
        """tokens int64 [T] → logits [T or 1, V]."""
        if cache.get_seq_length() != start:
            raise RuntimeError(f"the cache holds {cache.get_seq_length()} tokens, not {start}")
        named = {self._cache_name: cache}
        output = self._model(input_ids=tokens[None], use_cache=True, logits_to_keep=0 if every else 1, **named)
        return output.logits[0]


def open_hub(
    model: LocatedModel,
    context: int | None,
    device: str,
    progress: Callable[[str], None],
    available: Callable[[], int],
    exact: bool,
) -> TorchBackend:
    """Loads a model with transformers. `exact`: in float32, and nothing is rounded.

    Raises ModelError `unsupported`, `bad_model` or `no_memory`.
    """
    progress("importing transformers")
    config, source, count = _describe(model)
    trained = int(getattr(config, "max_position_embeddings", 0) or context or 2048)
    context = min(context or trained, trained)
    dtype = torch.bfloat16 if device == "cuda" and not exact else torch.float32
    budget = admit(count * dtype.itemsize, _cache_values(config) * dtype.itemsize * context, available())
    progress("reading the weights")
    network = _load(model, source, dtype).to(device).eval()
    precision = str(dtype).removeprefix("torch.")
    if model.format == "gguf":
        quantization = f"{precision} (from {open_gguf(model.path).quantization()})"
    elif exact:
        quantization = f"{precision} (from {_stored(config, precision)})"
    else:
        progress("rounding the weights to 8 bits")
        quantization = _to_8_bits(network, precision, _stored(config, precision))
    size = sum(_bytes(tensor) for tensor in {id(value): value for value in _tensors(network)}.values())
    vocabulary = int(network.get_output_embeddings().out_features)
    return TorchBackend(HubNetwork(network), quantization, vocabulary, context, budget.slots, size, device)


def _describe(model: LocatedModel) -> tuple[Any, dict[str, str], int]:
    """transformers' config, the arguments that name the source, and the number of weights."""
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise needs_extra("This model needs transformers.") from error
    if model.format == "gguf":
        file = open_gguf(model.path)
        where, source = model.path.parent, {"gguf_file": model.path.name}
        count = file.weight_count()
    else:
        where, source, count = model.path, {}, _safetensors_weights(model)
    try:
        config = AutoConfig.from_pretrained(where, local_files_only=True, trust_remote_code=False, **source)
    except Exception as error:
        raise ModelError("unsupported", f"transformers cannot load {model.name}: {_first_line(error)}.") from error
    return config.get_text_config(), source, count


def _load(model: LocatedModel, source: dict[str, str], dtype: Any) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # progress is reported through `progress`
    where = model.path.parent if model.format == "gguf" else model.path
    options: dict[str, Any] = {} if source else {"use_safetensors": True}
    try:
        network, report = AutoModelForCausalLM.from_pretrained(
            where,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **source,
            **options,
        )
    except Exception as error:
        raise ModelError("bad_model", f"transformers cannot load {model.name}: {_first_line(error)}.") from error
    missing = sorted(report.get("missing_keys") or ())
    if missing:
        raise ModelError(
            "bad_model", f"{model.name} lacks {len(missing)} weights ({missing[0]} …); fetch the model again."
        )
    return network


def _to_8_bits(network: Any, precision: str, stored: str) -> str:
    """Rounds the linear layers in place, but for the head, which is often the embedding. Returns what computes now."""
    try:
        from optimum.quanto import freeze, qint8, quantization_map, quantize
    except ImportError as error:
        raise needs_extra("8 bits need optimum-quanto.") from error
    quantize(network, weights=qint8, exclude="lm_head")
    freeze(network)
    if not quantization_map(network):
        return f"{precision} (from {stored}; no layer can be 8 bits)"
    return f"qint8, head {precision} (from {stored})"


def _stored(config: Any, precision: str) -> str:
    """The type of a checkpoint's weights (`bfloat16`)."""
    return str(getattr(config, "dtype", None) or precision).removeprefix("torch.")


def _cache_values(config: Any) -> int:
    """Keys and values of one token, over all layers."""
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return 2 * int(config.num_hidden_layers) * kv_heads * size


def _safetensors_weights(model: LocatedModel) -> int:
    from edged.models.formats.checkpoint import read_headers

    return sum(prod(shape) for shape in read_headers(model.path).values())


def _tensors(network: Any) -> list[Any]:
    return [*network.parameters(), *network.buffers()]


def _bytes(tensor: Any) -> int:
    inner = getattr(tensor, "_data", None)  # a quanto tensor: int8 values and their scales
    if inner is not None:
        scale = tensor._scale  # noqa: SLF001 quanto has no public name for it
        return int(inner.numel() * inner.element_size() + scale.numel() * scale.element_size())
    return int(tensor.numel() * tensor.element_size())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
