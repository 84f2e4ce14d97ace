"""A chat template tried out in a process of its own, with limits, before it is used in this one.

The sandbox counts what a template does (`template_sandbox`); the limits here hold even where it counts wrong. The child
gets JSON on standard input and prints the complaint as JSON.
"""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import edged
from edged.core.errors import ModelError, PromptRefused
from edged.core.prompt import Turn
from edged.models.tokenizer.template import MAX_SOURCE, ChatTemplate
from edged.models.tokenizer.template_budget import RaisedError

CPU_SECONDS: Final = 2
WALL_SECONDS: Final = 20.0  # for a machine whose processor is busy with others
MEMORY_BYTES: Final = 512_000_000
_KNOWN: set[str] = {
    "2a48993e9d17577cd753d23a72c5b67dbbbab54088f855ef1d57e8c7e7d83f49",  # of the catalog's smollm2-135m-instruct
}
"""Digests of templates with their names that were found good; a child costs 0.2 to 0.6 s."""

# A worker's sandbox lets this package's folder be read but not the one that holds it, which an ordinary import lists.
_START: Final = """
import importlib.util, sys
sys.path = [entry for entry in sys.path if entry]
folder = sys.argv[1]
spec = importlib.util.spec_from_file_location("edged", folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules["edged"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["edged"])
from edged.models.tokenizer.template_check import main
main()
"""

_CHATS: Final = (
    (Turn("user", "Hello"),),
    (Turn("system", "Be brief."), Turn("user", "Hello"), Turn("assistant", "Hi."), Turn("user", "Bye")),
)


def check_template(source: str | Mapping[str, str], names: Mapping[str, str]) -> None:
    """Raises ModelError `bad_model` for a template that is broken or that reaches a limit.

    One that refuses the chats which are tried is good: many want turns of a certain order.
    """
    sources = [source] if isinstance(source, str) else [*source.values()]
    if max(map(len, sources)) > MAX_SOURCE:  # refused by ChatTemplate with its own sentence
        return
    text = json.dumps({"source": source, "names": dict(names)}).encode()
    digest = hashlib.sha256(text).hexdigest()
    if digest in _KNOWN:
        return
    command = [sys.executable, "-c", _START, str(Path(edged.__file__).parent)]
    try:
        done = subprocess.run(command, input=text, capture_output=True, timeout=WALL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise _unbounded() from None
    if done.returncode < 0:
        raise _unbounded()
    try:
        complaint = json.loads(done.stdout)
    except ValueError:
        raise _unbounded() from None
    if complaint:
        raise ModelError("bad_model", complaint)
    _KNOWN.add(digest)


def trial(source: str | Mapping[str, str], names: Mapping[str, str]) -> str:
    """What is wrong with a template; "" for nothing."""
    try:
        template = ChatTemplate(source, names)
    except ModelError as error:
        return str(error)
    faults = []
    for chat in _CHATS:
        try:
            template.render(chat)
        except PromptRefused as refusal:
            if refusal.reason == "failed":
                return str(refusal)
            if not isinstance(refusal.__cause__, RaisedError):
                faults.append(f"The model's chat template cannot be rendered ({refusal.__cause__}); use another model.")
    return faults[0] if len(faults) == len(_CHATS) else ""


def _unbounded() -> ModelError:
    return ModelError(
        "bad_model", "The model's chat template takes too much time or memory to be rendered; use another model."
    )


def main() -> None:
    """The child."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    order = json.loads(sys.stdin.buffer.read())
    print(json.dumps(trial(order["source"], order["names"])))
