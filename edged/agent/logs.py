"""The log: one line an event, console on a terminal, JSON elsewhere. Control and bidi characters are escaped."""

from __future__ import annotations

import logging
import re
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def _without_rich() -> Iterator[None]:
    """structlog's console imports rich where it finds it: 3 MB that the agent has no use for."""
    known = sys.modules.get("rich")
    sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["rich"]
        if known is not None:
            sys.modules["rich"] = known


with _without_rich():
    import structlog

_KEPT_LINES = 500
_KEPT_BYTES = 60_000
_LINE = 4000  # characters of a line that are kept
_recent: deque[str] = deque(maxlen=_KEPT_LINES)  # the program's one log: shared by all that write to it
_HOSTILE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
Logger = structlog.typing.FilteringBoundLogger


def configure(level: str, form: str) -> None:
    """Set level and format; may be called again while running. `form` is `auto`, `console` or `json`."""
    on_terminal = sys.stderr.isatty() if form == "auto" else form == "console"
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        if on_terminal
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if on_terminal else "iso", utc=not on_terminal),
            *([] if on_terminal else [structlog.processors.dict_tracebacks]),
            _without_none,
            _escape,
            _keeping(renderer),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def logger() -> Logger:
    """The program's one logger."""
    made: Logger = structlog.get_logger()
    return made


def recent() -> bytes:
    """The last lines, at most 60 KB."""
    kept = b"".join(f"{line}\n".encode("utf-8", "replace") for line in list(_recent))
    return kept if len(kept) <= _KEPT_BYTES else kept[-_KEPT_BYTES:].partition(b"\n")[2]


def _keeping(render: Any) -> Any:
    """The renderer, which also keeps what it has rendered for `recent`."""

    def rendered(logger: Any, method: str, entry: structlog.typing.EventDict) -> str:
        line: str = render(logger, method, entry)
        _recent.append(line[:_LINE])
        return line

    return rendered


def _without_none(_logger: Any, _method: str, entry: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """What is not known is left out."""
    return {key: value for key, value in entry.items() if value is not None}


def _escape(_logger: Any, _method: str, entry: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Text that came from elsewhere must not forge a line or turn one around."""
    for key, value in entry.items():
        if isinstance(value, str) and key != "exception":
            entry[key] = _HOSTILE.sub(lambda match: f"\\u{ord(match[0]):04x}", value)
    return entry
