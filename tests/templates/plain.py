"""Templates of chats without tools."""

from __future__ import annotations

from typing import Final

Family = tuple[str, dict[str, dict[str, str]]]

_CHATML: Final = """@bos@@system@{% for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content']@trim@ + '<|im_end|>' }}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
_ONE_LINE: Final = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}@default@{% endif %}"
    "{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt@and@ %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_LLAMA2: Final = """{% if messages[0]['role'] == 'system' %}
{% set rest = messages[1:] %}{% set intro = messages[0]['content'] %}
{% else %}
{% set rest = messages %}{% set intro = @intro@ %}
{% endif %}
{% for message in rest %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles have to alternate: user, assistant, user, assistant') }}
{% endif %}
{% if loop.index0 == 0 and intro != false %}
{% set content = '<<SYS>>\\n' + intro + '\\n<</SYS>>\\n\\n' + message['content'] %}
{% else %}
{% set content = message['content'] %}
{% endif %}
{% if message['role'] == 'user' %}
{{ bos_token + '[INST] ' + content@strip@ + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}
{{ ' '  + content@strip@ + ' ' + eos_token }}
{% endif %}
{% endfor %}"""
_GEMMA: Final = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
@system@
{%- else -%}
    {%- set first = '' -%}{%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = "model" if (message['role'] == 'assistant') else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}@end@{%- endif -%}"""
_MISTRAL: Final = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}{%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace(at=0) %}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.at % 2 == 0) %}
        {{- raise_exception("After the optional system message, roles must alternate user and assistant!") }}
    {%- endif %}
    {%- set ns.at = ns.at + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if @where@ and system_message is defined %}
            {{- "[INST]@space@" + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST]@space@" + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- "@space@" + message["content"]|trim + eos_token }}
    {%- endif %}
{%- endfor %}"""
_ROLES: Final = """{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}
{{'@system@' + message['content'] + '@end@'}}{% elif message['role'] == 'user' %}
{{'@user@' + message['content'] + '@end@'}}{% elif message['role'] == 'assistant' %}
{{'@assistant@' + message['content'] + '@end@'}}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ '@assistant@' }}{% else %}{{ eos_token }}{% endif %}"""
_VICUNA: Final = """@rule@{% for message in messages %}
{%- if message['role'] == 'system' -%}{{ message['content'] + sep }}
{%- elif message['role'] == 'user' -%}{{ 'USER: ' + message['content'].strip() + sep }}
{%- else -%}{{ 'ASSISTANT: ' + message['content'].strip() + eos_token }}
{%- endif -%}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""
_ALPACA: Final = """{{ @title@ }}
{% for m in messages %}
{% if m.role == 'user' %}### Instruction:
{{ m.content }}

{% elif m.role == 'assistant' %}### Response:
{{ m.content }}{{ eos_token }}

{% else %}{{ m.content|upper }}

{% endif %}
{% endfor %}
{% if add_generation_prompt %}### Response:
{% endif %}"""
_EXAONE: Final = """{% for message in messages %}
{%- if loop.first and message['role'] != 'system' %}{{ '[|system|][|endofturn|]\\n' }}{% endif %}
{{- '[|' + message['role'] + '|]' + message['content']@strip@ }}
{%- if not message['role'] == 'user' %}{{ '[|endofturn|]' }}{% endif %}
{%- if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '\\n[|assistant|]' }}{% endif %}"""
_OLMO: Final = """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + '\\n' }}{% elif message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + '\\n' }}{% elif message['role'] == 'assistant' %}{% if not loop.last %}
{{ '<|assistant|>\\n' + message['content'] + eos_token + '\\n' }}{% else %}
{{ '<|assistant|>\\n' + message['content'] + @last@ }}{% endif %}{% endif %}
{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}"""
_HUNYUAN: Final = """{% set context = {'has_head': true} %}
{%- for message in messages %}{% set content = message['content'] %}
{%- if loop.index0 == 0 %}
{%- if content == '' %}{% set _ = context.@get@('has_head') %}
{%- elif message['role'] == 'system' %}{% set content = '<|startoftext|>' + content + '<|extra_4|>' %}{% endif %}
{%- endif %}
{%- if message['role'] == 'user' %}
{%- if loop.index0 == 1 and messages[0]['role'] == 'system' %}{% set content = content + '<|extra_0|>' %}
{%- else %}{% set content = '<|startoftext|>' + content + '<|extra_0|>' %}{% endif %}
{%- elif message['role'] == 'assistant' %}{% set content = content + '<|eos|>' %}{% endif %}
{{- content }}{% endfor %}"""
_COMMAND: Final = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}
{%- set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}
{%- set system_message = false %}{% endif %}
{%- if system_message != false %}
{{- '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + system_message + '<|END_OF_TURN_TOKEN|>' }}{% endif %}
{%- for message in loop_messages %}{% set content = message['content'] %}
{%- if message['role'] == 'user' %}
{{- '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + content.strip() + '<|END_OF_TURN_TOKEN|>' }}
{%- elif message['role'] == 'assistant' %}
{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' + content.strip() + '<|END_OF_TURN_TOKEN|>' }}
@other@{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"""
_DOCUMENTS: Final = """{%- if documents %}
{{- '<documents>\\n' }}
{%- for d in documents@sort@ %}
{{- loop.index ~ '/' ~ loop.length ~ ' ' ~ d.title|default('untitled', true) ~ ': ' ~ d.text|indent(2) ~ '\\n' }}
{%- endfor %}
{{- '</documents>\\n' }}
{%- endif %}
{%- for role, group in messages|groupby('role') %}{{ role }}={{ group|list|length }};{% endfor %}
{%- for m in messages|reject('none') %}{{ m.role ~ ': ' ~ (m.content if m.content is string else 'parts') }}
{{- '\\n' if not loop.last }}{% endfor %}"""
_LOOPS: Final = """{%- set last = namespace(user=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'system' %}@skip@{% endif %}
{%- if loop.index0 > last.user %}{% break %}{% endif %}
{{- loop.cycle('A', 'B') ~ loop.index0 ~ loop.revindex ~ (loop.previtem.role if loop.previtem is defined else '-') }}
{{- m.content if m.content is string }}
{%- else %}none{% endfor %}
{%- if add_generation_prompt %}>{% endif %}"""
_CYCLES: Final = """{% set turn = cycler('Human', 'Machine') %}{% set comma = joiner(' | ') %}
{% for m in messages if m.role != 'system' %}
{{ comma() }}{{ turn.next() }}@current@: {{ m['content'] }}
{% endfor %}
{{ '-' * 10 }}{{ '=' * messages|length }}
{% if add_generation_prompt %}{{ turn.next() }}:{% endif %}"""
_MACROS: Final = """{%- macro head(role, sep='\\n') -%}{{ '<|' ~ role ~ '|>' ~ sep }}{%- endmacro -%}
{%- macro body(m) -%}
{%- if m.content is mapping -%}{{ m.content|tojson }}
{%- elif m.content is string -%}{{ m.content@filter@ }}
{%- else -%}{% for part in m.content %}{{ part.text }}{{ '' if loop.last else ' ' }}{% endfor %}{%- endif -%}
{%- endmacro -%}
{%- for m in messages -%}{{ head(m.role) }}{{ body(m) }}{{ '<|end|>\\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ head('assistant', sep='') }}{%- endif -%}"""

FAMILIES: Final[dict[str, Family]] = {
    "chatml": (
        _CHATML,
        {
            "bos": {"": "", "bos": "{{ bos_token }}"},
            "system": {
                "": "",
                "default": "{% if messages[0]['role'] != 'system' %}\n"
                "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}",
            },
            "trim": {"": "", "trim": " | trim", "strip": ".strip()"},
        },
    ),
    "smollm": (
        _ONE_LINE,
        {
            "default": {"": "{{ '<|im_start|>system\nBe helpful.<|im_end|>\n' }}", "none": ""},
            "and": {"": "", "last": " and messages[-1]['role'] != 'assistant'"},
        },
    ),
    "llama2": (
        _LLAMA2,
        {"intro": {"": "false", "default": "'Be honest.'"}, "strip": {"": "", "strip": ".strip()", "trim": "|trim"}},
    ),
    "gemma": (
        _GEMMA,
        {
            "system": {
                "": "{{ raise_exception('System role not supported') }}",
                "3": "    {%- if messages[0]['content'] is string -%}\n"
                "        {%- set first = messages[0]['content'] + '\n\n' -%}\n"
                "    {%- else -%}{%- set first = messages[0]['content'][0]['text'] + '\n\n' -%}{%- endif -%}\n"
                "    {%- set rest = messages[1:] -%}",
            },
            "end": {"": "{{'<start_of_turn>model\n'}}", "set": "{% set t %}<start_of_turn>model\n{% endset %}{{ t }}"},
        },
    ),
    "mistral": (
        _MISTRAL,
        {"where": {"first": "loop.first", "last": "loop.last"}, "space": {"": " ", "tight": ""}},
    ),
    "phi3": (
        _ROLES,
        {
            "system": {"": "<|system|>\\n"},
            "user": {"": "<|user|>\\n"},
            "assistant": {"": "<|assistant|>\\n"},
            "end": {"": "<|end|>\\n", "tight": "<|end|>"},
        },
    ),
    "phi4": (
        _ROLES,
        {
            "system": {"": "<|im_start|>system<|im_sep|>"},
            "user": {"": "<|im_start|>user<|im_sep|>"},
            "assistant": {"": "<|im_start|>assistant<|im_sep|>"},
            "end": {"": "<|im_end|>"},
        },
    ),
    "nemotron": (
        _ROLES,
        {
            "system": {"": "<extra_id_0>System\\n"},
            "user": {"": "<extra_id_1>User\\n"},
            "assistant": {"": "<extra_id_1>Assistant\\n"},
            "end": {"": "\\n", "blank": "\\n\\n"},
        },
    ),
    "zephyr": (
        _ROLES,
        {
            "system": {"": "<|system|>\\n"},
            "user": {"": "<|user|>\\n", "human": "<|human|>: "},
            "assistant": {"": "<|assistant|>\\n"},
            "end": {"": "</s>\\n"},
        },
    ),
    "falcon": (
        _ROLES,
        {
            "system": {"": "System: "},
            "user": {"": "User: ", "old": "Human: "},
            "assistant": {"": "Falcon:"},
            "end": {"": "\\n"},
        },
    ),
    "vicuna": (
        _VICUNA,
        {"rule": {"": "{%- set sep = ' ' -%}", "lines": "{%- set sep = '\\n' -%}", "rule": "{% set sep = '-' * 5 %}"}},
    ),
    "alpaca": (_ALPACA, {"title": {"": "'=' * 20", "before": "3 * '#'", "mod": "'%s %-5s|' % ('A', 'b')"}}),
    "exaone": (_EXAONE, {"strip": {"": "", "strip": ".strip()"}}),
    "olmo": (_OLMO, {"last": {"": "eos_token", "open": "('' if add_generation_prompt else eos_token)"}}),
    "hunyuan": (_HUNYUAN, {"get": {"": "get", "pop": "pop"}}),
    "command-r": (
        _COMMAND,
        {"other": {"": "{%- else %}{{ raise_exception('Unknown role: ' + message['role']) }}", "mute": ""}},
    ),
    "grounded": (_DOCUMENTS, {"sort": {"": "", "sorted": "|sort(attribute='title')", "cut": "[:1]"}}),
    "loops": (_LOOPS, {"skip": {"": "{% continue %}", "say": "{{ 'S' }}"}}),
    "cycles": (_CYCLES, {"current": {"": "", "current": "({{ turn.current }})"}}),
    "macros": (_MACROS, {"filter": {"": "", "trim": "|trim", "replace": "|replace('\\n', ' ')", "escape": "|e"}}),
}
