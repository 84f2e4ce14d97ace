"""Loading: from what `model.source` says to a Model, with the backend that suits it and this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edged.core.chat_templates import AUTO
from edged.core.errors import ModelError, NoBackend
from edged.core.prompt import ModelInfo
from edged.engine.backends.base import Backend
from edged.engine.backends.extras import needs_extra
from edged.engine.backends.native_backend import NativeBackend
from edged.engine.backends.native_open import kernels_here, open_native
from edged.engine.chat import PromptEncoder
from edged.engine.engine import Engine
from edged.engine.kernels.library import load_library
from edged.engine.memory import available_bytes, trim_heap
from edged.engine.model import Model
from edged.engine.sampler import compiled
from edged.engine.table_splitter import codec_from_tables
from edged.models.formats.gguf import open_gguf
from edged.models.formats.packed import GGUF_TOKENIZER, PackedModel
from edged.models.formats.pooling import pooling_of
from edged.models.own_sampling import own_sampling
from edged.models.panics import panics_as
from edged.models.store.locate import LocatedModel, locate
from edged.models.store.packed_cache import packed_model
from edged.models.store.store import Store
from edged.models.tokenizer.codec import TextCodec
from edged.models.tokenizer.tables import open_tables
from edged.models.tokenizer.template_choice import Source, choose_template
from edged.models.tokenizer.texts import read_texts

MODELS: Final = Path("/var/lib/edged/models")
_GPU_DEVICES: Final = ("/dev/nvidia0", "/dev/nvhost-gpu")
# Errors of the native engine with which torch may still run the model; others would occur there as well.
_TRY_TORCH: Final = frozenset({"unsupported", "no_disk"})


@dataclass(frozen=True)
class _LoadRequest:
    """What to load, and how."""

    model: LocatedModel
    packed: PackedModel | None  # verified, where the model is a packed folder itself
    bits: str | int
    context: int | None
    threads: int | None
    models: Path
    progress: Callable[[str], None]
    exact: bool


@panics_as(lambda why: ModelError("bad_model", f"A file of the model cannot be used ({why}); fetch the model again."))
def load_model(
    source: str | Path,
    backend: str = "auto",
    *,
    context: int | None = None,
    threads: int | None = None,
    digest: str | None = None,
    bits: str | int = "auto",
    template: str = AUTO,
    store_root: Path | None = None,
    on_progress: Callable[[str], None] | None = None,
    exact: bool = False,
) -> Model:
    """Loads what `model.source` takes, after verifying its bytes.

    `backend` `auto`: the native engine, and torch for what that cannot run or where a GPU is (`ModelInfo.fallback` says
    why). `template`: as `model.template`. `context` None: what the model was trained for. `threads` None: as many as
    there are cores. `on_progress` gets short texts. `exact`: torch computes in float32, whatever that costs, as a
    reference.

    Raises ModelError `missing`, `tampered`, `unsupported`, `no_memory`, `no_disk` or `bad_model`.
    """
    progress = on_progress or (lambda _: None)
    if backend not in {"auto", "native", "torch"}:
        raise ModelError("unsupported", f"There is no backend {backend!r}; set model.backend to auto, native or torch.")
    progress("verifying the model")
    models = MODELS if store_root is None else store_root
    located = locate(str(source), digest, Store(models))
    packed = packed_model(located, bits, models, progress) if located.format == "packed" else None
    request = _LoadRequest(located, packed, bits, context, threads, models, progress, exact)
    opened, fallback = _open(request, backend)
    codec, source_of_template, architecture = _texts(request, opened)
    chosen = choose_template(template, source_of_template, codec)
    compiled()  # sampling's kernels, too, are built now rather than at the first token
    trim_heap()
    info = ModelInfo(
        name=located.name,
        digest=located.digest,
        architecture=architecture,
        quantization=opened.quantization,
        backend=opened.name,
        context=opened.context,
        slots=opened.slots,
        weights_bytes=opened.weights_bytes,
        fallback=fallback,
        template=chosen.name,
        template_problem=chosen.problem,
        sampling=own_sampling(located.name, located.digest, located.path),
    )
    folder = opened.model.packed.folder if isinstance(opened, NativeBackend) else request.model.path
    pooling = pooling_of(folder / GGUF_TOKENIZER if (folder / GGUF_TOKENIZER).is_file() else request.model.path)
    engine = Engine(info, opened, codec, PromptEncoder(codec, chosen.template, chosen.problem), pooling=pooling)
    return Model(engine, opened, codec)


def _open(request: _LoadRequest, backend: str) -> tuple[Backend, str]:
    """Chooses and opens the backend; and why it is not the native one where `auto` was asked for, else ""."""
    if backend == "torch":
        return _open_torch(request), ""
    if backend == "native" or request.model.format == "packed":
        return _open_native(request), ""
    if _gpu():
        return _open_torch(request), "this machine has a GPU"
    try:
        return _open_native(request), ""
    except ModelError as error:
        if error.code not in _TRY_TORCH or isinstance(error, NoBackend):
            raise
        reason = str(error)
    request.progress(f"using the torch backend: {reason}")
    if importlib.util.find_spec("torch") is None:
        raise needs_extra(f"{reason} Only the torch backend may run it, and it is not installed.")
    return _open_torch(request), reason


def _open_native(request: _LoadRequest) -> Backend:
    kernels_here()
    request.progress("mapping the packed model")
    packed = request.packed or packed_model(request.model, request.bits, request.models, request.progress)
    return open_native(packed, request.context, request.threads, available_bytes)


def _open_torch(request: _LoadRequest) -> Backend:
    """GGUF files of known families run in `torch_llama`; transformers' classes run everything else."""
    _check_torch(request)
    request.progress("loading the torch backend")
    try:
        from edged.engine.backends import torch_backend, torch_gguf, torch_hub
    except ImportError as error:
        raise needs_extra("The torch backend is not installed.") from error
    torch_backend.use_threads(request.threads)
    device = torch_backend.torch_device()
    available = torch_backend.free_gpu_bytes if device == "cuda" else available_bytes
    if request.model.format == "gguf":
        file = open_gguf(request.model.path)
        if shape := torch_gguf.written_out(file):
            return torch_gguf.open_llama(
                file, shape, request.context, device, request.progress, available, exact=request.exact
            )
    return torch_hub.open_hub(request.model, request.context, device, request.progress, available, exact=request.exact)


