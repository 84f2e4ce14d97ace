"""What transformers would compute in another way than the model means it, found before the first prompt.

Its loader of GGUF files leaves out metadata and tensors that it does not know; some of its networks forget their state
between the pieces of a prompt. A model must pass these checks, or it is refused with the reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from edged.core.errors import NoBackend
from edged.models.formats.gguf import GgufFile

if TYPE_CHECKING:
    from edged.engine.backends.torch_hub import HubNetwork

_NAMES: Final = {
    "qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss", "minimax-m2": "minimax_m2",
}  # fmt: skip
# Sizes that the tensors' shapes repeat, and what only describes the file: loading fails where the former are wrong.
_HARMLESS: Final = frozenset({
    "attention.key_length", "attention.value_length", "expert_feed_forward_length", "vocab_size", "attention.causal",
    "expert_shared_feed_forward_length", "feed_forward_length", "context_length", "tensor_data_layout",
    "rope.scaling.finetuned",
})  # fmt: skip
_PIECES: Final = (9, 1, 6)  # tokens computed one after the other over a cache, as the engine does
_TOLERANCE: Final = 5e-5  # of the largest logit; float32 networks were seen at 4e-7, wrong ones at 3e-4 and more


def check_metadata(file: GgufFile) -> None:
    """Raises NoBackend for a figure of the file that transformers leaves out."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    architecture = str(file.get("general.architecture"))
    known = GGUF_CONFIG_MAPPING.get(_NAMES.get(architecture, architecture), {})
    applied = {key for key, name in known.items() if name is not None} | _HARMLESS
    width, heads = (file.get(f"{architecture}.{key}", 0) for key in ("embedding_length", "attention.head_count"))
    head_dim = file.get(f"{architecture}.attention.key_length") or (width // heads if heads else 0)
    for key, value in file.metadata.items():
        name = key.removeprefix(f"{architecture}.")
        if name == key or name in applied or value in (0, "", [], "none"):
            continue
        if name == "rope.dimension_count" and value == head_dim:
            continue
        raise NoBackend(
            f"transformers does not apply {key} = {str(value)[:60]} of {file.path.name}; use another model."
        )


def check_tensors(file: GgufFile, network: Any) -> None:
    """Raises NoBackend for a tensor of the file that transformers' network did not get."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    architecture = file.get("general.architecture")
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=network.config.to_dict())
    used = get_gguf_hf_weights_map(network, processor)
    if extra := sorted(file.tensors.keys() - used.keys()):
        raise NoBackend(f"transformers does not use the tensor {extra[0]} of {file.path.name}; use another model.")


def check_pieces(network: HubNetwork, vocabulary: int, name: str, device: str) -> None:
    """Raises NoBackend for a network that gives other logits piece by piece than at once, or none."""
    tokens = (torch.arange(sum(_PIECES)) * 7 + 3) % vocabulary
    tokens = tokens.to(device)
    try:
        with torch.no_grad():
            whole = network.forward(network.new_cache(), tokens, 0, every=True)
            cache, start, rows = network.new_cache(), 0, []
            for count in _PIECES:
                rows.append(network.forward(cache, tokens[start : start + count], start, every=True))
                start += count
            off = (torch.cat(rows) - whole).abs().max() / whole.abs().max()
            right = bool(off <= _TOLERANCE * (1000 if device == "cuda" else 1))
    except Exception as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise NoBackend(f"transformers cannot compute {name} over a cache ({line}); use another model.") from error
    if not right:
        raise NoBackend(
            f"transformers computes {name} in another way when a prompt comes in pieces, as edged gives it; "
            "use another model."
        )
