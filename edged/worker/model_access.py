"""Which files a worker needs for the model that it must load, and no others."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

import edged
from edged.core.chat_templates import is_file
from edged.core.errors import ModelError
from edged.models.formats.gguf_split import part_paths
from edged.models.store.packed_cache import FOLDER
from edged.models.store.user_cache import user_cache
from edged.worker.frames import Load
from edged.worker.sandbox import Access

# What the kernel says about memory and processors; what the C library and Python read at start and on first use.
_SYSTEM = ("/proc", "/sys", "/usr", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/etc/passwd",
           "/etc/nsswitch.conf", "/etc/ssl/openssl.cnf", "/etc/alternatives")  # fmt: skip
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_GPU_DEVICES = ("/dev/nvidia*", "/dev/nvhost*", "/dev/nvmap", "/dev/dri", "/dev/kfd")
_LOADERS = ("/lib64/ld-*", "/lib/ld-*", "/lib/*/ld-*")  # what starts a dynamically linked program
_MAX_LINKS = 1000


def access_for(order: Load) -> Access:
    """The model and the store to read, the packed folders to write, Python and the system's libraries to run.

    Makes the folders for packed models where they are missing, since those above them cannot be written later.
    """
    store = Path(order.store)
    return Access(
        read=(*map(Path, _SYSTEM), *_libraries(), store, *_model(order.source, store), *_template(order.template)),
        run=(Path(sys.executable).resolve(), *_matching(_LOADERS)),
        devices=(*map(Path, _DEVICES), *_matching(_GPU_DEVICES)),
        # The check of a format offers itself to the out-of-memory killer; what root could write there is too much.
        update=() if os.geteuid() == 0 else (Path("/proc"),),
        # A child Python that imports this package from where it is developed looks for it there.
        names=(Path(edged.__file__).resolve().parent.parent,),
        write=tuple(_packed_folders(store)),
    )


def use_temporary_folder(access: Access) -> None:
    """Sends what libraries write for a moment (transformers does) to an empty folder that can be written.

    One that a killed worker left is emptied.
    """
    for folder in access.write:
        temporary = folder / ".tmp"
        with suppress(OSError):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(mode=0o700, exist_ok=True)
            os.environ["TMPDIR"] = str(temporary)
            return


def _libraries() -> Iterator[Path]:
    """Python's own folders, those of installed packages, this package. Never the working directory."""
    yield Path(edged.__file__).resolve().parent
    yield from map(Path, {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix})
    yield from map(Path, set(sysconfig.get_paths().values()))
    yield from (Path(entry) for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages"))


def _model(source: str, store: Path) -> Iterator[Path]:
    """The file or folder that a source names, if it names one; of a model that is split, all of its files.

    Of links in a folder only those are followed that lead to `../../blobs`, as in the cache of Hugging Face's library.
    """
    path = Path(source).expanduser()
    if not path.exists() or store.resolve().is_relative_to(path.resolve()):
        return
    yield path
    if path.is_file():
        with suppress(ModelError):  # reported when the model is opened
            yield from part_paths(path)
    if path.is_dir():
        blobs = path.resolve().parent.parent / "blobs"
        for entry in islice((entry for entry in path.rglob("*") if entry.is_symlink()), _MAX_LINKS):
            if entry.resolve().parent == blobs:
                yield entry.resolve()


def _template(template: str) -> Iterator[Path]:
    if is_file(template) and (path := Path(template).expanduser()).is_file():
        yield path


def _packed_folders(store: Path) -> Iterator[Path]:
    cache = user_cache()
    kept = [store / FOLDER] if store.parent.is_dir() else []
    for folder in (*kept, *([cache / FOLDER] if cache else [])):
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            yield folder


def _matching(patterns: tuple[str, ...]) -> Iterator[Path]:
    for pattern in patterns:
        yield from (found.resolve() for found in Path("/").glob(pattern.removeprefix("/")))
