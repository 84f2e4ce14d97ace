"""The commands that send prompts or end them (`prompt`, `chat`, `cancel`): their options, and what runs them."""

from __future__ import annotations

import argparse
from typing import Any

from edged.command_line import WrongUsage, text_or_input
from edged.config import checks
from edged.ctl.options import add_connection, add_requester, check_name, requester_of, seconds, settings_of
from edged.ctl.prompt_options import add_body, check, options_of, turns_of
from edged.wire.topics import PROMPT_ID


def add(commands: Any) -> None:
    """Add them all."""
    _add_prompt(commands)
    _add_chat(commands)
    _add_cancel(commands)


def _add_prompt(commands: Any) -> None:
    prompt = commands.add_parser("prompt", help="send a prompt to a device and print the answer as it arrives")
    prompt.add_argument("text", metavar="TEXT", nargs="?", help="the prompt; - reads it from standard input")
    target = prompt.add_mutually_exclusive_group()
    target.add_argument("--device", help="the device (default: the only one that is online)")
    target.add_argument("--all", action="store_true", help="ask every connected device; prints a table")
    target.add_argument("--group", help="ask every connected device of this group")
    target.add_argument("--pool", help="ask any member of this pool")
    add_requester(prompt)
    add_body(prompt)
    prompt.add_argument(
        "--timeout", type=seconds, default=120.0, metavar="SECONDS", help="wait at most this long (default: 120)"
    )
    prompt.add_argument("--json", action="store_true", help="print the final reply as one JSON document")
    add_connection(prompt)
    prompt.set_defaults(run=_prompt)


def _add_chat(commands: Any) -> None:
    chat = commands.add_parser("chat", help="talk with a device in the terminal")
    chat.add_argument("--device", help="the device (default: the only one that is online)")
    add_requester(chat)
    add_body(chat)
    chat.add_argument(
        "--timeout", type=seconds, default=300.0, metavar="SECONDS", help="wait for each answer (default: 300)"
    )
    add_connection(chat)
    chat.set_defaults(run=_chat)


def _add_cancel(commands: Any) -> None:
    cancel = commands.add_parser("cancel", help="cancel prompts that wait or run")
    cancel.add_argument("id", metavar="ID", nargs="?", help="the id of a prompt")
    cancel.add_argument("--all", action="store_true", help="every prompt of the requester")
    cancel.add_argument("--device", help="on this device alone (default: on every device that is connected)")
    add_requester(cancel)
    cancel.add_argument(
        "--wait", type=seconds, default=3.0, metavar="SECONDS", help="for the final of the prompts (default: 3)"
    )
    cancel.add_argument("--json", action="store_true", help="print one JSON document")
    add_connection(cancel)
    cancel.set_defaults(run=_cancel)


def _prompt(arguments: argparse.Namespace) -> int:
    from edged.ctl.prompt import Ask, ask

    if arguments.text is None and arguments.messages is None:
        raise WrongUsage("the following arguments are required: TEXT; see edgectl prompt --help")
    settings = settings_of(arguments)
    requester = requester_of(arguments, settings)
    check_name(arguments, "device")
    check_name(arguments, "group")
    check_name(arguments, "pool")
    body = {**_turns(arguments), **options_of(arguments)}
    if arguments.all or arguments.group is not None:
        from edged.ctl.ask_many import AskMany, ask_many

        many = AskMany(settings.identity.fleet, arguments.group, requester, body, arguments.timeout, arguments.json)
        return ask_many(settings.mqtt, many)
    if arguments.pool is not None:
        from edged.ctl.ask_pool import AskPool, ask_pool

        asked = AskPool(settings.identity.fleet, arguments.pool, requester, body, arguments.timeout, arguments.json)
        return ask_pool(settings.mqtt, asked)
    wanted = Ask(settings.identity.fleet, arguments.device, requester, body, arguments.timeout, arguments.json)
    return ask(settings.mqtt, wanted)


def _turns(arguments: argparse.Namespace) -> dict[str, Any]:
    """The prompt, or the turns of a file with the text as the last one. Raises BadValue, ConfigError."""
    text = None if arguments.text is None else text_or_input("TEXT", arguments.text)
    if arguments.messages is None:
        turns: dict[str, Any] = {"prompt": text}
    else:
        earlier = turns_of(arguments.messages)
        turns = {"messages": earlier if text is None else [*earlier, {"role": "user", "content": text}]}
    check(turns)
    return turns


def _chat(arguments: argparse.Namespace) -> int:
    from edged.ctl.chat import Chat, chat

    settings = settings_of(arguments)
    requester = requester_of(arguments, settings)
    check_name(arguments, "device")
    turns = [] if arguments.messages is None else turns_of(arguments.messages)
    options = options_of(arguments)
    wanted = Chat(settings.identity.fleet, arguments.device, requester, turns, options, arguments.timeout)
    return chat(settings.mqtt, wanted)


def _cancel(arguments: argparse.Namespace) -> int:
    from edged.ctl.cancel import cancel

    if (arguments.id is None) != arguments.all:
        raise WrongUsage("give the ID of a prompt, or --all to cancel all of the requester")
    if arguments.id is not None:
        checks.text(pattern=PROMPT_ID, like="1 to 128 printable ASCII characters without / + # and space")(
            "ID", arguments.id
        )
    check_name(arguments, "device")
    settings = settings_of(arguments)
    requester = requester_of(arguments, settings)
    fleet, device = settings.identity.fleet, arguments.device
    return cancel(settings.mqtt, fleet, device, requester, arguments.id, arguments.wait, arguments.json)
