"""Chat templates run in a sandbox and are bounded."""

from __future__ import annotations

from datetime import datetime

import pytest

from edged.core.errors import ModelError, PromptRefused
from edged.core.prompt import Turn
from edged.models.tokenizer.template import ChatTemplate

TURNS = (Turn("user", "hi"),)


def test_renders_what_templates_use() -> None:
    turns = "{% for m in messages %}{{ m.role }}:{{ m['content'] | tojson }} {% endfor %}"
    source = "{{ bos_token }}" + turns + "{{ strftime_now('%Y') }}"
    assert '<s>user:"hi" 2026' == ChatTemplate(source, {"bos_token": "<s>"}, lambda: datetime(2026, 1, 2)).render(TURNS)


def test_the_template_may_refuse() -> None:
    with pytest.raises(PromptRefused, match="must alternate") as caught:
        ChatTemplate("{{ raise_exception('roles must alternate') }}", {}).render(TURNS)
    assert "invalid" == caught.value.reason


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{% for i in range(1000000000) %}{% endfor %}",
        "{{ 'a' * 1000000000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{% for i in range(9999) %}{% for j in range(9999) %}xxxxxxxxxx{% endfor %}{% endfor %}",
    ],
)
def test_what_the_sandbox_refuses(source: str) -> None:
    with pytest.raises(PromptRefused):
        ChatTemplate(source, {}).render(TURNS)


@pytest.mark.parametrize("source", ["{% if %}", "x" * 300_000])
def test_broken_templates_are_found_at_load(source: str) -> None:
    with pytest.raises(ModelError) as caught:
        ChatTemplate(source, {})
    assert "bad_model" == caught.value.code
