"""A worker without a model, for tests of the agent: it says what the prompt asks for.

A prompt's last turn is a list of words: `say:TEXT`, `wait:NAME` (until a file of that name is beside the script's
control folder), `die`, `die-once`, `hang`, `long` (the whole context is too small), `system` (says the first turn).
Anything else is said back, up to `max_tokens` words. `received` in the control folder lists the last turns in the order
of arrival. The model's source says how the load goes: `broken` (also any with a file `broken-SOURCE`), `crash`, `wait`
(for a file `load`), `repaired` (broken until there is a file `repaired`), `large` (no memory while another worker has
loaded a model). `good`, `second` and `dies-late` are names in receipts; `dies-late` ends at the first prompt that is no
golden one.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import msgspec

from edged.core.prompt import Final, ModelInfo, Request, Usage
from edged.worker import frames

INFO = ModelInfo("fake", "sha256:" + "0" * 64, "none", "none", "fake", 64, 4, 0)


def last_text(request: Request) -> str:
    return request.turns[-1].content if request.raw is None else request.raw


class FakeWorker:
    def __init__(self, control: Path, channel: socket.socket) -> None:
        self.control = control
        self.channel = channel
        self.cancelled: set[str] = set()
        self.lock = threading.Lock()
        self.source = ""

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
                    if self.source == "dies-late" and not frame.key.startswith("golden"):
                        os.kill(os.getpid(), signal.SIGKILL)
                    with (self.control / "received").open("a") as received:
                        received.write(last_text(frame.request) + "\n")
                    threading.Thread(target=self.answer, args=(frame,), daemon=True).start()
                elif isinstance(frame, frames.Cancel):
                    self.cancelled.add(frame.key)
                else:
                    self.send(frames.Progress())

    def load(self, order: frames.Load) -> None:
        broken = (self.control / f"broken-{order.source}").exists() or order.source == "broken"
        if broken or (order.source == "repaired" and not (self.control / "repaired").exists()):
            self.send(frames.NotLoaded("tampered", "the model is broken; remove it"))
        elif order.source == "crash":
            os._exit(3)
        elif order.source == "large" and (self.control / "loaded").exists():
            self.send(frames.NotLoaded("no_memory", "The model needs 900 MB but 100 MB are free"))
        else:
            self.source = order.source
            (self.control / "loaded").write_text(order.source)
            agent = os.getppid()
            while order.source == "wait" and not (self.control / "load").exists():
                time.sleep(0.01)
                if os.getppid() != agent or agent == 1:  # 1: the agent had ended before
                    os._exit(0)
            named = order.source in {"good", "second", "wait", "large", "dies-late"}
            digest = f"sha256:{hashlib.sha256(order.source.encode()).hexdigest()}"
            self.send(frames.Loaded(msgspec.structs.replace(INFO, name=order.source, digest=digest) if named else INFO))

    def misbehave(self, word: str) -> None:
        """Die or hang, if the word says so; the signal may come a moment after the call."""
        mark = self.control / "died"
        if word == "hang":
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(3600)
        elif word == "die" or (word == "die-once" and not mark.exists()):
            if word == "die-once":
                mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(3600)

    def answer(self, order: frames.Add) -> None:
        words = last_text(order.request).split()
        if words == ["long"]:
            self.send(frames.Refused(order.key, "too_long", "too_long", "the prompt has 99 tokens, the context 64"))
            return
        self.send(frames.Started(order.key))
        text = ""
        reason = "stop"
        for word in words:
            self.misbehave(word)
            if word in {"die", "die-once", "hang"}:
                continue
            if word.startswith("wait:"):
                while not (self.control / word[5:]).exists() and order.key not in self.cancelled:
                    time.sleep(0.005)
            elif len(text.split()) >= order.request.sampling.max_tokens:
                reason = "length"
                break
            else:
                said = word.removeprefix("say:") + " "
                if word == "system":
                    said = order.request.turns[0].content + " "
                self.send(frames.Generated(order.key, len(text), said))
                text += said
            if order.key in self.cancelled:
                reason = "cancelled"
                break
        usage = Usage(len(words), 0, len(text.split()))
        self.send(frames.Finished(order.key, Final(reason, text, usage, 1, 1.0, 2.0)))  # type: ignore[arg-type]


if __name__ == "__main__":
    FakeWorker(Path(sys.argv[1]), socket.socket(fileno=int(sys.argv[2]))).run()
