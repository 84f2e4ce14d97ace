"""YAML as the config reads it: no anchors, aliases, tags, merge keys or duplicate keys. PyYAML parses (YAML 1.1)."""

from __future__ import annotations

from typing import Any, NamedTuple

import yaml

from edged.core.errors import EdgedError


class BadYaml(EdgedError):
    """Text that is refused. `line` counts from 1; None where the parser does not give it."""

    def __init__(self, sentence: str, line: int | None = None) -> None:
        super().__init__(sentence)
        self.line = line


class Document(NamedTuple):
    """The value of a YAML text, and the line of each key and list entry by its path (`limits.queue`, `stop[0]`)."""

    value: Any
    lines: dict[str, int]

    def line_of(self, path: str) -> int:
        """The line of this path, or of the nearest one above it that has a line."""
        while path and path not in self.lines:
            path = path.rpartition(".")[0]
        return self.lines.get(path, 1)


def loads(source: str) -> Document:
    """The value of a YAML text with its lines. Raises BadYaml with one sentence."""
    try:
        check_plain(source)
        lines: dict[str, int] = {}
        _collect_lines(yaml.compose(source, Loader=yaml.SafeLoader), "", lines)
        return Document(yaml.safe_load(source), lines)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadYaml(f"is not valid YAML ({error.problem})", line) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadYaml(f"is not valid YAML ({str(error).splitlines()[0]})") from None


def check_plain(source: str) -> None:
    """Refuse anchors, aliases and tags. Raises BadYaml, and yaml.YAMLError or ValueError for text that is no YAML."""
    for event in yaml.parse(source, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise BadYaml("YAML anchors and aliases are not allowed; write the value out", line)
        if getattr(event, "tag", None) is not None:
            raise BadYaml("YAML tags are not allowed; write the value alone", line)


def _collect_lines(node: yaml.Node | None, path: str, lines: dict[str, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inside = f"{path}.{key.value}" if path else str(key.value)
            line = key.start_mark.line + 1
            if key.tag == "tag:yaml.org,2002:merge":
                raise BadYaml("YAML merge keys (<<) are not allowed; write the keys out", line)
            if inside in lines:
                raise BadYaml(f"{inside}: is set twice (first in line {lines[inside]}); keep one", line)
            lines[inside] = line
            _collect_lines(value, inside, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            inside = f"{path}[{index}]"
            lines[inside] = value.start_mark.line + 1
            _collect_lines(value, inside, lines)
