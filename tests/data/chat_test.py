"""Chat templates: Hugging Face's conventions, in a sandbox."""

from __future__ import annotations

import concurrent.futures
import functools
import json
import pathlib
import signal

import pytest

from egad_jax.data import chat
from egad_jax.errors import InputError
from tests.data import chat_cases

_GOLDEN = json.loads(
  (pathlib.Path(__file__).parents[1] / "fixtures" / "chat_golden.json").read_text()
)


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


@pytest.mark.parametrize("name", chat_cases.TEMPLATES)
def test_templates_render_as_transformers_renders_them(name):
  for title, messages in chat_cases.CONVERSATIONS.items():
    for prompt, text in zip((False, True), _GOLDEN["texts"][name][title], strict=True):
      render = functools.partial(
        chat.render_chat,
        chat_cases.TEMPLATES[name],
        messages,
        add_generation_prompt=prompt,
        special_tokens=_GOLDEN["special_tokens"],
      )
      if text is None:
        with pytest.raises(InputError, match="cannot render"):
          render()
      else:
        assert render() == text, (name, title, prompt)


def test_one_worker_serves_all_conversations_and_is_replaced_when_it_dies():
  assert _render("{{ messages[0].content }}", "a") == "a"
  worker = chat._renderer._worker
  # One after another, from threads, and with line breaks and much text in them.
  contents = [str(i) + "\n\u2028" * i for i in range(40)] + ["x" * 3_000_000]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    render = functools.partial(_render, "{{ messages[0].content }}")
    assert list(pool.map(render, contents)) == contents
  # Ctrl-C at a terminal reaches it too.
  worker.send_signal(signal.SIGINT)
  assert _render("{{ messages[0].content }}", "b") == "b"
  assert chat._renderer._worker is worker
  worker.kill()
  worker.wait()
  assert _render("{{ messages[0].content }}", "c") == "c"
  assert chat._renderer._worker is not worker


def test_a_worker_that_does_not_answer_is_given_up(monkeypatch):
  _render("")
  worker = chat._renderer._worker
  worker.send_signal(signal.SIGSTOP)
  monkeypatch.setattr(chat, "_TIMEOUT_SECONDS", 0.2)
  with pytest.raises(InputError, match="too much time or memory"):
    _render("a")
  assert worker.returncode == -signal.SIGKILL
  monkeypatch.undo()
  assert _render("a") == "a"


def test_a_fork_has_a_worker_and_a_lock_of_its_own():
  renderer = chat._Renderer()
  request = b'{"template": "a", "date": "", "conversations": [{"messages": [], "variables": {}}]}'
  answer = [{"text": "a", "generated": []}]
  assert renderer.ask(request) == answer
  parents = renderer._worker
  # A fork may come in the midst of a request.
  renderer._lock.acquire()
  renderer.forget()
  assert renderer.ask(request) == answer
  assert renderer._worker is not parents
  renderer.stop()
  assert parents.poll() is None
  renderer._worker = parents
  renderer.stop()


def test_the_worker_ends_with_its_input():
  _render("")
  worker = chat._renderer._worker
  worker.stdin.close()
  assert worker.wait(20) == 0
  chat._renderer.stop()
