"""Errors that a person reads: each message is one plain sentence that says what to do."""

from __future__ import annotations


class EdgedError(Exception):
    """Base of every error of ours. `str(error)` is one sentence for a person, without a traceback."""


class BadValue(EdgedError):
    """A value that a schema refuses.

    `path` names the key (`generation.max_tokens`), `sentence` says what is wrong without repeating the path.
    """

    def __init__(self, path: str, sentence: str) -> None:
        super().__init__(f"{path}: {sentence}" if path else sentence)
        self.path = path
        self.sentence = sentence


class ConfigError(EdgedError):
    """The local config file or an `EDGED_…` variable cannot be used (exit code 2)."""


class ModelError(EdgedError):
    """A model cannot be found, verified, fetched or loaded.

    `code` is one of `missing`, `tampered`, `unsupported`, `no_memory`, `no_disk`, `unreachable`, `bad_model`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class NoBackend(ModelError):
    """A model that no backend of edged can run as it is meant; installing another one does not help."""

    def __init__(self, message: str) -> None:
        super().__init__("unsupported", message)


class PromptRefused(EdgedError):
    """A prompt that cannot be run. `reason` is the final's reason (`invalid`, `too_long`, `unavailable`, …)."""

    def __init__(self, reason: str, code: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.code = code


class BrokerError(EdgedError):
    """The broker cannot be reached or refuses us (exit code 3)."""
