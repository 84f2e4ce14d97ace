"""Incoming commands of operators: bytes → types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import msgspec

from edged.config import checks
from edged.core.errors import BadValue
from edged.wire import strict_json
from edged.wire.topics import PROMPT_ID

CommandName = Literal["reload", "drain", "resume", "unload", "load", "diagnostics"]
NAMES: tuple[CommandName, ...] = get_args(CommandName)
MAX_BYTES = 4096
_KEYS: dict[str, checks.Check] = {
    "id": checks.text(pattern=PROMPT_ID, like="1 to 128 printable ASCII characters without / + # and space"),
    "command": checks.one_of(*NAMES),
}


class Command(msgspec.Struct, frozen=True):
    """A command as it was sent. `named`: it came with an id, under which it is carried out once."""

    id: str
    named: bool
    name: CommandName


def parse_command(payload: bytes, make_id: Callable[[], str]) -> Command:
    """`{"id":…,"command":…}`. Raises BadValue."""
    if len(payload) > MAX_BYTES:
        raise BadValue("", f"a command has {len(payload)} bytes, above {MAX_BYTES}")
    try:
        document = strict_json.loads(payload)
    except BadValue as error:
        raise BadValue("", f"the payload {error.sentence}") from None
    checked = checks.record("", document, _KEYS, required=("command",))
    return Command(checked.get("id") or make_id(), "id" in checked, checked["command"])
