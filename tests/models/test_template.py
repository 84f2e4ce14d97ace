"""Chat templates run in a sandbox and are bounded."""

from __future__ import annotations

import time
import tracemalloc
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


def test_the_date_is_that_of_the_arrival() -> None:
    template = ChatTemplate("{{ strftime_now('%Y-%m-%d %H') }}", {}, lambda: datetime(2026, 1, 2))
    arrived = datetime(2024, 2, 29, 12).timestamp()
    assert "2024-02-29 12" == template.render(TURNS, arrived=arrived)
    assert "2026-01-02 00" == template.render(TURNS)


GEMMA_LIKE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<{{ m.role }}>{{ m.content | trim }}</>{% endfor %}{% if add_generation_prompt %}<model>{% endif %}"
)


def test_a_system_turn_that_is_refused_goes_before_the_first_user_turn() -> None:
    turns = (Turn("system", "Be brief."), Turn("user", "hi"))
    assert "<user>Be brief.\n\nhi</><model>" == ChatTemplate(GEMMA_LIKE, {}).render(turns)


def test_a_system_turn_stays_refused_without_a_user_turn_behind_it() -> None:
    with pytest.raises(PromptRefused, match="no system role"):
        ChatTemplate(GEMMA_LIKE, {}).render((Turn("system", "Be brief."), Turn("assistant", "hi")))


def test_a_last_turn_is_continued() -> None:
    template = ChatTemplate("{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}", {})
    turns = (Turn("user", "count"), Turn("assistant", "one, "))
    assert "<user>count</><assistant>one, " == template.render(turns, continue_last=True)
    trimming = ChatTemplate(GEMMA_LIKE, {})
    assert "<user>count</><assistant>one," == trimming.render(turns, continue_last=True)


@pytest.mark.parametrize(
    "source", ["{{ messages[0].content }}", "{{ messages[-1].content | upper | replace('E', '') }}"]
)
def test_a_turn_that_the_template_leaves_out_cannot_be_continued(source: str) -> None:
    with pytest.raises(PromptRefused, match="leaves the last turn's text out"):
        ChatTemplate(source, {}).render((Turn("user", "x"), Turn("assistant", "y")), continue_last=True)


def test_templates_by_name_are_for_what_is_given() -> None:
    template = ChatTemplate({"default": "d", "tool_use": "t{{ tools | length }}", "rag": "r"}, {})
    assert "d" == template.render(TURNS)
    assert "t1" == template.render(TURNS, tools=[{}])
    assert "r" == template.render(TURNS, documents=[{"text": "x"}])


def test_other_variables_reach_the_template() -> None:
    template = ChatTemplate("{{ enable_thinking }}{{ add_generation_prompt }}", {})
    assert "FalseFalse" == template.render(TURNS, add_generation_prompt=False, enable_thinking=False)


def test_names_of_gguf_files_are_those_of_templates() -> None:
    assert "<u><p>" == ChatTemplate(
        "{{ unk_token }}{{ pad_token }}", {"unknown_token": "<u>", "padding_token": "<p>"}
    ).render(TURNS)


