"""The worker process: one engine, one loop, one socket to the agent. No network, no files but the model's
(`sandbox.py`, `model_access.py`).

Started as `python -m edged.worker.main FD`. The main thread owns the engine; a reader thread takes frames off the
socket and ends the process when the agent has ended.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import msgspec

from edged.core.errors import EdgedError, ModelError, PromptRefused
from edged.core.prompt import Chunk, Final, Started, Usage
from edged.engine import Model, load_model
from edged.engine.constraint import Wanted
from edged.engine.sampler import compiled
from edged.worker import frames, sandbox
from edged.worker.format_checks import FormatChecks
from edged.worker.model_access import access_for, use_temporary_folder

_PROGRESS_EVERY = 0.5  # seconds between two `Progress` frames while the engine steps
_LOADING_EVERY = 2.0
_TEXT_EVERY = 0.02  # of one sequence: a frame for each token would cost the agent time that the model needs
_PR_SET_PDEATHSIG = 1


class _Checked(NamedTuple):
    """A prompt's format was checked."""

    key: str
    refusal: PromptRefused | None


class Worker:
    """The loop around an engine. Formats are checked beside it (`format_checks.py`)."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._inbox: queue.SimpleQueue[frames.ToWorker | _Checked] = queue.SimpleQueue()
        self._model: Model | None = None
        self._checks = FormatChecks(self._check_format, self._post_checked)
        self._unchecked: dict[str, frames.Add] = {}  # prompts whose format is being checked
        self._progress_sent_at = 0.0
        self._loading_sent_at = 0.0
        self._text_sent_at: dict[str, float] = {}  # by sequence
        self._unsent: dict[str, Chunk] = {}  # generated text that is not due yet, by sequence

    def run(self) -> None:
        """Serve until the agent ends."""
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        while True:
            self._process_frames()
            if self._model is not None and self._model.engine.busy:
                self._step(self._model)

    def _read(self) -> None:
        decoder: frames.Decoder[frames.ToWorker] = frames.Decoder(frames.ToWorker)
        try:
            while data := self._channel.recv(65536):
                for frame in decoder.feed(data):
                    self._inbox.put(frame)
                if (model := self._model) is not None:
                    model.engine.interrupt()
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            print(f"worker: the agent's frames cannot be decoded, ending: {error}", file=sys.stderr)
        os._exit(0)  # the agent has ended: nobody reads the answers

    def _process_frames(self) -> None:
        busy = self._model is not None and self._model.engine.busy
        try:
            frame = self._inbox.get(block=not busy)
            while True:
                self._process(frame)
                frame = self._inbox.get_nowait()
        except queue.Empty:
            return

    def _process(self, frame: frames.ToWorker | _Checked) -> None:
        match frame:
            case frames.Load():
                self._load(frame)
            case frames.Add():
                self._add(frame)
            case _Checked(key=key, refusal=refusal):
                self._add_checked(key, refusal)
            case frames.SetLevel(key=key, level=level):
                self._set_level(key, level)
            case frames.Cancel(key=key):
                self._cancel(key)
            case frames.Ping():
                self._send(frames.Progress())

    def _load(self, order: frames.Load) -> None:
        self._model = None
        self._unchecked.clear()
        try:
            self._model = load_model(
                order.source,
                order.backend,
                context=order.context,
                threads=order.threads,
                digest=order.digest,
                bits=order.bits,
                template=order.template,
                store_root=Path(order.store),
                on_progress=self._send_loading,
            )
        except ModelError as error:
            self._send(frames.NotLoaded(error.code, str(error)))
        except MemoryError:
            self._send(frames.NotLoaded("no_memory", "there is not enough memory to load the model; use a smaller one"))
        else:
            self._send(frames.Loaded(self._model.info))

    def _send_loading(self, doing: str) -> None:
        now = time.monotonic()
        if now - self._loading_sent_at >= _LOADING_EVERY:
            self._loading_sent_at = now
            self._send(frames.Loading(doing))

    def _add(self, order: frames.Add) -> None:
        if self._model is None:
            self._send(frames.Refused(order.key, "unavailable", "no_model", "no model is loaded; see the health topic"))
            return
        try:
            wanted = self._model.engine.wanted(order.request)
        except PromptRefused as error:
            self._send(frames.Refused(order.key, error.reason, error.code, str(error)))
            return
        if wanted is not None and not self._model.engine.is_checked(wanted):
            self._unchecked[order.key] = order
            self._checks.submit(order.key, order.requester, order.level, wanted)
        else:
            self._prepare(self._model, order)

    def _check_format(self, wanted: Wanted) -> None:
        """For the checking thread."""
        if (model := self._model) is not None:
            model.engine.check_format(wanted)

    def _post_checked(self, key: str, refusal: PromptRefused | None) -> None:
        """For the checking thread."""
        self._inbox.put(_Checked(key, refusal))
        if (model := self._model) is not None:
            model.engine.interrupt()

    def _add_checked(self, key: str, refusal: PromptRefused | None) -> None:
        order = self._unchecked.pop(key, None)
        if order is None or self._model is None:  # it was cancelled meanwhile
            return
        if refusal is not None:
            self._send(frames.Refused(key, refusal.reason, refusal.code, str(refusal)))
        else:
            self._prepare(self._model, order)

    def _set_level(self, key: str, level: int) -> None:
        if key in self._unchecked:
            self._unchecked[key] = msgspec.structs.replace(self._unchecked[key], level=level)
            self._checks.set_level(key, level)
        elif self._model is not None:
            self._model.engine.set_level(key, level)

    def _cancel(self, key: str) -> None:
        if self._unchecked.pop(key, None) is not None:
            self._checks.withdraw(key)
            self._send(frames.Finished(key, Final("cancelled", "", Usage(), 0, 0.0, 0.0)))
        elif self._model is not None:
            self._model.engine.cancel(key)

    def _prepare(self, model: Model, order: frames.Add) -> None:
        self._send(frames.Preparing(order.key))
        try:
            model.engine.add(order.key, order.request, order.level)
        except PromptRefused as error:
            self._send(frames.Refused(order.key, error.reason, error.code, str(error)))
        except EdgedError as error:
            self._send(frames.Refused(order.key, "failed", "engine", str(error)))
        except MemoryError:
            why = "there is not enough memory to prepare this prompt; make it shorter or send it later"
            self._send(frames.Refused(order.key, "failed", "no_memory", why))
        else:
            self._send(frames.Prepared(order.key))

    def _step(self, model: Model) -> None:
        for key, output in model.engine.step():
            if isinstance(output, Chunk):
                self._add_text(key, output)
            elif isinstance(output, Final):
                self._unsent.pop(key, None)  # the final carries it
                self._text_sent_at.pop(key, None)
                self._send(frames.Finished(key, output))
            elif isinstance(output, Started):
                self._send(frames.Started(key))
        now = time.monotonic()
        self._send_due_text(now)
        if now - self._progress_sent_at > _PROGRESS_EVERY:
            self._progress_sent_at = now
            self._send(frames.Progress())

    def _add_text(self, key: str, chunk: Chunk) -> None:
        before = self._unsent.get(key)
        if before is not None:
            text, reasoning = before.text + chunk.text, before.reasoning + chunk.reasoning
            chunk = Chunk(before.at, text, before.reasoning_at, reasoning)
        self._unsent[key] = chunk

    def _send_due_text(self, now: float) -> None:
        """Send the text that is due; a sequence's first text at once."""
        for key in [key for key in self._unsent if now - self._text_sent_at.get(key, 0.0) >= _TEXT_EVERY]:
            chunk = self._unsent.pop(key)
            self._text_sent_at[key] = now
            self._send(frames.Generated(key, chunk.at, chunk.text, chunk.reasoning_at, chunk.reasoning))

    def _send(self, frame: frames.FromWorker) -> None:
        try:
            self._channel.sendall(frames.encode(frame))
        except OSError:
            os._exit(0)


