"""The names of the built-in chat templates, as `model.template` gives them."""

from __future__ import annotations

from typing import Final

BUILT_IN: Final = (
    "chatml",
    "command-r",
    "deepseek",
    "exaone",
    "gemma",
    "glm4",
    "granite",
    "llama2",
    "llama3",
    "mistral",
    "phi3",
    "phi4",
    "zephyr",
)
AUTO: Final = "auto"


def is_file(name: str) -> bool:
    """Whether a value of `model.template` names a file."""
    return "/" in name or name.endswith(".jinja")