def _check_torch(request: _LoadRequest) -> None:
    """Raises ModelError `unsupported` for a format or bits that are not for torch."""
    if request.model.format == "packed":
        raise ModelError("unsupported", "The torch backend reads no packed folders; set model.backend to native.")
    if request.bits in {4, "4"}:
        raise ModelError(
            "unsupported", "4 bits are for the native engine; set model.bits to 8 or auto with the torch backend."
        )
    if request.model.format == "gguf" and request.bits != "auto":
        raise ModelError("unsupported", "A GGUF file keeps its own quantization; set model.bits to auto.")
    if request.bits not in {"auto", 8, "8"}:
        raise ModelError(
            "unsupported", f"model.bits {request.bits!r} is not supported by the torch backend; use 8 or auto."
        )


def _gpu() -> bool:
    """Whether torch is installed and can compute on a GPU. It is imported only where there may be one."""
    if not any(Path(device).exists() for device in _GPU_DEVICES) or importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


def _texts(request: _LoadRequest, opened: Backend) -> tuple[TextCodec, Source | None, str]:
    """The tokenizer, the chat template's source and the architecture's name of a model."""
    tables = open_tables(opened.model.packed.folder) if isinstance(opened, NativeBackend) else None
    if tables:
        return codec_from_tables(tables, load_library()), tables.about.template, tables.about.architecture
    texts = read_texts(request.model.path)
    return texts.codec, texts.template, texts.architecture
