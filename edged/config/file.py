"""The owner's config file: YAML text and `EDGED_…` variables → checked values. Errors name file, line and key."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from edged.config import checks as f
from edged.config.schema import build, check_file, known_keys, merge
from edged.core.errors import BadValue, ConfigError

DEFAULT_PATH = Path("/etc/edged/edged.yaml")
PREFIX = "EDGED_"
MAX_BYTES = 1_000_000


class Unreadable(ConfigError):
    """The default file is there, or may be, and this user cannot read it."""


def load(path: Path | None, environment: Mapping[str, str]) -> dict[str, Any]:
    """Checked values of the file at `path` (None: the default path, which may be absent) with variables laid over.

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
        mend = "run this with sudo, or give another file with --config"
        raise Unreadable(f"{DEFAULT_PATH}: cannot be read ({error.strerror}); {mend}") from None


def _text(path: Path, raw: bytes) -> str:
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: is larger than {f.show_size(MAX_BYTES)}; a config file is a few lines")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from None


def parse(source: str, name: str) -> dict[str, Any]:
    """YAML text → checked values. Aliases, anchors, tags and duplicate keys are refused. Raises ConfigError."""
    try:
        if forbidden := _forbidden(source):
            line, sentence = forbidden
            raise ConfigError(f"{name}:{line}: {sentence}")
        root = yaml.compose(source, Loader=yaml.SafeLoader)
        lines: dict[str, int] = {}
        _note_lines(root, "", lines, name)
        document = yaml.safe_load(source)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{name}:{line}: is not valid YAML ({error.problem})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: is not valid YAML ({str(error).splitlines()[0]})") from None
    try:
        return check_file({} if document is None else document)
    except BadValue as error:
        raise ConfigError(f"{name}:{_line_of(error.path, lines)}: {error}") from None


def _forbidden(source: str) -> tuple[int, str] | None:
    """The first line with an anchor, alias or tag, and what to say of it. Raises yaml.YAMLError."""
    for event in yaml.parse(source, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            return line, "YAML anchors and aliases are not allowed; write the value out"
        if getattr(event, "tag", None) is not None:
            return line, "YAML tags are not allowed; write the value alone"
    return None


def _note_lines(node: yaml.Node | None, path: str, lines: dict[str, int], name: str) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inside = f"{path}.{key.value}" if path else str(key.value)
            line = key.start_mark.line + 1
            if key.tag == "tag:yaml.org,2002:merge":
                raise ConfigError(f"{name}:{line}: YAML merge keys (<<) are not allowed; write the keys out")
            if inside in lines:
                raise ConfigError(f"{name}:{line}: {inside}: stands twice (first in line {lines[inside]}); keep one")
            lines[inside] = line
            _note_lines(value, inside, lines, name)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            lines[f"{path}[{i}]"] = value.start_mark.line + 1
            _note_lines(value, f"{path}[{i}]", lines, name)


def _line_of(path: str, lines: Mapping[str, int]) -> int:
    while path and path not in lines:
        path = path.rpartition(".")[0]
    return lines.get(path, 1)


def from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Checked values of `EDGED_…` variables. An unknown one is refused, as an unknown key would be."""
    known = known_keys()
    names = {PREFIX + path.replace(".", "_").upper(): path for path in known}
    values: dict[str, Any] = {}
    for variable in sorted(v for v in environment if v.startswith(PREFIX)):
        if variable not in names:
            raise ConfigError(f"{variable}: unknown variable{f.nearest(variable, names)}")
        path = names[variable]
        try:
            checked = known[path](path, _plain(known[path], path, environment[variable]))
        except BadValue as error:
            raise ConfigError(f"{variable}: {error.sentence}") from None
        section, _, key = path.rpartition(".")
        values = merge(values, {section: {key: checked}} if section else {key: checked})
    return values


def _plain(check: f.Check, path: str, raw: str) -> object:
    """A variable's text is the value where the key takes text; else it is read as YAML (numbers, lists)."""
    try:
        check(path, raw)
    except BadValue:
        try:
            forbidden = _forbidden(raw)
            value = None if forbidden else yaml.safe_load(raw)
        except (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError):
            return raw  # dates and numbers that YAML itself stumbles over
        if forbidden:
            raise BadValue(path, forbidden[1]) from None
        return raw if value is None else value
    return raw


def device_name(host: str, machine_id: str) -> str:
    """The default device name: the host name made to fit, a dash and the first four hex digits of the machine id."""
    fitted = re.sub(r"[^a-z0-9-]+", "-", host.lower()).strip("-")[:58].rstrip("-") or "device"
    digits = machine_id[:4] if re.match(r"[0-9a-f]{4}", machine_id) else hashlib.sha256(host.encode()).hexdigest()[:4]
    return f"{fitted}-{digits}"


def machine_id() -> str:
    """The machine id that systemd or D-Bus keeps, or nothing where there is none."""
    for path in (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id")):
        try:
            return path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
    return ""
