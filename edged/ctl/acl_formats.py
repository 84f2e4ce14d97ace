"""Rights as the access lists of brokers: mosquitto (`acl_file`), EMQX (`acl.conf`), and plain JSON for any other.

Formats: mosquitto.conf(5), section `acl_file`; docs.emqx.com, "Use ACL File". In both, what no line allows is denied.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from edged.ctl.rights import ANY_USER, Block, Right

_EMQX_USER: Final = "${username}"


def mosquitto(blocks: Sequence[Block], head: Sequence[str]) -> str:
    """`user` and `topic` lines; of a block without a user `pattern` lines, which come last: they are for all users."""
    lines = [f"# {line}" for line in head]
    for block in sorted(blocks, key=lambda block: block.user is None):
        lines += ["", f"# {block.title}"]
        if block.user is not None:
            lines.append(f"user {block.user}")
        kind = "pattern" if block.user is None else "topic"
        lines += [f"{kind} {access} {topic}" for access, topic in _joined(block.rights)]
    return "\n".join(lines) + "\n"


def emqx(blocks: Sequence[Block], head: Sequence[str]) -> str:
    """Erlang terms, one a line; the last denies everything else."""
    lines = [f"%% {line}" for line in head]
    for block in blocks:
        lines += ["", f"%% {block.title}"]
        who = "all" if block.user is None else f'{{user, "{block.user}"}}'
        for access, action in (("read", "subscribe"), ("write", "publish")):
            topics = [right.topic.replace(ANY_USER, _EMQX_USER) for right in block.rights if right.access == access]
            if topics:
                listed = ",\n  ".join(f'"{topic}"' for topic in topics)
                lines.append(f"{{allow, {who}, {action}, [\n  {listed}]}}.")
    return "\n".join([*lines, "", "{deny, all}."]) + "\n"


def as_json(blocks: Sequence[Block], _head: Sequence[str]) -> str:
    """`users`: topic filters to `read` and to `write` by user; the user `ANY_USER` is each user."""
    users: dict[str, dict[str, list[str]]] = {}
    for block in blocks:
        rights = users.setdefault(block.user or ANY_USER, {"read": [], "write": []})
        for right in block.rights:
            rights[right.access].append(right.topic)
    return json.dumps({"users": users}) + "\n"


FORMATS: Final[dict[str, Callable[[Sequence[Block], Sequence[str]], str]]] = {
    "mosquitto": mosquitto,
    "emqx": emqx,
    "json": as_json,
}


def _joined(rights: tuple[Right, ...]) -> Iterator[tuple[str, str]]:
    """Each topic once: `readwrite` where both are allowed."""
    allowed: dict[str, list[str]] = {}
    for access, topic in rights:
        allowed.setdefault(topic, []).append(access)
    for topic, accesses in allowed.items():
        yield "readwrite" if len(accesses) == 2 else accesses[0], topic
