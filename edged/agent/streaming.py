"""The chunks of an answer while it is generated: the first at once, then one every 50 ms at most."""

from __future__ import annotations

from collections.abc import Callable

from edged.agent.open_prompt import OpenPrompt
from edged.agent.replies import Replies
from edged.wire import replies as wire

CHUNK_EVERY = 0.05  # seconds between two chunks of one answer


class ChunkStream:
    """Publishes the text of open prompts. `clock` returns monotonic seconds."""

    def __init__(self, replies: Replies, clock: Callable[[], float]) -> None:
        self._replies = replies
        self._clock = clock

    def add_text(self, prompt: OpenPrompt, at: int, text: str, reasoning_at: int = 0, reasoning: str = "") -> None:
        """Append generated text that begins at code point `at`, and a thought, and publish a chunk when one is due."""
        now = self._clock()
        if prompt.first_token_at is None:
            prompt.first_token_at = now
        prompt.text = prompt.text[:at] + text
        prompt.reasoning = prompt.reasoning[:reasoning_at] + reasoning
        if prompt.job.stream and (prompt.last_chunk_at is None or now - prompt.last_chunk_at >= CHUNK_EVERY):
            self._send(prompt)

    def restart(self, prompt: OpenPrompt) -> None:
        """Publish the text so far as one chunk with `at` 0; what follows comes after it."""
        prompt.chunks = prompt.streamed = prompt.reasoning_streamed = 0
        prompt.last_chunk_at = None
        if prompt.job.stream:
            self._send(prompt)

    def _send(self, prompt: OpenPrompt) -> None:
        if prompt.streamed == 0:
            prompt.chunks = 0  # nothing but empty chunks was published so far: `seq` starts again at `at` 0
        new, thought = prompt.text[prompt.streamed :], prompt.reasoning[prompt.reasoning_streamed :]
        payload = wire.chunk(
            prompt.job.id, prompt.chunks, prompt.streamed, new, thought, reasoning_at=prompt.reasoning_streamed
        )
        self._replies.send_now(prompt.job.reply_to, payload)
        prompt.streamed, prompt.reasoning_streamed = len(prompt.text), len(prompt.reasoning)
        prompt.chunks += 1
        prompt.last_chunk_at = self._clock() if prompt.text or prompt.reasoning else None
