"""What a person types in a chat: one line, or several."""

from __future__ import annotations

import sys

BLOCK = '"""'


class Prompter:
    """Reads turns from the terminal, with editing and earlier lines where readline is installed, or from a file."""

    def __init__(self) -> None:
        self.interactive = sys.stdin.isatty()
        if self.interactive:
            try:
                import readline
            except ImportError:
                return
            readline.parse_and_bind("set enable-bracketed-paste on")  # pasted lines are one turn

    def read(self) -> str | None:
        """The next turn; None at the end of the input.

        A line that ends in a backslash goes on in the next one; three quotes begin a block that ends with three quotes.
        Ctrl-C drops what was typed.
        """
        while True:
            try:
                return self._turn()
            except EOFError:
                if self.interactive:
                    print(file=sys.stderr)
                return None
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                print("\n(Ctrl-D or /quit ends the chat)", file=sys.stderr)

    def _turn(self) -> str:
        line = self._line("› ")
        if line.lstrip().startswith(BLOCK):
            return self._block(line.lstrip()[len(BLOCK) :])
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(self._line("… "))
        return "\n".join(lines)

    def _block(self, first: str) -> str:
        lines = [first] if first else []
        while not (lines and lines[-1].rstrip().endswith(BLOCK)):
            lines.append(self._line("… "))
        lines[-1] = lines[-1].rstrip()[: -len(BLOCK)]
        return "\n".join(lines).rstrip("\n")

    def _line(self, prompt: str) -> str:
        if self.interactive:
            return input(prompt)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")
