"""A loaded model for programs: logits and generation, one thread at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from edged.core.errors import ModelError, PromptRefused
from edged.core.prompt import Chunk, Final, ModelInfo, Request, Sampling, Started, Turn
from edged.engine.backends.base import MAX_SLICE, Backend, ComputeError, Slice
from edged.engine.chat import PromptEncoder
from edged.engine.engine import Engine, Event
from edged.engine.memory import available_bytes, give_back
from edged.models.checkpoint import chat_template
from edged.models.gguf_file import open_gguf
from edged.models.locate import LocatedModel, locate
from edged.models.store import Store
from edged.models.template import ChatTemplate
from edged.models.tokenizer import TextCodec
from edged.models.tokenizer_sources import codec_from_folder, codec_from_gguf, read_json


class Model:
    """A model in memory. `engine` computes; use either it or `generate`, not both at once."""

    def __init__(self, engine: Engine, backend: Backend, codec: TextCodec) -> None:
        self.engine = engine
        self.codec = codec
        self._backend = backend
        self._keys = count()
        self._inbox: dict[str, deque[Event]] = {}

    @property
    def info(self) -> ModelInfo:
        """What is loaded."""
        return self.engine.info

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """The logits after each token: float32 [tokens, vocabulary].

        Raises PromptRefused `invalid` for no tokens or ids out of range, `too_long` for more than the context.
        """
        if not tokens or min(tokens) < 0 or max(tokens) >= self._backend.vocabulary:
            raise PromptRefused(
                "invalid", "tokens", f"Give at least one token, each from 0 to {self._backend.vocabulary - 1}."
            )
        if len(tokens) > self.info.context:
            raise PromptRefused(
                "too_long",
                "too_long",
                f"{len(tokens)} tokens do not fit the context of {self.info.context}; give fewer.",
            )
        slot = self._backend.open()
        try:
            rows = []
            for start in range(0, len(tokens), MAX_SLICE):
                (result,) = self._backend.run([Slice(slot, start, tokens[start : start + MAX_SLICE])], every=True)
                if isinstance(result, ComputeError):
                    raise PromptRefused("failed", "compute", f"The model cannot compute this: {result}.")
                rows.append(result)
            return np.concatenate(rows)
        finally:
            self._backend.close(slot)

    def generate(
        self, prompt: str | Sequence[Turn] | Request, sampling: Sampling | None = None
    ) -> Iterator[Chunk | Final]:
        """Answers a prompt: chunks of text, then one final. A text is one turn of the user.

        `sampling` replaces that of a Request. Several generators may be read in turns; closing one cancels its prompt.
        Raises PromptRefused at once, before anything is computed.
        """
        request = _request(prompt, sampling)
        key = f"generate-{next(self._keys)}"
        self.engine.add(key, request)
        self._inbox[key] = deque()
        return self._events(key)

    def _events(self, key: str) -> Iterator[Chunk | Final]:
        inbox = self._inbox[key]
        try:
            while True:
                while not inbox:
                    self._step()
                event = inbox.popleft()
                if not isinstance(event, Started):
                    yield event
                if isinstance(event, Final):
                    return
        finally:
            del self._inbox[key]
            self.engine.cancel(key)

    def _step(self) -> None:
        for key, event in self.engine.step():
            if key in self._inbox:
                self._inbox[key].append(event)


def load_model(
    source: str | Path,
    backend: str = "auto",
    *,
    context: int | None = None,
    threads: int | None = None,
    digest: str | None = None,
    bits: str | int = "auto",
    store_root: Path | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Model:
    """Loads what `model.source` takes, after verifying its bytes.

    `context` None: what the model was trained for. `threads` None: as many as there are cores. `on_progress` gets short
    texts. Raises ModelError `missing`, `tampered`, `unsupported`, `no_memory` or `bad_model`.
    """
    progress = on_progress or (lambda _: None)
    if backend not in {"auto", "torch"}:
        raise ModelError(
            "unsupported", f"The backend {backend!r} is not in this version yet; set model.backend to torch or auto."
        )
    progress("verifying the model")
    store = Store(store_root if store_root is not None else Path("/var/lib/edged/models"))
    found = locate(str(source), digest, store)
    codec, template = _texts(found)
    progress("loading the torch backend")
    try:
        from edged.engine.backends.torch_backend import open_torch
    except ImportError as error:
        raise ModelError(
            "unsupported", "The torch backend is not installed; run: pip install 'edged[torch]'."
        ) from error
    computed = open_torch(found, bits, context, threads, progress, available_bytes)
    give_back()
    info = ModelInfo(
        name=found.name,
        digest=found.digest,
        architecture=_architecture(found),
        quantization=computed.quantization,
        backend=computed.name,
        context=computed.context,
        slots=computed.slots,
        weights_bytes=computed.weights_bytes,
    )
    return Model(Engine(info, computed, codec, PromptEncoder(codec, template)), computed, codec)


def _texts(found: LocatedModel) -> tuple[TextCodec, ChatTemplate | None]:
    """The tokenizer and the chat template of a model."""
    if found.format == "gguf":
        file = open_gguf(found.path)
        codec, source = codec_from_gguf(file), file.get("tokenizer.chat_template")
    else:
        codec, source = codec_from_folder(found.path), chat_template(found.path)
    return codec, ChatTemplate(source, codec.names) if isinstance(source, str) and source else None


def _architecture(found: LocatedModel) -> str:
    if found.format == "gguf":
        return str(open_gguf(found.path).get("general.architecture", "unknown"))
    return str(read_json(found.path / "config.json").get("model_type", "unknown"))


def _request(prompt: str | Sequence[Turn] | Request, sampling: Sampling | None) -> Request:
    if isinstance(prompt, Request):
        return prompt if sampling is None else msgspec.structs.replace(prompt, sampling=sampling)
    turns = (Turn("user", prompt),) if isinstance(prompt, str) else tuple(prompt)
    return Request(turns=turns, sampling=sampling or Sampling())
