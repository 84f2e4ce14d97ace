"""The APIs judged by the clients that people have: litellm, langchain-openai, ollama, and schemathesis.

Each is installed into a virtual environment of its own; `clients/` has what it runs there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.serve.client_venv import install, run
from tests.serve.scripted_device import Script, ScriptedDevice, final
from tests.support import Device

pytestmark = [pytest.mark.slow, pytest.mark.broker]
CLIENTS = Path(__file__).with_name("clients")
CALL = {"id": "x3FgT0aQ7", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}


def script(prompt: dict[str, Any]) -> list[dict[str, Any]]:
    """A call where tools are offered, JSON where a format is asked for, else two chunks and a text."""
    last = prompt["messages"][-1] if "messages" in prompt else {"content": prompt.get("prompt")}
    if last.get("content") == "busy":
        return [final("", "busy", error={"code": "queue_full", "message": "the queue is full"}, retry_after_ms=1000)]
    if last.get("role") == "tool":
        return [final(f"it has {last['content']}")]
    if prompt.get("tools"):
        return [final("", tool_calls=[CALL])]
    if prompt.get("format"):
        return [final('{"city": "Rome"}')]
    thought = {"reasoning": "Hmm", "reasoning_at": 0} if prompt.get("reasoning") == "show" else {}
    chunks = [{"seq": 0, "at": 0, "text": "Rome ", **thought}, {"seq": 1, "at": 5, "text": "is "}]
    return [*chunks, final("Rome is warm", **({"reasoning": "Hmm"} if thought else {}))]


@pytest.mark.parametrize("package", ["litellm", "langchain-openai", "ollama"])
def test_a_client_works_unchanged(
    serve: Callable[..., str], scripted: Callable[[Script], ScriptedDevice], tmp_path: Path, package: str
) -> None:
    scripted(script)
    programs = install(tmp_path / "venv", package)
    run([programs / "python", CLIENTS / f"with_{package.replace('-', '_')}.py", serve()])


def test_schemathesis_finds_nothing(serve: Callable[..., str], device: Callable[..., Device], tmp_path: Path) -> None:
    """Against a device with the fake worker: what refuses a prompt is the real thing."""
    device({"limits": {"raw": True}})
    address = serve()
    programs = install(tmp_path / "venv", "schemathesis")
    run([programs / "schemathesis", "run", f"{address}/openapi.json", "--url", address, *CHECKS])


# A request that the document allows may still be refused, by its device (404, 503) or by rules that a schema cannot
# say (a turn that is blank), and one that breaks it may be accepted: OpenAI's clients send keys without effect.
CHECKS = (
    "--max-examples", "40", "--seed", "1", "--request-timeout", "30", "--continue-on-failure",
    "--exclude-checks", "positive_data_acceptance",
)  # fmt: skip
