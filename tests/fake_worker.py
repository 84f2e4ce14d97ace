"""A worker without a model, for tests of the agent: it says what the prompt tells it to.

A prompt's last turn is a list of words: `say:TEXT`, `wait:NAME` (until a file of that name stands beside the script's
control folder), `die`, `die-once`, `hang`, `long` (the whole context is too small). Anything else is said back.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from edged.core.prompt import Final, ModelInfo, Usage
from edged.worker import frames

INFO = ModelInfo("fake", "sha256:" + "0" * 64, "none", "none", "fake", 64, 4, 0)


class FakeWorker:
    def __init__(self, control: Path, channel: socket.socket) -> None:
        self.control = control
        self.channel = channel
        self.cancelled: set[str] = set()
        self.lock = threading.Lock()

    def send(self, frame: object) -> None:
        with self.lock:
            self.channel.sendall(frames.encode(frame))  # type: ignore[arg-type]

    def run(self) -> None:
        decoder: frames.Decoder[frames.ToWorker] = frames.Decoder(frames.ToWorker)
        while data := self.channel.recv(65536):
            for frame in decoder.feed(data):
                if isinstance(frame, frames.Load):
                    self.load(frame)
                elif isinstance(frame, frames.Add):
                    threading.Thread(target=self.answer, args=(frame,), daemon=True).start()
                elif isinstance(frame, frames.Cancel):
                    self.cancelled.add(frame.key)
                else:
                    self.send(frames.Progress())

    def load(self, order: frames.Load) -> None:
        if order.source == "broken":
            self.send(frames.NotLoaded("tampered", "the model is broken; remove it"))
        elif order.source == "crash":
            os._exit(3)
        else:
            while order.source == "wait" and not (self.control / "load").exists():
                time.sleep(0.01)
            self.send(frames.Loaded(INFO))

    def answer(self, order: frames.Add) -> None:
        words = order.request.turns[-1].content.split()
        if words == ["long"]:
            self.send(frames.Refused(order.key, "too_long", "too_long", "the prompt has 99 tokens, the context 64"))
            return
        self.send(frames.Began(order.key))
        text = ""
        reason = "stop"
        for word in words:
            if word == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            elif word == "die-once":
                mark = self.control / "died"
                if not mark.exists():
                    mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            elif word == "hang":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif word.startswith("wait:"):
                while not (self.control / word[5:]).exists() and order.key not in self.cancelled:
                    time.sleep(0.005)
            else:
                said = word.removeprefix("say:") + " "
                self.send(frames.Wrote(order.key, len(text), said))
                text += said
            if order.key in self.cancelled:
                reason = "cancelled"
                break
        usage = Usage(len(words), 0, len(text.split()))
        self.send(frames.Ended(order.key, Final(reason, text, usage, 1, 1.0, 2.0)))  # type: ignore[arg-type]


if __name__ == "__main__":
    FakeWorker(Path(sys.argv[1]), socket.socket(fileno=int(sys.argv[2]))).run()
