"""Chat templates: Hugging Face's conventions, in a sandbox."""

from __future__ import annotations

import pytest

from egad_jax.data import chat
from egad_jax.errors import InputError


def _render(template: str, content: str = "a <b> & 'c' é", **special_tokens: str) -> str:
  return chat.render_chat(
    template,
    [{"role": "user", "content": content}],
    add_generation_prompt=True,
    special_tokens=special_tokens,
  )


def test_blocks_are_trimmed_and_names_known():
  template = (
    "{{ bos_token }}{% for m in messages %}\n  {% if loop.first %}\n{{ m['content'] }}\n"
    "  {% endif %}\n{% endfor %}\n{% if add_generation_prompt %}\n>{% endif %}"
  )
  assert _render(template, bos_token="<s>") == "<s>a <b> & 'c' é\n>"


def test_json_is_not_escaped_for_html():
  assert _render("{{ messages[0].content | tojson }}") == "\"a <b> & 'c' é\""


def test_loop_controls_work():
  assert _render("{% for c in messages[0].content %}{% break %}{% endfor %}ok") == "ok"


@pytest.mark.parametrize(
  ("template", "message"),
  [
    ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ("{% for %}", "cannot render"),
    ("{{ messages.__class__.__mro__ }}", "unsafe"),
    ("{{ messages.append(1) }}", "unsafe"),
    ("{{ messages[0].content + 1 }}", "cannot render"),
  ],
)
def test_refusals_name_the_reason(template, message):
  with pytest.raises(InputError, match=message):
    _render(template)


@pytest.mark.parametrize(
  ("template", "message"),
  [
    ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
    (
      "{% for i in range(9**5) %}{% for j in range(9**5) %}{% endfor %}{% endfor %}",
      "too much time or memory",
    ),
    ("{{ 'a' * 10**10 }}", "too much memory"),
    ("{{ 'x' | center(2 * 10**7) }}", "it makes 20000000 characters"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ("{{ cycler.__init__.__globals__.os.getcwd() }}", "unsafe"),
    ("{% include '/etc/passwd' %}", "cannot render"),
  ],
)
def test_bombs_and_escapes_are_refused(template, message):
  with pytest.raises(InputError, match=message):
    _render(template)


@pytest.mark.parametrize(
  "template", ["{{ messages | attr('__class__') }}", "{{ '{0.__class__}'.format(1) }}"]
)
def test_internals_by_other_ways_are_nothing(template):
  assert _render(template) == ""
