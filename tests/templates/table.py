"""Compares the rendering of every template of `shapes` with that of transformers, for every conversation.

`python -m tests.templates.table [FILE.md]` prints or writes the table of `docs/reference/chat-templates.md`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from edged.core.errors import ModelError, PromptRefused
from edged.models.tokenizer.template import ChatTemplate, without_system
from tests.templates.conversations import CONVERSATIONS, Conversation
from tests.templates.shapes import SHAPES, Source

NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
REFUSED = "(refused)"


@dataclass(frozen=True)
class Compared:
    """Of one template: conversations that agree, of how many; those that both refuse; names of those that differ."""

    agree: int
    refused: int
    differ: tuple[str, ...]


def reference(source: Source, conversation: Conversation) -> str:
    """What transformers renders; a system turn that the template refuses goes before the first user turn."""
    try:
        return _rendered(source, conversation.messages, conversation)
    except Exception:  # noqa: BLE001  - whatever the template raises
        merged = without_system(conversation.messages)
        if merged is None:
            return REFUSED
    try:
        return _rendered(source, merged, conversation)
    except Exception:  # noqa: BLE001  - whatever the template raises
        return REFUSED


def _rendered(source: Source, messages: list[dict[str, Any]], asked: Conversation) -> str:
    if isinstance(source, Mapping):  # as PreTrainedTokenizerBase.get_chat_template chooses; `rag` is asked for by name
        named = ("tool_use", asked.tools), ("rag", asked.documents)
        source = source[next((name for name, wanted in named if wanted and name in source), "default")]
    rendered, _ = render_jinja_template(
        [messages],
        tools=asked.tools,
        documents=asked.documents,
        chat_template=source,
        continue_final_message=asked.continue_last,
        add_generation_prompt=asked.add_generation_prompt and not asked.continue_last,
        **NAMES,
        **asked.variables,
    )
    return str(rendered[0])


def ours(template: ChatTemplate, asked: Conversation) -> str:
    """What this package renders."""
    try:
        return template.render(
            asked.messages,
            tools=asked.tools,
            documents=asked.documents,
            add_generation_prompt=asked.add_generation_prompt,
            continue_last=asked.continue_last,
            arrived=time.time(),
            **asked.variables,
        )
    except PromptRefused:
        return REFUSED


def compare(source: Source) -> Compared:
    """One template with every conversation. Raises ModelError for one that cannot be compiled."""
    template = ChatTemplate(source, NAMES)
    agree, refused, differ = 0, 0, []
    for name, asked in CONVERSATIONS.items():
        expected, actual = reference(source, asked), ours(template, asked)
        agree += expected == actual
        refused += expected == actual == REFUSED
        if expected != actual:
            differ.append(name)
    return Compared(agree, refused, tuple(differ))


def lines() -> list[str]:
    """The page."""
    rows, total, whole = [], 0, 0
    for name, source in SHAPES.items():
        try:
            found = compare(source)
        except ModelError as error:
            found = Compared(0, 0, (str(error),))
        total += found.agree
        whole += not found.differ
        rows.append(f"| `{name}` | {found.agree} | {found.refused} | {', '.join(found.differ) or '–'} |")
    count = len(CONVERSATIONS)
    return [
        "# Chat templates compared",
        "",
        f"{len(SHAPES)} chat templates in the shapes that models use, written for this test,",
        f"× {count} conversations, rendered here and by transformers' `apply_chat_template`.",
        f"{whole} templates agree in all conversations, byte for byte; {total:,} of",
        f"{len(SHAPES) * count:,} renderings agree.",
        "Made by `python -m tests.templates.table docs/reference/chat-templates.md`.",
        "",
        "Refused: both refuse the conversation, as templates do with roles or an order that the model",
        "does not know. A system turn that a template refuses is compared with transformers' rendering of",
        "the chat in which its text is before the first user turn's.",
        "",
        f"| template | of {count} agree | of these refused | differ |",
        "|---|---|---|---|",
        *rows,
    ]


if __name__ == "__main__":
    page = "\n".join(lines()) + "\n"
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(page, "utf-8")
    else:
        print(page, end="")
