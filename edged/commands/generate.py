"""`edged generate`: one prompt without a broker, its answer as it streams."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from edged.command_line import reason, text_or_input
from edged.commands.configured import configured, store_folder
from edged.commands.model import fetch_missing
from edged.commands.progress import step_on_terminal
from edged.config.keys import SAMPLING
from edged.core.errors import ModelError, PromptRefused
from edged.core.prompt import MODEL_SAMPLING, Chunk, Final, Request, Sampling, Turn
from edged.engine import load_model


def run(arguments: argparse.Namespace) -> int:
    """Print the answer, and a summary on stderr. Raises EdgedError."""
    _, settings, _ = configured(arguments)
    own_temperature = arguments.temperature is None
    temperature = Sampling().temperature if own_temperature else arguments.temperature
    sampling = Sampling(
        max_tokens=SAMPLING["max_tokens"]("--max-tokens", arguments.max_tokens),
        temperature=SAMPLING["temperature"]("--temperature", temperature),
        seed=None if arguments.seed is None else SAMPLING["seed"]("--seed", arguments.seed),
    )
    text = text_or_input("TEXT", arguments.text)
    root = store_folder(settings)
    fetch_missing(arguments.model, root)
    try:
        model = load_model(
            arguments.model,
            arguments.backend,
            context=settings.model.context,
            threads=settings.model.threads,
            bits=settings.model.bits,
            template=settings.model.template,
            store_root=root,
            on_progress=step_on_terminal,
        )
    except OSError as error:
        why = reason(error, arguments.model)
        raise ModelError("unreachable", f"{arguments.model} cannot be read ({why}); check the path") from None
    request = Request(
        turns=() if arguments.raw else (Turn("user", text),),
        raw=text if arguments.raw else None,
        sampling=sampling,
        arrived=time.time(),
        unset=tuple(name for name in MODEL_SAMPLING if own_temperature or name != "temperature"),
    )
    if model.info.fallback:
        print(f"edged: the torch backend is used: {model.info.fallback}", file=sys.stderr)
    for piece in model.generate(request):
        if isinstance(piece, Chunk):
            if not arguments.json:
                print(piece.text, end="", flush=True)
        elif arguments.json:
            print(json.dumps(_answer(piece, model.info.name, model.info.quantization), ensure_ascii=False))
        else:
            print()
            _summary(piece)
        if isinstance(piece, Final) and piece.reason not in {"stop", "length"}:
            raise PromptRefused(piece.reason, "engine", f"the answer ended as {piece.reason}")
    return 0


def _answer(final: Final, model: str, quantization: str) -> dict[str, Any]:
    return {
        "reason": final.reason,
        "text": final.text,
        "usage": {
            "prompt_tokens": final.usage.prompt_tokens,
            "cached_tokens": final.usage.cached_tokens,
            "completion_tokens": final.usage.completion_tokens,
        },
        "prefill_ms": round(final.prefill_ms, 1),
        "decode_ms": round(final.decode_ms, 1),
        "seed": final.seed,
        "model": model,
        "quantization": quantization,
    }


def _summary(final: Final) -> None:
    tokens = final.usage.completion_tokens
    speed = f", {(tokens - 1) / final.decode_ms * 1000:.1f} tokens/s" if tokens > 1 and final.decode_ms else ""
    print(f"— {final.reason}, {tokens} tokens{speed}", file=sys.stderr)