BOMBS = {
    "percent width": "{{ '%1000000000d' % 1 }}",
    "percent precision": "{{ '%.1000000000f' % 1 }}",
    "percent star": "{{ '%*d' % (1000000000, 1) }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "format method": "{{ '{:1000000000}'.format(1) }}",
    "nested format": "{{ '{:{}}'.format(1, 1000000000) }}",
    "ljust": "{{ 'x'.ljust(2000000000) }}",
    "zfill": "{{ 'x'.zfill(2000000000) }}",
    "center": "{{ 'x' | center(2000000000) }}",
    "bytes": "{{ (1).to_bytes(2000000000, 'big') }}",
    "doubling": "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "plus": "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "block": "{% set n = namespace(x='xx') %}{% for i in range(60) %}{% set y %}{{ n.x }}{{ n.x }}{% endset %}"
    "{% set n.x = y %}{% endfor %}",
    "constants": "{% set y %}{% for i in range(10000) %}" + "x" * 100_000 + "{% endfor %}{% endset %}",
    "lists": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "added lists": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "mappings": "{% set n = namespace(x=1) %}{% for i in range(60) %}{% set n.x = {'a': n.x, 'b': n.x} %}{% endfor %}",
    "namespaces": "{% set n = namespace(x=1) %}{% for i in range(60) %}"
    "{% set n.x = namespace(a=n.x, b=n.x) %}{% endfor %}{{ n.x }}"
    + "{% for i in range(9999) %}" * 3
    + "{% endfor %}" * 3,
    "replace": "{% set n = namespace(x='xx') %}"
    "{% for i in range(60) %}{% set n.x = n.x.replace('x', n.x) %}{% endfor %}",
    "replace filter": "{% set n = namespace(x='xx') %}"
    "{% for i in range(60) %}{% set n.x = n.x | replace('x', n.x) %}{% endfor %}",
    "join": "{% set n = namespace(x='xx') %}{% for i in range(60) %}{% set n.x = n.x.join(n.x) %}{% endfor %}",
    "join filter": "{% set n = namespace(x='xx') %}{% for i in range(60) %}{% set n.x = n.x | join(n.x) %}{% endfor %}",
    "translate": "{{ 'x'.translate({120: 'y' }) }}",
    "loops": "{% for a in range(9999) %}" * 3 + "{% endfor %}" * 3,
    "maps": "{% for a in range(9999) %}{% set x = range(9999) | map('string') | map('length') | list %}{% endfor %}",
    "range": "{{ range(1000000000) | list }}",
    "range far": "{{ range(0, 10 ** 100, 10 ** 99) | list }}",
    "times": "{{ 'x' * 1000000000 }}",
    "power": "{{ '=' * 10 ** 9 }}",
    "power of a power": "{{ 'x' * (10 ** 9) ** 2 }}",
    "times list": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x * 9 %}{% endfor %}",
    "times in a loop": "{% for i in range(9999) %}{% set x = 'x' * 900000 %}{% for j in range(99) %}{% set y = x * 1 %}"
    "{% endfor %}{% endfor %}",
    "times nested": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x] * 9 %}{% endfor %}",
    "separators": "{{ [1, 2] | tojson(separators=('x'.ljust(9999), ':')) }}",
    "joiner": "{% set j = joiner('x' * 900000) %}{% for i in range(9999) %}{{ j() }}{% endfor %}",
    "cycler": "{% set c = cycler('x' * 900000) %}{% for i in range(9999) %}{% set x = c.next() ~ i %}{% endfor %}",
    "generation": "{% for i in range(9999) %}{% generation %}{% for j in range(9999) %}x{% endfor %}{% endgeneration %}"
    "{% endfor %}",
    "continue": "{% for i in range(9999) %}{% for j in range(9999) %}{% continue %}{% endfor %}{% endfor %}",
    "lazy": "{% for i in range(9999) %}{% for x in range(9999) | map('string') %}{% endfor %}{% endfor %}",
    "numbers": "{% set n = namespace(x=3) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
    "macro": "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "macro twice": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "indent": "{{ ('\n' ~ messages[0].content) | indent(2000000000) }}",
    "indent text": "{% set t = 'x'.ljust(10000) %}{% set t = t.replace('x', t) %}"
    "{{ t.replace(' ', '\n') | indent(t) }}",
    "wordwrap": "{% set t = 'x '.ljust(10000, 'y') %}{{ t | wordwrap(1, wrapstring=t) }}",
    "batch": "{{ [1] | batch(2000000000, 'x') | list }}",
    "slice": "{{ [1] | slice(2000000000) | list }}",
    "tojson": "{{ [[[[1]]]] | tojson(indent=2000000000) }}",
    "deep": "{{ " + "(" * 400 + "1" + ")" * 400 + " }}",
    "blocks": "{% for a in [1] %}" * 40 + "{% endfor %}" * 40,
    "digits": "{{ " + "9" * 100_000 + " }}",
    "default at compile": "{% if 'a' | center(2000000000) %}{% endif %}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_ends_within_a_second_and_few_bytes(name: str) -> None:
    tracemalloc.start()
    begun = time.thread_time()
    try:
        with pytest.raises((ModelError, PromptRefused)):
            ChatTemplate(BOMBS[name], {}).render(TURNS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.thread_time() - begun < 5.0  # tracing memory slows it down several times
    assert peak < 100_000_000


def test_long_chats_are_within_the_bounds() -> None:
    source = (
        "{% for m in messages %}{% set c = m.content | trim %}{% if '</think>' in c %}"
        "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + c + '<|im_end|>' ~ '\n' }}{% endfor %}"
    )
    turns = [Turn("user" if i % 2 else "assistant", f"word {i} " * 2000) for i in range(100)]
    rendered = ChatTemplate(source, {}).render(turns)
    assert sum(len(turn.content) for turn in turns) < len(rendered)
    many = [Turn("user", "x")] * 10_000
    assert 10_000 == ChatTemplate(source, {}).render(many).count("<|im_start|>")


def test_what_templates_of_models_do_still_works() -> None:
    source = (
        "{%- set ns = namespace(found=false, n=0) -%}"
        "{%- macro show(m, end='!') -%}{{ m.content | upper }}{{ end }}{%- endmacro -%}"
        "{%- for m in messages | selectattr('role', 'equalto', 'user') | list -%}"
        "{%- set ns.n = ns.n + 1 -%}{{ loop.index0 }}{{ loop.last }}{{ show(m) }}{%- endfor -%}"
        "{{ messages[::-1] | length }}{{ {'a': [1, 2]} | tojson(indent=2) | replace('\n', '') }}"
        "{{ ['a', 'b'] | join(', ') }}{{ 'x y'.split()[1] }}{{ '%s-%d' % ('a', 3) }}{{ '{}'.format(4) }}"
        "{%- set block %}in {{ ns.n }}{% endset %}{{ block | trim | indent(2) }}{{ 'z'.ljust(3, '.') }}"
        "{% for k, v in {'k': 1}.items() %}{{ k }}{{ v }}{% endfor %}{{ (1, 2) | last }}{{ 7 // 2 }}{{ -ns.n }}"
    )
    expected = '0TrueHI!1{  "a": [    1,    2  ]}a, bya-34in 1z..k123-1'
    assert expected == ChatTemplate(source, {}).render(TURNS)
