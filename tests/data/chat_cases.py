"""Chat templates of the kinds that models come with, and conversations to render with them.

`tests/parity/make_chat_golden.py` renders them with transformers into tests/fixtures.
"""

from __future__ import annotations

from typing import Any

CHATML = """\
{%- if messages[0].role != 'system' %}
  {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
{%- endif %}
{%- if tools %}
  {{- 'tools: ' + tools | tojson }}
{%- endif %}
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA_3 = """\
{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if not tools is defined %}{{- raise_exception("tools are undefined") }}{%- endif %}
{%- if not documents is none %}{{- raise_exception("documents are something") }}{%- endif %}
{%- set loop_messages = messages %}
{%- if messages[0]['role'] == 'system' %}
  {%- set system = messages[0]['content'] | trim %}
  {%- set messages = messages[1:] %}
{%- else %}
  {%- set system = '' %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday: " + date_string + "\\n\\n" + system }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
  {%- if 'tool_calls' in message %}
    {{- '{"name": "' + message.tool_calls[0].function.name + '", "parameters": ' }}
    {{- message.tool_calls[0].function.arguments | tojson }}{{- "}" }}
  {%- elif message.content is mapping or message.content is iterable and
           message.content is not string %}
    {{- message.content | tojson(indent=2) }}
  {%- else %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

MISTRAL = """\
{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles must alternate user/assistant/user/assistant') }}
{% endif %}
{% if message['role'] == 'user' %}
{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}
{{ message['content'] + eos_token }}
{% endif %}
{% endfor %}"""

SMOLLM_3 = """\
{#- A comment. -#}
{%- set ns = namespace(last=-1, turns=[]) -%}
{%- for message in messages -%}
  {%- if message.role == "user" -%}{%- set ns.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- macro open(role) -%}<|im_start|>{{ role }}
{% endmacro -%}
{%- for message in messages -%}
  {%- if message.role == "system" -%}{%- continue -%}{%- endif -%}
  {%- if message.role == "assistant" -%}
    {%- generation -%}
      {{- open("assistant") -}}
      {%- set inside = "kept inside" -%}
      {%- if message.reasoning_content is defined -%}
        {{- "<think>" ~ message.reasoning_content ~ "|" ~ message.thinking ~ "</think>" -}}
      {%- endif -%}
      {{- message.content ~ "<|im_end|>" -}}
    {%- endgeneration -%}
    {{- inside | default("") -}}
  {%- else -%}
    {{- open(message.role) ~ message.content ~ "<|im_end|>" -}}
  {%- endif -%}
  {{- "\\n" if not loop.last -}}
{%- endfor -%}
{{- dict(a=1, b=[ns.last]) | tojson(separators=(",", ":"), sort_keys=True) -}}
{%- if add_generation_prompt -%}{{- open("assistant") -}}{%- endif -%}"""

SMALL = {
  "tojson": "{{ messages | tojson }}",
  "tojson ascii": "{{ messages[0].content | tojson(ensure_ascii=True) }}",
  "tojson options": (
    "{{ {'b': '<&>', 'a': [1, 2.5, none, true]} | tojson(indent=1, sort_keys=true) }}"
  ),
  "tojson not ascii": "{{ messages[0].content | tojson(ensure_ascii=False) }}",
  "nothing set": "{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}{{ x }}",
  "blocks": "a\n  {% if true %}\n  b\n  {% endif %}\nc\n{% for m in messages %}\n{{ m.role }}\n"
  "{% endfor %}\n",
  "break": "{% for c in 'abc' %}{% if c == 'b' %}{% break %}{% endif %}{{ c }}{% endfor %}",
  "names": "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token }}|{{ image_token }}",
  "hidden name": "{% set ns = namespace() %}{% set ns._a = 1 %}{{ ns._a }}",
  "named from pairs": "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a + ns.b }}",
  "fromkeys": "{{ dict.fromkeys(['a', 'b'], 0) }}{{ dict([('k', 1)]) }}",
  "change of a list": "{% set a = [1] %}{{ a.append(2) }}",
  "string methods": "{{ messages[0].content.split(' ')[-1].strip('!').upper() }}",
  "no content": "{% for m in messages %}{{ 'content' in m }}{{ m.get('x', 'none') }}{% endfor %}",
  "year": "{{ strftime_now('%Y') | length }}",
  "generation alone": "{% generation %}\n a\n{% endgeneration %}\nb",
  "call": "{% macro m() %}<{{ caller() }}>{% endmacro %}{% call m() %}in{% endcall %}",
  "unknown filter": "{{ messages | nothing }}",
}

TEMPLATES = {"chatml": CHATML, "llama-3": LLAMA_3, "mistral": MISTRAL, "smollm3": SMOLLM_3, **SMALL}

_ASK = {"role": "user", "content": ' Où est <l\'été> & "toi"? 🙂\n '}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
  "one": [_ASK],
  "many": [
    {"role": "system", "content": "Be brief."},
    _ASK,
    {"role": "assistant", "content": "Ici.", "reasoning": "hm"},
    {"role": "user", "content": "Merci"},
  ],
  "alternating": [_ASK, {"role": "assistant", "content": "Ici."}, _ASK],
  "tools": [
    _ASK,
    {
      "role": "assistant",
      "content": None,
      "tool_calls": [
        {"type": "function", "function": {"name": "f", "arguments": {"ä": [1, "<x>"], "b": None}}}
      ],
    },
    {"role": "tool", "content": [{"type": "text", "text": "42"}]},
  ],
}
