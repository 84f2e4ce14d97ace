"""Loading: from what `model.source` says to a Model, with the backend that suits it and this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edged.core.errors import ModelError
from edged.core.prompt import ModelInfo
from edged.engine.backends.base import Backend
from edged.engine.backends.native_backend import NativeBackend
from edged.engine.backends.native_open import kernels_here, open_native
from edged.engine.chat import PromptEncoder
from edged.engine.engine import Engine
from edged.engine.kernels.library import load_library
from edged.engine.memory import available_bytes, give_back
from edged.engine.model import Model
from edged.engine.sampler import compiled
from edged.engine.table_splitter import codec_from_tables
from edged.models.formats.gguf import open_gguf
from edged.models.formats.packed import PackedModel
from edged.models.store.locate import LocatedModel, locate
from edged.models.store.packed_cache import packed_model
from edged.models.store.store import Store
from edged.models.tokenizer.codec import TextCodec
from edged.models.tokenizer.tables import open_tables
from edged.models.tokenizer.template import ChatTemplate
from edged.models.tokenizer.texts import read_texts

MODELS: Final = Path("/var/lib/edged/models")
_GPU_DEVICES: Final = ("/dev/nvidia0", "/dev/nvhost-gpu")
# What the torch backend may still run; other errors would meet it as well.
_NOT_FOR_NATIVE: Final = frozenset({"unsupported", "no_disk"})


@dataclass(frozen=True)
class _Order:
    """What to load, and how."""

    model: LocatedModel
    packed: PackedModel | None  # verified, where the model is a packed folder itself
    bits: str | int
    context: int | None
    threads: int | None
    models: Path
    progress: Callable[[str], None]
    exact: bool


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
    exact: bool = False,
) -> Model:
    """Loads what `model.source` takes, after verifying its bytes.

    `backend` `auto`: the native engine, and torch for what that cannot run or where a GPU is (`ModelInfo.fallback` says
    why). `context` None: what the model was trained for. `threads` None: as many as there are cores. `on_progress` gets
    short texts. `exact`: torch computes a GGUF file in float32, whatever that costs, as a reference.

    Raises ModelError `missing`, `tampered`, `unsupported`, `no_memory`, `no_disk` or `bad_model`.
    """
    progress = on_progress or (lambda _: None)
    if backend not in {"auto", "native", "torch"}:
        raise ModelError("unsupported", f"There is no backend {backend!r}; set model.backend to auto, native or torch.")
    progress("verifying the model")
    models = MODELS if store_root is None else store_root
    found = locate(str(source), digest, Store(models))
    packed = packed_model(found, bits, models, progress) if found.format == "packed" else None
    order = _Order(found, packed, bits, context, threads, models, progress, exact)
    computed, fallback = _open(order, backend)
    codec, template, architecture = _texts(order, computed)
    compiled()  # sampling's kernels, too, are built now rather than at the first token
    give_back()
    info = ModelInfo(
        name=found.name,
        digest=found.digest,
        architecture=architecture,
        quantization=computed.quantization,
        backend=computed.name,
        context=computed.context,
        slots=computed.slots,
        weights_bytes=computed.weights_bytes,
        fallback=fallback,
    )
    return Model(Engine(info, computed, codec, PromptEncoder(codec, template)), computed, codec)


def _open(order: _Order, backend: str) -> tuple[Backend, str]:
    """The backend, and why it is not the native one where nobody asked for another."""
    if backend == "torch":
        return _open_torch(order), ""
    if backend == "native" or order.model.format == "packed":
        return _open_native(order), ""
    if _gpu():
        return _open_torch(order), "this machine has a GPU"
    try:
        return _open_native(order), ""
    except ModelError as error:
        if error.code not in _NOT_FOR_NATIVE:
            raise
        reason = str(error)
    order.progress(f"taking the torch backend: {reason}")
    if importlib.util.find_spec("torch") is None:
        raise ModelError(
            "unsupported", f"{reason} Only the torch backend may run it; install that: pip install 'edged[torch]'."
        )
    return _open_torch(order), reason


def _open_native(order: _Order) -> Backend:
    kernels_here()
    order.progress("mapping the packed model")
    packed = order.packed or packed_model(order.model, order.bits, order.models, order.progress)
    return open_native(packed, order.context, order.threads, available_bytes)


def _open_torch(order: _Order) -> Backend:
    """The Llama family from a GGUF file is written out; transformers' classes compute everything else."""
    _check_torch(order)
    order.progress("loading the torch backend")
    try:
        from edged.engine.backends import torch_backend, torch_gguf, torch_hub
    except ImportError as error:
        raise ModelError(
            "unsupported", "The torch backend is not installed; run: pip install 'edged[torch]'."
        ) from error
    torch_backend.use_threads(order.threads)
    device = torch_backend.torch_device()
    available = torch_backend.free_gpu_bytes if device == "cuda" else available_bytes
    if order.model.format == "gguf":
        file = open_gguf(order.model.path)
        if shape := torch_gguf.written_out(file, order.context):
            return torch_gguf.open_llama(
                file, shape, order.context, device, order.progress, available, exact=order.exact
            )
    return torch_hub.open_hub(order.model, order.context, device, order.progress, available)


def _check_torch(order: _Order) -> None:
    """Raises ModelError `unsupported` for a format or bits that are not for torch."""
    if order.model.format == "packed":
        raise ModelError("unsupported", "The torch backend reads no packed folders; set model.backend to native.")
    if order.bits in {4, "4"}:
        raise ModelError(
            "unsupported", "4 bits are for the native engine; set model.bits to 8 or auto with the torch backend."
        )
    if order.model.format == "gguf" and order.bits != "auto":
        raise ModelError("unsupported", "A GGUF file keeps its own quantization; set model.bits to auto.")
    if order.bits not in {"auto", 8, "8"}:
        raise ModelError(
            "unsupported", f"model.bits {order.bits!r} is not supported by the torch backend; use 8 or auto."
        )


def _gpu() -> bool:
    """Whether torch is here and can compute on a GPU. torch is only imported where there may be one."""
    if not any(Path(device).exists() for device in _GPU_DEVICES) or importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


def _texts(order: _Order, computed: Backend) -> tuple[TextCodec, ChatTemplate | None, str]:
    """The tokenizer, the chat template and the architecture's name of a model."""
    tables = open_tables(computed.model.packed.folder) if isinstance(computed, NativeBackend) else None
    if tables:
        codec, source, architecture = (
            codec_from_tables(tables, load_library()),
            tables.about.template,
            tables.about.architecture,
        )
    else:
        texts = read_texts(order.model.path)
        codec, source, architecture = texts.codec, texts.template, texts.architecture
    return codec, ChatTemplate(source, codec.names) if source else None, architecture
