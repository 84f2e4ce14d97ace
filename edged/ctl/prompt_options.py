"""The options that make a prompt's body: text, turns, format, sampling."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edged.command_line import utf8
from edged.config.keys import SAMPLING
from edged.core.errors import BadValue, ConfigError
from edged.wire import strict_json
from edged.wire.prompts import BadPrompt, parse_prompt

MAX_BODY = 16_000_000  # the largest `limits.prompt_bytes`
_FORMATS = {"json_schema", "choice", "regex"}
_OWN = ("system", "priority", *SAMPLING)
"""Options that are keys of the body under the same name."""


def add_body(command: argparse.ArgumentParser) -> None:
    """Everything of a prompt but its text."""
    group = command.add_argument_group("prompt")
    group.add_argument("--system", metavar="TEXT", help="a system turn before the prompt")
    group.add_argument("--messages", type=Path, metavar="FILE", help="earlier turns: a JSON list of role and content")
    group.add_argument("--format", type=Path, metavar="FILE", help="what the answer obeys: a format or a JSON schema")
    group.add_argument("--max-tokens", type=int, metavar="N", help="default: the device's")
    group.add_argument("--temperature", type=float, metavar="T", help="0 is greedy (default: the device's)")
    group.add_argument("--top-k", type=int, metavar="N", help="draw from the N best tokens (0: off)")
    group.add_argument("--top-p", type=float, metavar="P", help="draw from the best tokens of this share (1: off)")
    group.add_argument("--min-p", type=float, metavar="P", help="least share of the best token's (0: off)")
    group.add_argument("--repetition-penalty", type=float, metavar="X", help="0.5 to 2 (1: off)")
    group.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; up to 8 times")
    group.add_argument("--seed", type=int, metavar="N", help="seed of the sampling (default: random)")
    group.add_argument("--priority", type=int, metavar="N", help="0 (first) to 9 (default: 5)")


def options_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The body without its turns. Raises BadValue, ConfigError."""
    utf8("--system", arguments.system or "")
    for text in arguments.stop or ():
        utf8("--stop", text)
    body: dict[str, Any] = {}
    for key in _OWN:
        value = getattr(arguments, key)
        if value is not None:
            if key in SAMPLING:
                SAMPLING[key](f"--{key.replace('_', '-')}", value)
            body[key] = value
    if arguments.format is not None:
        body["format"] = _format(arguments.format)
    check({**body, "prompt": "x"})
    return body


def turns_of(path: Path) -> list[dict[str, Any]]:
    """The turns of a file: a list, or an object with `messages` such as `/save` writes. Raises ConfigError."""
    document = _read_json(path)
    turns = document.get("messages") if isinstance(document, dict) else document
    if not isinstance(turns, list):
        raise ConfigError(f'{path}: must be a list of turns such as {{"role": "user", "content": "…"}}')
    try:
        check({"messages": turns})
    except BadValue as error:
        raise ConfigError(f"{path}: {error}") from None
    return turns


def check(body: dict[str, Any]) -> None:
    """Raises BadValue where a device of this version would refuse the body."""
    try:
        parse_prompt(strict_json.dumps(body), None, MAX_BODY, lambda: "edgectl")
    except BadPrompt as error:
        raise BadValue("", str(error)) from None


def _format(path: Path) -> dict[str, Any]:
    """A format as it is, or the format of a bare JSON schema."""
    document = _read_json(path)
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: must be a format or a JSON schema, as a JSON object")
    found = document if document.get("type") in _FORMATS else {"type": "json_schema", "schema": document}
    try:
        check({"prompt": "x", "format": found})
    except BadValue as error:
        raise ConfigError(f"{path}: {error}") from None
    return found


def _read_json(path: Path) -> Any:
    try:
        return strict_json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except BadValue as error:
        raise ConfigError(f"{path}: {error.sentence}") from None
