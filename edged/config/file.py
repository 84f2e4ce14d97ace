"""The owner's config file: YAML text → checked values. Errors name file, line and key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edged.config import checks, strict_yaml
from edged.config.environment import from_environment
from edged.config.keys import check_file
from edged.config.schema import build, merge
from edged.core.errors import BadValue, ConfigError

DEFAULT_PATH = Path("/etc/edged/edged.yaml")
MAX_BYTES = 1_000_000


class Unreadable(ConfigError):
    """The default file is there, or may be, and this user cannot read it."""


def load(path: Path | None, environment: Mapping[str, str]) -> dict[str, Any]:
    """Checked values of the file at `path` (None: the default path, which may be absent); variables override them.

    Raises ConfigError with one sentence for a person, Unreadable for the default path.
    """
    chosen = path or DEFAULT_PATH
    source = _read(chosen) if path is not None else _read_default()
    values = merge(parse(source, str(chosen)), from_environment(environment))
    try:
        build(values)
    except BadValue as error:
        raise ConfigError(f"{chosen}: {error}") from None
    return values


def parse(source: str, name: str) -> dict[str, Any]:
    """YAML text → checked values; `name` is the file's name in errors. Raises ConfigError."""
    try:
        document = strict_yaml.loads(source)
    except strict_yaml.BadYaml as error:
        where = name if error.line is None else f"{name}:{error.line}"
        raise ConfigError(f"{where}: {error}") from None
    try:
        return check_file({} if document.value is None else document.value)
    except BadValue as error:
        raise ConfigError(f"{name}:{document.line_of(error.path)}: {error}") from None


def _read(path: Path) -> str:
    try:
        return _text(path, path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give another file with --config") from None


def _read_default() -> str:
    """The default file's text, empty where there is none. It is the service's: other users may not see its folder."""
    try:
        return _text(DEFAULT_PATH, DEFAULT_PATH.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        fix = "run this with sudo, or give another file with --config"
        raise Unreadable(f"{DEFAULT_PATH}: cannot be read ({error.strerror}); {fix}") from None


def _text(path: Path, raw: bytes) -> str:
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: is larger than {checks.show_size(MAX_BYTES)}; a config file is a few lines")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from None