def _end_with_the_agent() -> None:
    """Have the kernel kill this process when its parent ends, even in the middle of a load: prctl(2)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _prefer_for_oom_kill() -> None:
    """Have the kernel's out-of-memory killer choose this process before the agent: proc(5)."""
    try:
        Path("/proc/self/oom_score_adj").write_text("600", encoding="ascii")
    except OSError:
        print(
            "worker: oom_score_adj cannot be raised; under memory pressure the agent may be killed first",
            file=sys.stderr,
        )


def _restrict(channel: socket.socket) -> None:
    """Give up what loading the first frame's model and computing it do not need, before a thread is started.

    The kernels are loaded, and built where they are missing, before that: a compiler needs more.
    """
    try:
        order = frames.peek(channel)
    except (OSError, ValueError, msgspec.MsgspecError):
        return  # the reader meets it, too, and ends the process
    if isinstance(order, frames.Load):
        compiled()
        access = access_for(order)
        use_temporary_folder(access)
        print(f"worker: {sandbox.restrict(access)}", file=sys.stderr)


def main() -> None:
    """Entry of the process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the agent ends this process
    _end_with_the_agent()
    _prefer_for_oom_kill()
    channel = socket.socket(fileno=int(sys.argv[1]))
    _restrict(channel)
    Worker(channel).run()


if __name__ == "__main__":
    main()
