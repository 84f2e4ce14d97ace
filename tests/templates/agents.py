"""Templates that know tools, and those that come as several by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tests.templates.plain import FAMILIES as PLAIN

Family = tuple[str, dict[str, dict[str, str]]]

_LLAMA3: Final = """{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not tools_in_user_message is defined %}{%- set tools_in_user_message = @where@ %}{%- endif %}
{%- if not date_string is defined %}{%- set date_string = @date@ %}{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\nToday Date: " + date_string + "\\n\\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{{- system_message }}{{- "<|eot_id|>" }}
{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first_user_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
    {%- else %}{{- raise_exception("Cannot put tools in the first user message when there's no first user message!") }}
    {%- endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\nFunctions:\\n\\n' -}}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
    {{- first_user_message + "<|eot_id|>"}}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("One tool call at once!") }}{%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson }}{{- "}<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
_MISTRAL: Final = """{%- set loop_messages = messages[1:] if messages[0].role == 'system' else messages %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ @system@ }}{%- endif %}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}{{- '"' + key + '": "' + val + '"' }}
                    {%- else %}{{- '"' + key + '": ' + val|tojson }}{%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {{- "[INST] " + message["content"] + "[/INST]" }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson@json@ %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}{{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] == "tool_results" or message["role"] == "tool" %}
        {%- if message.content is defined and message.content.content is defined %}
            {%- set content = message.content.content %}
        {%- else %}{%- set content = message.content %}{%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + content|string + ", " }}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}{{- raise_exception("Only user and assistant roles are supported!") }}{%- endif %}
{%- endfor %}"""
_HERMES: Final = """{%- macro json_to_python_type(json_spec) %}
{%- set basic_type_map = {"string": "str", "number": "float", "integer": "int", "boolean": "bool"} %}
{%- if basic_type_map[json_spec.type] is defined %}{{- basic_type_map[json_spec.type] }}
{%- elif json_spec.type == "array" %}{{- "list[" + json_to_python_type(json_spec|items) + "]"}}
{%- elif json_spec.type is iterable %}{{- "Union[" }}
{%- for t in json_spec.type %}{{- json_to_python_type({"type": t}) }}{%- if not loop.last %},{%- endif %}{%- endfor %}
{{- "]" }}
{%- else %}{{- "Any" }}{%- endif %}
{%- endmacro %}
{{- bos_token }}
{{- '<|im_start|>system\\nYou call functions. <tools> ' }}
{%- for tool in tools or [] %}
{%- if tool.function is defined %}{%- set tool = tool.function %}{%- endif %}
{{- '{"type": "function", "function": {"name": "' + tool.name + '", "description": "' + tool.name + '(' }}
{%- for name, fields in tool.parameters.properties@items@ %}
{{- name + ": " + json_to_python_type(fields) }}{%- if not loop.last %}{{- ", " }}{%- endif %}
{%- endfor %}{{- ")" }}
{%- for name, fields in tool.parameters.properties|items %}
{{- "\\n        " + name + '(' + json_to_python_type(fields) + '): ' + (fields.description or '')|trim }}
{%- endfor %}
{{- '", "parameters": ' }}
{%- if tool.parameters.properties | length == 0 %}{{- "{}" }}{%- else %}{{- tool.parameters|tojson }}{%- endif %}
{{- "}" }}{%- if not loop.last %}{{- "\\n" }}{%- endif %}
{%- endfor %}
{{- ' </tools><|im_end|>\\n' }}
{%- for message in messages %}
{%- if message.role == "user" or message.role == "system" or (message.role == "assistant" and not message.tool_calls) %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- elif message.role == "assistant" %}
{{- '<|im_start|>' + message.role }}
{%- for tool_call in message.tool_calls %}
{{- '\\n<tool_call>\\n' }}{%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
{{- '{"name": "' + tool_call.name + '", "arguments": ' + tool_call.arguments|tojson(@json@) + '}\\n</tool_call>' }}
{%- endfor %}{{- '<|im_end|>\\n' }}
{%- elif message.role == "tool" %}
{%- if loop.previtem and loop.previtem.role != "tool" %}{{- '<|im_start|>tool\\n' }}{%- endif %}
{{- '<tool_response>\\n' + message.content }}{%- if not loop.last %}{{- '\\n</tool_response>\\n' }}
{%- else %}{{- '\\n</tool_response>' }}{%- endif %}
{%- if not loop.last and loop.nextitem.role != "tool" %}{{- '<|im_end|>' }}
{%- elif loop.last %}{{- '<|im_end|>' }}{%- endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
_GRANITE: Final = """{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}{%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set system_message = "Knowledge Cutoff Date: April 2024.\\nToday's Date: " + strftime_now('@date@') + "." %}
    {%- if tools and documents %}{%- set system_message = system_message + " Use tools and documents." %}
    {%- elif tools %}{%- set system_message = system_message + " Use tools." %}
    {%- elif documents %}{%- set system_message = system_message + " Use documents." %}
    {%- elif thinking %}{%- set system_message = system_message + " Think first." %}{%- endif %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>\\n' }}
{%- if tools %}
    {{- '<|start_of_role|>available_tools<|end_of_role|>' }}{{- tools | tojson(indent=@indent@) }}
    {{- '<|end_of_text|>\\n' }}
{%- endif %}
{%- if documents %}
    {%- for document in documents %}
        {{- '<|start_of_role|>document {"document_id": "' + document['doc_id'] | string + '"}<|end_of_role|>\\n' }}
        {{- document['text'] }}{{- '<|end_of_text|>\\n' }}
    {%- endfor %}
{%- endif %}
{%- for message in loop_messages %}
    {{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\\n' }}
    {%- if loop.last and add_generation_prompt %}
        {{- '<|start_of_role|>assistant' }}{%- if controls %}{{- ' ' + controls | tojson()}}{%- endif %}
        {{- '<|end_of_role|>' }}
    {%- endif %}
{%- endfor %}"""
_CHANNELS: Final = """{%- macro render_type(spec, optional=false) -%}
    {%- if spec.type == "array" -%}{{ "any[]" }}
    {%- elif spec.type == "string" -%}
        {%- if spec.enum -%}{{ '"' + spec.enum|join('" | "') + '"' }}{%- else -%}{{ "string" }}{%- endif -%}
    {%- elif spec.type in ["number", "integer"] -%}{{ "number" }}
    {%- elif spec.type == "object" -%}
        {{- "{\\n" }}
        {%- for name, prop in spec.properties.items() -%}
            {{- name -}}{%- if name not in (spec.required or []) -%}{{- "?" }}{%- endif -%}
            {{- ": " }}{{ render_type(prop) }}{%- if not loop.last -%}{{-", " }}{%- endif -%}
        {%- endfor -%}
        {{- "}" }}
    {%- else -%}{{ spec.type }}{%- endif -%}
{%- endmacro -%}
{{- "<|start|>system<|message|>Current date: " + strftime_now("%Y-%m-%d") + "\\n\\n" }}
{{- "Reasoning: " + reasoning_effort|default(@effort@) + "<|end|>" }}
{%- if tools -%}
    {{- "<|start|>developer<|message|># Tools\\n\\nnamespace functions {\\n\\n" }}
    {%- for tool in tools -%}
        {%- set tool = tool.function -%}
        {{- "// " + tool.description + "\\ntype " + tool.name + " = (_: " + render_type(tool.parameters) }}
        {{- ") => any;\\n\\n" }}
    {%- endfor -%}
    {{- "} // namespace functions<|end|>" }}
{%- endif -%}
{%- set last_tool_call = namespace(name=none) -%}
{%- for message in messages -%}
    {%- if message.role == 'assistant' and 'tool_calls' in message -%}
        {%- set call = message.tool_calls[0].function -%}
        {{- "<|start|>assistant to=functions." + call.name + "<|channel|>commentary json<|message|>" }}
        {{- call.arguments|tojson(@json@) }}{{- "<|call|>" }}{%- set last_tool_call.name = call.name -%}
    {%- elif message.role == 'tool' -%}
        {%- if last_tool_call.name is none -%}{{- raise_exception("No tool call before this message") }}{%- endif -%}
        {{- "<|start|>functions." + last_tool_call.name + " to=assistant<|message|>" }}
        {{- message.content|tojson + "<|end|>" }}
    {%- elif message.role == 'assistant' -%}
        {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|end|>" }}
        {%- set last_tool_call.name = none -%}
    {%- else -%}{{- "<|start|>" + message.role + "<|message|>" ~ message.content ~ "<|end|>" }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}"""
_DUMP: Final = """{%- for m in messages %}
{{- m.role ~ ' ' ~ (m.content is string) ~ m | tojson(@options@) ~ '\\n' }}
{%- endfor %}
{%- if tools %}{{ tools | tojson(@options@) }}{% endif %}"""

FAMILIES: Final[dict[str, Family]] = {
    "llama3": (
        _LLAMA3,
        {
            "where": {"": "true", "system": "false"},
            "date": {
                "": '"26 Jul 2024"',
                "now": 'strftime_now("%d %b %Y") if strftime_now is defined else "26 Jul 2024"',
            },
        },
    ),
    "mistral-tools": (
        _MISTRAL,
        {
            "system": {"": "''", "v7": "'[SYSTEM_PROMPT]' + messages[0].content + '[/SYSTEM_PROMPT]'"},
            "json": {"": "", "ascii": "(ensure_ascii=True)"},
        },
    ),
    "hermes": (_HERMES, {"items": {"": "|items", "method": ".items()"}, "json": {"": "", "sorted": "sort_keys=True"}}),
    "granite": (_GRANITE, {"date": {"": "%B %d, %Y", "iso": "%F"}, "indent": {"": "4", "none": "none"}}),
    "channels": (
        _CHANNELS,
        {
            "effort": {"": "'medium'", "high": "'high'"},
            "json": {"": "", "tight": "separators=(',', ':')", "all": "ensure_ascii=False, indent=2, sort_keys=True"},
        },
    ),
    "dump": (
        _DUMP,
        {
            "options": {
                "": "",
                "tight": "separators=(',', ':')",
                "sorted": "sort_keys=true, ensure_ascii=true",
                "tabs": "indent='\\t'",
                "all": "indent=2, separators=(', ', ' = '), sort_keys=true",
            }
        },
    ),
}

_COMMAND = PLAIN["command-r"][0].replace("@other@", "")
_TOOL_USE: Final = """{{ bos_token }}## Tools
{% for tool in tools %}
```python
def {{ tool.function.name }}({% for name, spec in tool.function.parameters.properties.items() %}
{{- name }}: {{ {'string': 'str', 'integer': 'int', 'boolean': 'bool'}.get(spec.type, 'Any') }}
{%- if name not in tool.function.parameters.required %} = None{% endif %}{{ ', ' if not loop.last }}
{%- endfor %}):
    \"\"\"{{ tool.function.description }}\"\"\"
```
{% endfor %}
{% for m in messages %}{{ m.role }}: {{ m.content }}
{% endfor %}
{% if add_generation_prompt %}Action: ```json
{% endif %}"""
_RAG: Final = """{{ bos_token }}{% for document in documents %}
Document: {{ loop.index0 }}
{% for key, value in document.items() %}{{ key }}: {{ value }}
{% endfor %}
{% endfor %}{% for m in messages %}{{ m.role }}: {{ m.content }}
{% endfor %}{% if add_generation_prompt %}CHATBOT: {% endif %}"""
NAMED: Final[dict[str, Mapping[str, str]]] = {
    "named-tools": {"default": _COMMAND, "tool_use": _TOOL_USE},
    "named-tools-rag": {"default": _COMMAND, "tool_use": _TOOL_USE, "rag": _RAG},
    "named-rag": {"default": _COMMAND, "rag": _RAG},
}
