"""Targets of rendered conversations, token by token, and templates that cannot be used."""

from __future__ import annotations

import json
import pathlib
import re

import numpy as np
import pytest

from egad_jax.data.conversations import Renderer
from egad_jax.data.readers.formats import Conversation, Fields
from egad_jax.data.readers.messages import FORMAT
from egad_jax.data.spans import text_of
from tests.data import chat_cases, mask_cases

_GOLDEN = json.loads(
  (pathlib.Path(__file__).parents[1] / "fixtures" / "chat_masks.json").read_text()
)
_ENDS = ("<|im_end|>", "<|eot_id|>", "</s>")
_NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
_ASK, _SAY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}


def _render(template, messages, tools=None):
  targets = tuple(i for i, m in enumerate(messages) if m["role"] == "assistant")
  [found] = Renderer(template, _NAMES, _ENDS).render([Conversation(messages, tools, targets)])
  return found


def _targets(document) -> list[str]:
  return [span.text for span in document if span.is_target]


@pytest.mark.parametrize("marked", [False, True], ids=["own template", "marked template"])
@pytest.mark.parametrize("name", mask_cases.CONVERSATIONS)
def test_ids_and_targets_are_those_of_transformers(smollm2, name, marked):
  template, messages, tools = mask_cases.CONVERSATIONS[name]
  parsed = FORMAT.parse({"messages": messages, "tools": tools}, Fields())
  spellings = list(smollm2.special_tokens.values())
  renderer = Renderer(mask_cases.TEMPLATES[template][marked], _NAMES, spellings)
  [document] = renderer.render([parsed])
  ids, targets = smollm2.encode_document(document)
  golden = _GOLDEN["cases"][name]
  assert ids.tolist() == golden["ids"]
  assert targets.tolist() == golden["mask"]
  assert (ids.dtype, targets.dtype) == (np.int32, np.int32)


def test_the_model_s_own_template_is_the_one_of_the_golden_file(smollm2):
  assert smollm2.chat_template == mask_cases.SMOLLM_2
  renderer = smollm2.conversation_renderer()
  [document] = renderer.render([Conversation([_ASK, _SAY], None, (1,))])
  assert text_of(document) == smollm2.apply_chat([_ASK, _SAY], add_generation_prompt=False)


@pytest.mark.parametrize(
  ("template", "expected"),
  [
    (chat_cases.CHATML, ["Ici.<|im_end|>"]),
    (chat_cases.LLAMA_3, ["Ici.<|eot_id|>"]),
    (chat_cases.MISTRAL, ["Ici.</s>"]),
    (chat_cases.SMOLLM_3, ["<|im_start|>assistant\nIci.<|im_end|>"]),
  ],
  ids=["chatml", "llama-3", "mistral", "smollm3"],
)
def test_templates_of_every_kind(template, expected):
  messages = chat_cases.CONVERSATIONS["alternating"]
  document = _render(template, messages)
  assert _targets(document) == expected
  assert all(span.special for span in document)


def test_only_the_completion_of_several_turns_is_a_target():
  messages = [_ASK, _SAY, _ASK, {"role": "assistant", "content": "Bye."}]
  for template in mask_cases.TEMPLATES["smollm2"]:
    [document] = Renderer(template, _NAMES, _ENDS).render([Conversation(messages, None, (3,))])
    assert _targets(document) == ["Bye.<|im_end|>"]


@pytest.mark.parametrize(
  ("template", "problem"),
  [
    ("{{ raise_exception('no such turns') }}", "cannot render it: no such turns"),
    ("{% for m in", "cannot render it: "),
    ("{{ messages | length }}", r"message 2 \(assistant\) so that its place cannot be found"),
    ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "renders nothing"),
    ("{% generation %}{% endgeneration %}", "renders nothing for a message"),
    ("{{ messages }}{% if x %}{% generation %}a{% endgeneration %}{% endif %}", "marks nothing"),
  ],
)
def test_templates_that_cannot_be_used_say_why(template, problem):
  found = _render(template, [_ASK, _SAY])
  assert isinstance(found, str), found
  assert re.search(problem, found), found


@pytest.mark.slow  # Templates get two seconds each.
def test_one_conversation_that_takes_too_long_spoils_no_other():
  loops = "{% for i in range(10**5) %}{% for i in range(10**5) %}{% endfor %}{% endfor %}"
  slow = "{% if messages[0].content == 'x' %}" + loops + "{% endif %}"
  conversations = [
    Conversation([{"role": "user", "content": text}, _SAY], None, (1,)) for text in ("a", "x", "b")
  ]
  found = Renderer(slow + mask_cases.SMOLLM_2_MARKED, _NAMES, _ENDS).render(conversations)
  assert [isinstance(each, str) for each in found] == [False, True, False]


def test_the_day_is_always_the_same():
  template = "{{ strftime_now('%d %b %Y') }}" + mask_cases.SMOLLM_2_MARKED
  assert text_of(_render(template, [_ASK, _SAY])).startswith("26 Jul 2024")


def test_the_fingerprint_is_of_template_and_special_tokens():
  renderers = [
    Renderer("a", _NAMES, _ENDS),
    Renderer("b", _NAMES, _ENDS),
    Renderer("a", {}, _ENDS),
    Renderer("a", _NAMES, ()),
  ]
  assert len({renderer.fingerprint for renderer in renderers}) == 4
  assert Renderer("a", _NAMES, _ENDS).fingerprint == renderers[0].fingerprint
