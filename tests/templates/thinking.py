"""Templates of models that think before they answer, and those that mark what the assistant writes."""

from __future__ import annotations

from typing import Final

Family = tuple[str, dict[str, dict[str, str]]]

_QWEN: Final = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\nCall one or more functions.\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string and @asked@ %}
        {%- set ns.searching = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') }}
            {{- '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function if call.function else call %}
            {{- '\\n<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is @off@ %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
_SMOLLM3: Final = """{%- if enable_thinking is not defined -%}{%- set enable_thinking = true -%}{%- endif -%}
{%- set mode = "/think" if enable_thinking else "/no_think" -%}
{%- if messages[0].role == "system" -%}
  {%- set system = messages[0].content -%}
  {%- if "/no_think" in system -%}{%- set mode = "/no_think" -%}
  {%- elif "/think" in system -%}{%- set mode = "/think" -%}{%- endif -%}
  {%- set own = system.replace("/no_think", "").replace("/think", "").rstrip() -%}
{%- endif -%}
{{- "<|im_start|>system\\n## Metadata\\n\\n" -}}
{%- set today = strftime_now("@date@") -%}
{{- "Today Date: " ~ today ~ "\\nReasoning Mode: " + mode + "\\n\\n" -}}
{%- if own -%}{{- own + "\\n\\n" -}}{%- endif -%}
{%- if xml_tools or tools -%}
  {%- set ns = namespace(text="Call functions with JSON:\\n<tools>\\n") -%}
  {%- for tool in xml_tools or tools -%}{%- set ns.text = ns.text ~ (tool | string) ~ "\\n" -%}{%- endfor -%}
  {{- ns.text + "</tools>\\n" -}}
{%- endif -%}
{{- "<|im_end|>\\n" -}}
{%- for message in messages -%}
  {%- set content = message.content if message.content is string else "" -%}
  {%- if message.role == "user" -%}{{ "<|im_start|>user\\n" + content + "<|im_end|>\\n" }}
  {%- elif message.role == "assistant" -%}
    @open@{%- if mode == "/think" -%}{{ "<|im_start|>assistant\\n" + content.lstrip("\\n") + "<|im_end|>\\n" }}
    {%- else -%}{{ "<|im_start|>assistant\\n<think>\\n\\n</think>\\n" + content.lstrip("\\n") + "<|im_end|>\\n" }}
    {%- endif -%}@close@
  {%- elif message.role == "tool" -%}{{ "<|im_start|>user\\n" + content + "<|im_end|>\\n" }}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{ "<|im_start|>assistant\\n" if mode == "/think" else "<|im_start|>assistant\\n<think>\\n\\n</think>\\n" }}
{%- endif -%}"""
_DEEPSEEK: Final = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{%- set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='') %}
{%- for message in messages %}{%- if message['role'] == 'system' %}
{%- set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}
{{- bos_token }}{{ ns.system_prompt }}
{%- for message in messages %}
{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<｜User｜>' + message['content']}}{%- endif %}
{%- if message['role'] == 'assistant' and message['tool_calls'] is defined @none@ %}
{%- set ns.is_tool = false -%}
{%- for tool in message['tool_calls'] %}
{%- if not ns.is_first %}{{- '<｜Assistant｜><｜tool▁calls▁begin｜>' }}{%- set ns.is_first = true -%}{%- endif %}
{{- '<｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name'] + '\\n```json\\n' }}
{{- tool['function']['arguments']|tojson + '\\n```<｜tool▁call▁end｜>' }}
{%- endfor %}{{- '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}
{%- elif message['role'] == 'assistant' %}
{%- if ns.is_tool %}{{'<｜tool▁outputs▁end｜>' + message['content'] + '<｜end▁of▁sentence｜>'}}
{%- set ns.is_tool = false -%}
{%- else %}{% set content = message['content'] %}
{%- if '</think>' in content %}{% set content = content.split('</think>')[-1]@cut@ %}{% endif %}
{{- '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endif %}
{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}
{{- '<｜tool▁outputs▁begin｜>' if ns.is_output_first }}{%- set ns.is_output_first = false %}
{{- '<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>'}}{%- endif %}
{%- endfor -%}
{% if ns.is_tool %}{{'<｜tool▁outputs▁end｜>'}}{% endif %}
{%- if add_generation_prompt and not ns.is_tool %}{{'<｜Assistant｜>'}}@think@{% endif %}"""
_GLM: Final = """[gMASK]<sop>
{%- macro visible(content) -%}
    {%- if content is string -%}{{- content }}
    {%- elif content is iterable and content is not mapping -%}
        {%- for item in content -%}
            {%- if item is mapping and item.type == 'text' -%}{{- item.text }}
            {%- elif item is string -%}{{- item }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}{{- content }}{%- endif -%}
{%- endmacro -%}
{%- if tools -%}
<|system|>
# Tools
{% for tool in tools %}
{{ tool | tojson(ensure_ascii=@ascii@) }}
{% endfor %}
{%- endif -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}<|user|>
{{ visible(m.content) }}
{%- set off = enable_thinking is defined and not enable_thinking %}
{{- '/nothink' if (off and not visible(m.content).endswith("/nothink")) else '' -}}
{%- elif m.role == 'assistant' -%}
<|assistant|>
{%- set content = visible(m.content) %}
{%- if '</think>' in content %}{{ '\\n<think></think>' }}
{%- set content = content.split('</think>')[-1] %}{%- endif %}
{%- if content.strip() %}{{ '\\n' + content.strip() }}{%- endif -%}
{%- for call in m.tool_calls or [] %}
{{ '\\n<tool_call>' + call.function.name }}
{% for k, v in call.function.arguments.items() %}
<arg_key>{{ k }}</arg_key>
<arg_value>{{ v | tojson(ensure_ascii=False) if v is not string else v }}</arg_value>
{% endfor %}
</tool_call>{% endfor %}
{%- elif m.role == 'tool' -%}
{%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|observation|>' }}{%- endif %}
{{- '\\n<tool_response>\\n' }}{{- m.content }}{{- '\\n</tool_response>' }}
{%- elif m.role == 'system' -%}
<|system|>
{{ visible(m.content) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>@end@{%- endif -%}"""
_GENERATION: Final = """{{ bos_token }}{% for message in messages %}
{%- if message['role'] == 'assistant' %}{{ '<|assistant|>\\n' }}
{%- generation %}@inside@{{ message['content'] + eos_token }}{% endgeneration %}@after@{{ '\\n' }}
{%- else %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '\\n' }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""
_LFM: Final = """{{- bos_token -}}
{%- set keep_past_thinking = keep_past_thinking | default(@keep@) -%}
{%- set ns = namespace(system_prompt="", content="") -%}
{%- if messages[0]["role"] == "system" -%}
    {%- set ns.system_prompt = messages[0]["content"] -%}{%- set messages = messages[1:] -%}
{%- endif -%}
{%- if tools -%}
    {%- set ns.system_prompt = ns.system_prompt + ("\\n" if ns.system_prompt else "") + "List of tools: [" -%}
    {%- for tool in tools -%}
        {%- if tool is not string -%}{%- set tool = tool | tojson -%}{%- endif -%}
        {%- set ns.system_prompt = ns.system_prompt + tool -%}
        {%- if not loop.last -%}{%- set ns.system_prompt = ns.system_prompt + ", " -%}{%- endif -%}
    {%- endfor -%}
    {%- set ns.system_prompt = ns.system_prompt + "]" -%}
{%- endif -%}
{%- if ns.system_prompt -%}{{- "<|im_start|>system\\n" + ns.system_prompt + "<|im_end|>\\n" -}}{%- endif -%}
{%- set ns.last_assistant_index = -1 -%}
{%- for message in messages -%}
    {%- if message["role"] == "assistant" -%}{%- set ns.last_assistant_index = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
    {{- "<|im_start|>" + message["role"] + "\\n" -}}
    {%- set content = message["content"] -%}
    {%- if content is not string -%}{%- set content = content | tojson -%}{%- endif -%}
    {%- if message["role"] == "assistant" and not keep_past_thinking and loop.index0 != ns.last_assistant_index -%}
        {%- if "</think>" in content -%}{%- set content = content.split("</think>")[-1] | trim -%}{%- endif -%}
    {%- endif -%}
    @open@{{- content + "<|im_end|>\\n" -}}@close@
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\\n" -}}{%- endif -%}"""

_OPEN = {"": "", "generation": "{%- generation -%}"}
FAMILIES: Final[dict[str, Family]] = {
    "qwen3": (
        _QWEN,
        {
            "asked": {
                "": "not(message.content.startswith('<tool_response>') "
                "and message.content.endswith('</tool_response>'))",
                "short": "'<tool_response>' not in message.content",
            },
            "off": {"": "false", "sameas": "sameas false"},
        },
    ),
    "smollm3": (
        _SMOLLM3,
        {"date": {"": "%d %B %Y", "week": "%Y-W%V"}, "open": {"": ""}, "close": {"": ""}},
    ),
    "smollm3-marked": (
        _SMOLLM3,
        {"date": {"": "%d %B %Y"}, "open": {"": "{%- generation -%}"}, "close": {"": "{%- endgeneration -%}"}},
    ),
    "deepseek": (
        _DEEPSEEK,
        {
            "none": {"": "and message['tool_calls'] is not none", "empty": "and message['tool_calls']"},
            "cut": {"": "", "lstrip": ".lstrip('\\n')"},
            "think": {"": "", "r1": "{{'<think>\\n'}}"},
        },
    ),
    "glm": (
        _GLM,
        {
            "ascii": {"": "False", "ascii": "True"},
            "end": {
                "": "",
                "think": "{{- '\\n<think></think>' if enable_thinking is defined and not enable_thinking }}",
            },
        },
    ),
    "marked": (
        _GENERATION,
        {
            "inside": {"": "", "set": "{% set seen = 'yes' %}{{ seen }}", "loop": "{{ loop.index }}"},
            "after": {"": "", "seen": "{{ seen|default('no') }}"},
        },
    ),
    "lfm2": (_LFM, {"keep": {"": "false", "keep": "true"}, "open": {"": ""}, "close": {"": ""}}),
    "lfm2.5": (
        _LFM,
        {"keep": {"": "false"}, "open": {"": "{%- generation -%}"}, "close": {"": "{%- endgeneration -%}"}},
    ),
}
