"""Panics of libraries written in Rust: exceptions that no `except Exception` catches, raised over damaged files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_MODULE: Final = "pyo3_runtime"  # where pyo3 puts its PanicException, which cannot be imported


@contextmanager
def panics_as(error: Callable[[str], Exception]) -> Iterator[None]:
    """Raises `error(message)` in place of a library's panic; everything else goes through."""
    try:
        yield
    except BaseException as panic:
        if type(panic).__module__ != _MODULE:
            raise
        raise error(" ".join(str(panic).split())[:200]) from None
