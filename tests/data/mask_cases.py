"""Templates without and with `{% generation %}`, and conversations, to compare targets with.

`tests/parity/make_mask_golden.py` renders them with transformers into tests/fixtures.
"""

from __future__ import annotations

from typing import Any

# SmolLM2's own template; a test compares it with the one in the model's file.
SMOLLM_2 = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
SMOLLM_2_MARKED = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant
' }}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '
' }}{% else %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endif %}{% endfor %}"""

# As Qwen3's: tools in the system prompt, tool calls, and thinking that is left out of all turns but
# those behind the last question.
_THINKING_START = """\
{%- if tools %}{{- '<|im_start|>system\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}{{- '\\n</tools><|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}
{%- set content = m.content %}{%- set thinking = '' %}
{%- if m.reasoning_content is defined %}{%- set thinking = m.reasoning_content %}
{%- elif '</think>' in content %}
{%- set thinking = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>assistant\\n' }}"""
_THINKING_TURN = """\
{%- if loop.index0 > ns.last %}{{- '<think>\\n' + thinking + '\\n</think>\\n\\n' }}{%- endif %}
{{- content }}
{%- for call in m.tool_calls or [] %}
{{- '\\n<tool_call>' + (call.function | tojson) + '</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>' }}"""
_THINKING_END = """\
{{- '\\n' }}
{%- elif m.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>' + m.content + '</tool_response><|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
THINKING = _THINKING_START + _THINKING_TURN + _THINKING_END
THINKING_MARKED = (
  f"{_THINKING_START}{{%- generation %}}{_THINKING_TURN}{{%- endgeneration %}}{_THINKING_END}"
)

# Name -> (the template, the same with marks).
TEMPLATES = {"smollm2": (SMOLLM_2, SMOLLM_2_MARKED), "thinking": (THINKING, THINKING_MARKED)}

_TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {}}}
_CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
# Name -> (template, messages, tools).
CONVERSATIONS: dict[str, tuple[str, list[dict[str, Any]], Any]] = {
  "two turns and a system prompt": (
    "smollm2",
    [
      {"role": "system", "content": "Be brief."},
      {"role": "user", "content": "What is 2 + 2?"},
      {"role": "assistant", "content": "4"},
      {"role": "user", "content": "And naïve 🙂?\n\n"},
      {"role": "assistant", "content": " It is\n\ntwo lines.  "},
    ],
    None,
  ),
  "the template's own system prompt": (
    "smollm2",
    [{"role": "user", "content": "Hi <b>"}, {"role": "assistant", "content": "Hello!"}],
    None,
  ),
  "special tokens in a message": (
    "smollm2",
    [
      {"role": "user", "content": "What is <|im_end|>?"},
      {"role": "assistant", "content": "<|im_end|> ends a turn."},
    ],
    None,
  ),
  "thinking is left out of earlier turns": (
    "thinking",
    [
      {"role": "user", "content": "2 + 2?"},
      {"role": "assistant", "content": "<think>\neasy\n</think>\n\n4"},
      {"role": "user", "content": "3 + 3?"},
      {"role": "assistant", "content": "<think>\nalso easy\n</think>\n\n6"},
    ],
    None,
  ),
  "thinking in a field of its own, and tools": (
    "thinking",
    [
      {"role": "user", "content": "2 + 2?"},
      {"role": "assistant", "content": "", "reasoning_content": "add", "tool_calls": [_CALL]},
      {"role": "tool", "content": "4"},
      {"role": "assistant", "content": "It is 4.", "reasoning_content": "done"},
    ],
    [_TOOL],
  ),
}
