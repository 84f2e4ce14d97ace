"""The commands of a chat, which begin with a slash."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edged.core.errors import BadValue, EdgedError
from edged.ctl.answer import plain
from edged.ctl.devices import Known

HELP = """\
/help             this list
/device [NAME]    show the devices, or go on with another one
/model            show the model of the device
/system [TEXT]    show the system turn, or set it; /system - removes it
/save FILE        write the conversation as JSON, for --messages
/new              forget the conversation
/quit             end (or Ctrl-D)

A line that ends in \\ goes on in the next one; \"\"\" begins and ends a block of lines.
Ctrl-C stops an answer."""


class Quit(Exception):
    """The chat is to end."""


class Fleet(Protocol):
    """Where the commands find the devices."""

    def devices(self) -> dict[str, Known]:
        """Every device of the fleet."""


@dataclass
class Conversation:
    """The turns so far, with whom, and the rest of each prompt's body."""

    device: str
    turns: list[dict[str, Any]]
    options: dict[str, Any]


class Commands:
    """Runs commands on a conversation; what they show goes to stderr, so that stdout has the answers alone."""

    def __init__(self, conversation: Conversation, fleet: Fleet) -> None:
        self._conversation = conversation
        self._fleet = fleet
        self._known: dict[str, Callable[[str], None]] = {
            "help": self._help,
            "device": self._device,
            "model": self._model,
            "system": self._system,
            "save": self._save,
            "new": self._new,
            "quit": self._quit,
        }

    def run(self, line: str) -> None:
        """Run one line. Raises EdgedError with what is wrong, Quit."""
        name, _, rest = line[1:].partition(" ")
        if (command := self._known.get(name.strip())) is None:
            raise EdgedError(f"there is no command /{plain(name.strip())}; /help shows those that exist")
        command(rest.strip())

    def _help(self, _rest: str) -> None:
        _say(HELP)

    def _quit(self, _rest: str) -> None:
        raise Quit

    def _new(self, _rest: str) -> None:
        self._conversation.turns = []
        _say("the conversation is empty")

    def _device(self, name: str) -> None:
        devices = self._fleet.devices()
        if not name:
            for device, known in sorted(devices.items()):
                mark = "*" if device == self._conversation.device else " "
                _say(f"{mark} {device}: {plain(known.status)}, {plain(str(known.model.get('name', 'no model')))}")
            return
        if name not in devices or not devices[name].connected:
            state = "is offline" if name in devices else "is not known at this broker"
            raise EdgedError(f"the device {plain(name)} {state}; /device shows the devices")
        self._conversation.device = name
        _say(f"the conversation goes on with {name}")

    def _model(self, rest: str) -> None:
        device = self._conversation.device
        if rest:
            raise EdgedError(
                f"a chat does not change the model of {device}; use /device NAME to ask another device, "
                "or edgectl config push with model.source in it"
            )
        known = self._fleet.devices().get(device, Known())
        facts = [known.model.get(key) for key in ("name", "quantization", "backend")]
        about = ", ".join(plain(str(fact)) for fact in facts if fact) or "unknown"
        context = known.model.get("context")
        _say(f"{device}: {about}" + (f", context {context} tokens" if isinstance(context, int) else ""))

    def _system(self, text: str) -> None:
        options = self._conversation.options
        if text == "-":
            options.pop("system", None)
        elif text:
            options["system"] = text
        _say(f"system turn: {plain(options['system'])}" if "system" in options else "no system turn is set here")

    def _save(self, name: str) -> None:
        if not name:
            raise BadValue("/save", "needs the name of a file")
        system = self._conversation.options.get("system")
        turns = [{"role": "system", "content": system}] if system else []
        document = {"device": self._conversation.device, "messages": turns + self._conversation.turns}
        path = Path(name).expanduser()
        try:
            with path.open("x", encoding="utf-8") as file:
                json.dump(document, file, ensure_ascii=False, indent=1)
        except FileExistsError:
            raise BadValue("/save", f"{path} exists; choose another name") from None
        except OSError as error:
            raise BadValue("/save", f"{path} cannot be written ({error.strerror})") from None
        _say(f"saved {len(document['messages'])} turns to {path}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
