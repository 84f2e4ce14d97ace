"""`edgectl chat`: a conversation with one device. Each turn sends all turns; the device reuses what it has computed.

Ctrl-C ends an answer, not the chat; what came of it stays in the conversation. A connection that ended is made again at
the next turn, and the prompt sent again under its id, so that it is answered once.
"""

from __future__ import annotations

import signal
from typing import Any

import msgspec

from edged.command_line import DONE, FAILED, note
from edged.config.schema import Mqtt
from edged.core.errors import BrokerError, EdgedError
from edged.ctl.answer import Printer, plain, printer_for, show_final
from edged.ctl.chat_commands import Commands, Conversation, Quit
from edged.ctl.chat_input import Prompter
from edged.ctl.devices import Known, choose, group_topics, known_devices, status_topic
from edged.ctl.exchange import Exchange, new_id, reply_topic
from edged.ctl.interrupts import interrupting
from edged.ctl.prompt import answer, cancelled
from edged.ctl.prompt_options import check
from edged.link.session import Interrupted, Session, TimedOut


class Chat(msgspec.Struct, frozen=True):
    """A conversation to begin. `turns` are earlier ones, `options` the rest of each prompt's body."""

    fleet: str
    device: str | None
    requester: str
    turns: list[dict[str, Any]]
    options: dict[str, Any]
    timeout: float


def chat(settings: Mqtt, wanted: Chat) -> int:
    """Read turns and print answers until the end of the input; returns the exit code.

    Raises BrokerError, EdgedError where no device can be reached at the start.
    """
    connection = Link(settings, wanted.fleet, wanted.requester)
    try:
        device, known = connection.choose(wanted.device)
        conversation = Conversation(device, list(wanted.turns), dict(wanted.options))
        prompter = Prompter()
        if prompter.interactive:
            _welcome(device, known)
        return _converse(connection, conversation, prompter, wanted.timeout)
    finally:
        connection.close()


def _welcome(device: str, known: Known) -> None:
    model = known.model.get("name")
    about = f" ({plain(str(model))})" if model else ""
    note(f"chat with {device}{about}; /help shows the commands, Ctrl-D ends")


def _converse(connection: Link, conversation: Conversation, prompter: Prompter, timeout: float) -> int:
    commands = Commands(conversation, connection)
    code = DONE
    while True:
        try:
            if (text := prompter.read()) is None:
                break
            if text.startswith("/"):
                commands.run(text)
            elif text.strip():
                code = DONE if _turn(connection, conversation, text, timeout) else FAILED
        except Quit:
            break
        except KeyboardInterrupt:  # a second Ctrl-C, which came after the answer had ended
            if not prompter.interactive:
                raise
        except EdgedError as error:
            note(f"edgectl: {error}")
            code = FAILED
    return DONE if prompter.interactive else code


def _turn(connection: Link, conversation: Conversation, text: str, timeout: float) -> bool:
    """One turn; whether it was answered. What was not answered at all leaves the conversation as it was."""
    turns = [*conversation.turns, {"role": "user", "content": text}]
    body = {"messages": turns, **conversation.options}
    check(body)
    printer = printer_for(body)
    final = connection.ask(conversation.device, body, printer, timeout)
    if final is None:
        printer.note("edgectl: no final came; the turn is not part of the conversation")
        return False
    show_final(final, printer)
    if "error" in final:
        if final["reason"] == "too_long":
            note("the conversation is too long for the model; begin again with /new")
        return False
    if final["text"]:
        conversation.turns = [*turns, {"role": "assistant", "content": final["text"]}]
    return bool(final["text"])


class Link:
    """The chat's connection: made at the first use, and again when it has ended."""

    def __init__(self, settings: Mqtt, fleet: str, requester: str) -> None:
        self._settings = settings
        self._fleet = fleet
        self._requester = requester
        self._session: Session | None = None

    def choose(self, wanted: str | None) -> tuple[str, Known]:
        """The device to talk to, and what is known about it. Raises EdgedError, BrokerError."""
        with Session(self._settings, (status_topic(self._fleet),)) as session:
            device, _ = choose(session, self._fleet, wanted)
        try:
            return device, self.devices().get(device, Known())
        except BrokerError:  # a requester need not be allowed to read the health
            return device, Known()

    def devices(self) -> dict[str, Known]:
        """Every device of the fleet. Raises BrokerError."""
        topics = (status_topic(self._fleet), *group_topics(self._fleet))
        with Session(self._settings, topics) as session:
            return known_devices(session)

    def ask(self, device: str, body: dict[str, Any], printer: Printer, timeout: float) -> dict[str, Any] | None:
        """The final of a prompt, whose answer is printed as it grows; None if none came. Ctrl-C cancels the prompt.

        Raises BrokerError.
        """
        prompt_id = new_id()
        try:
            return self._ask(device, body, prompt_id, printer, timeout)
        except BrokerError:  # it may have ended long ago: once more
            self.close()
            return self._ask(device, body, prompt_id, printer, timeout)

    def _ask(
        self, device: str, body: dict[str, Any], prompt_id: str, printer: Printer, timeout: float
    ) -> dict[str, Any] | None:
        session = self._connected()
        exchange = Exchange(session, self._fleet, self._requester, {device: ""}, body, prompt_id, printer.note)
        with interrupting(session) as signals:
            try:
                return answer(exchange, printer, timeout)
            except Interrupted:
                final = self._cancel(exchange)
                if signals.number != signal.SIGINT:  # the terminal is gone, or the program is to end
                    raise SystemExit(FAILED) from None
                return final
            except TimedOut as error:
                printer.note(f"edgectl: {str(error) or 'no answer came in time'}")
                return self._cancel(exchange)

    def _cancel(self, exchange: Exchange) -> dict[str, Any] | None:
        try:
            return cancelled(exchange)
        except (Interrupted, KeyboardInterrupt):  # pressed again
            return None

    def _connected(self) -> Session:
        if self._session is None:
            topics = (reply_topic(self._fleet, self._requester), status_topic(self._fleet))
            self._session = Session(self._settings, topics).__enter__()
        return self._session

    def close(self) -> None:
        """Disconnect."""
        if self._session is not None:
            self._session.__exit__(None, None, None)
            self._session = None
