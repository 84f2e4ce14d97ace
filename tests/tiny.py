"""Tiny random models for tests: a GGUF file (numpy alone) and a checkpoint folder (torch and transformers).

Both are Llamas of 2 layers with a byte-level tokenizer, ChatML template, and a head that never chooses a control token
or an unprintable byte, so that they write printable junk for as long as one lets them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

WIDTH, HEADS, KV_HEADS, HEAD_SIZE, FFN = 64, 4, 2, 16, 128
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORDS = (  # noqa: SIM905
    "the of and to in is that it was for on are as with his "
    "they at be this have from or one had by word but not what all "
    "were we when your can said there use an each which she do how their "
    "if will up other about out many then them these capital Japan Tokyo France user "
    "system assistant"
).split()
TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges of a small byte-level vocabulary."""
    from edged.models.tokenizer.token_bytes import byte_level_letters

    tokens = [*CONTROL, *byte_level_letters()]
    merges: list[str] = []
    for word in [spelled for plain in WORDS for spelled in (f"Ġ{plain}", plain)]:
        for end in range(2, len(word) + 1):
            if word[:end] not in tokens:
                tokens.append(word[:end])
                merges.append(f"{word[: end - 1]} {word[end - 1]}")
    while len(tokens) % 32:
        tokens.append(f"<unused{len(tokens)}>")
    return tokens, merges


def _weights(seed: int, tokens: list[str], layers: int) -> dict[str, np.ndarray]:
    """float32 matrices by GGUF name. The first value of every embedding is large, so that the head can say "never"."""
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, scale: float) -> np.ndarray:
        return (random.standard_normal((rows, columns)) * scale / np.sqrt(columns)).astype(np.float32)

    size = len(tokens)
    weights = {"token_embd": matrix(size, WIDTH, 8.0), "output": matrix(size, WIDTH, 4.0)}
    weights["token_embd"][:, 0] = 6.0
    weights["output"][:, 0] = 0.0
    for index, token in enumerate(tokens):
        plain = token.replace("Ġ", " ")
        if index < len(CONTROL) or token.startswith("<unused") or not (plain.isascii() and plain.isprintable()):
            weights["output"][index, 0] = -30.0
    shapes = {
        "attn_q": (HEADS * HEAD_SIZE, WIDTH),
        "attn_k": (KV_HEADS * HEAD_SIZE, WIDTH),
        "attn_v": (KV_HEADS * HEAD_SIZE, WIDTH),
        "attn_output": (WIDTH, HEADS * HEAD_SIZE),
        "ffn_gate": (FFN, WIDTH),
        "ffn_up": (FFN, WIDTH),
        "ffn_down": (WIDTH, FFN),
    }
    for layer in range(layers):
        for name, (rows, columns) in shapes.items():
            values = weights[f"blk.{layer}.{name}"] = matrix(rows, columns, 3.0)
            if name in {"attn_output", "ffn_down"}:
                values[0] = 0.0  # nothing writes the first value of the stream …
            else:
                values[:, 0] = 0.0  # … and only the head reads it
    return weights


def _interleaved(values: np.ndarray) -> np.ndarray:
    """Rows of query or key heads in the order in which Llama files hold them: 0, E/2, 1, E/2 + 1, …"""
    halves = values.reshape(-1, 2, HEAD_SIZE // 2, WIDTH)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def written(writer: Any, path: Path) -> Path:
    """The file of a GGUFWriter that has been told everything."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def make_gguf(path: Path, seed: int = 0, context: int = 2048, layers: int = 2, template: str = TEMPLATE) -> Path:
    """Writes a tiny model as Q8_0. `layers` makes it slower. Needs neither torch nor transformers."""
    from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quantize

    tokens, merges = vocabulary()
    writer = GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(context)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(HEAD_SIZE)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_merges(merges)
    kinds = [TokenType.CONTROL if index < len(CONTROL) else TokenType.NORMAL for index in range(len(tokens))]
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(template)
    kind = GGMLQuantizationType.Q8_0
    for name, values in _weights(seed, tokens, layers).items():
        rows = _interleaved(values) if name.endswith(("attn_q", "attn_k")) else values
        writer.add_tensor(f"{name}.weight", quantize(rows, kind), raw_dtype=kind)
    for name in ["output_norm", *(f"blk.{layer}.{part}_norm" for layer in range(layers) for part in ("attn", "ffn"))]:
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    return written(writer, path)


def make_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Writes a tiny model as transformers does: config.json, model.safetensors, tokenizer.json. The same shape."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokens, merges = vocabulary()
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=WIDTH,
        intermediate_size=FFN,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    names = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    state = {}
    for name, values in _weights(seed, tokens, 2).items():
        if name == "token_embd":
            key = "model.embed_tokens.weight"
        elif name == "output":
            key = "lm_head.weight"
        else:
            _, layer, part = name.split(".")
            key = f"model.layers.{layer}.{names[part]}.weight"
        state[key] = torch.from_numpy(values)
    model.load_state_dict(state, strict=False)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(
        models.BPE({token: index for index, token in enumerate(tokens)}, [tuple(merge.split(" ")) for merge in merges])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=CONTROL[1], eos_token=CONTROL[2])
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return folder
