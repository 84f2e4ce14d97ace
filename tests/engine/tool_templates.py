"""Chat templates in the shapes in use, written for the tests: with tools, with thinking, with neither."""

from __future__ import annotations

PLAIN = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

HERMES = """{% if tools %}<|im_start|>system
Functions: {% for tool in tools %}{{ tool | tojson }}
{% endfor %}Write each call as <tool_call>{"name": ..., "arguments": ...}</tool_call>.<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}
{% if m.role == 'tool' %}<tool_response>{{ m.content }}</tool_response>{% else %}{{ m.content }}{% endif %}
{%- for call in m.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

# As SmolLM3 and Granite 3: the calls of earlier turns are left to their text.
SILENT = (
    """{% if tools %}<|im_start|>system
<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>
For each function call write <tool_call>{"name": <name>, "arguments": <object>}</tool_call><|im_end|>
{% endif %}"""
    + PLAIN
)

MISTRAL = """{% if tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}
{%- for m in messages %}{% if m.tool_calls %}[TOOL_CALLS] [
{%- for call in m.tool_calls %}{% if call.id | length != 9 %}{{ raise_exception('9 letters') }}{% endif %}
{%- set out = call.function | tojson %}{{ out[:-1] }}, "id": "{{ call.id }}"}{% endfor %}]<|im_end|>
{%- elif m.role == 'tool' %}[TOOL_RESULTS] {"content": {{ m.content | tojson }}}[/TOOL_RESULTS]
{%- else %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endif %}{% endfor %}"""

LLAMA = """{% for m in messages %}<|im_start|>{{ 'ipython' if m.role == 'tool' else m.role }}
{% if tools and loop.first %}Answer with {"name": function name, "parameters": dictionary of arguments}.
{% for tool in tools %}{{ tool | tojson(indent=4) }}
{% endfor %}{% endif %}{% if m.tool_calls %}{% set call = m.tool_calls[0].function -%}
{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}{% else %}{{ m.content }}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

GRANITE = (
    """{% if tools %}<|im_start|>system
When a tool is needed answer with <|tool_call|> and a JSON list of the tools used. {{ tools | tojson }}<|im_end|>
{% endif %}"""
    + PLAIN
)

# As Granite 3.0: results have another role.
OTHER_ROLE = """{% if tools %}<|im_start|>available_tools
{{ tools | tojson }} <|tool_call|><|im_end|>
{% endif %}{% for m in messages %}{% if m.role != 'tool' %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

GEMMA = (
    """{% if tools %}<|im_start|>user
Call a function in a block ```tool_code with {"name": ..., "parameters": ...}. {{ tools | tojson }}<|im_end|>
{% endif %}"""
    + PLAIN
)

# As FunctionGemma, in short.
FUNCTION_GEMMA = """{% for tool in tools or [] %}<start_function_declaration>{{ tool.function.name }}
{%- endfor %}{% for m in messages %}<|im_start|>{{ m.role }}
{% for call in m.tool_calls or [] %}<start_function_call>call:{{ call.function.name }}{
{%- for key, value in call.function.arguments | dictsort %}{{ key }}:<escape>{{ value }}<escape>{% endfor -%}
}<end_function_call>{% endfor %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

FOREIGN = """{% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}""" + PLAIN

# As Qwen 3: the switch writes an empty thought; otherwise the model opens one itself.
THINKING = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content.split('</think>')[-1] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""

# As DeepSeek R1: the thought is always open, and there is no switch.
OPENED = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content.split('</think>')[-1] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}"""

# As Granite 3.2: off unless it is switched on, with words for tags.
WORDS = (
    """{% if thinking %}<|im_start|>system
Begin with 'Here is my thought process:', then 'Here is my response:'.<|im_end|>
{% endif %}"""
    + PLAIN
)

# As some of Llama's: JSON in ASCII.
ASCII = HERMES.replace("tojson", "tojson(ensure_ascii=True)")
