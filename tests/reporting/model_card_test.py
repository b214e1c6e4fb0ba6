"""Tests of the exported student's model card."""

from __future__ import annotations

import re
from typing import Any

import huggingface_hub
import pytest

from egad_jax.models.license import License
from egad_jax.reporting import model_card

SUMMARY: dict[str, Any] = {
  "method": "egad",
  "steps": 30,
  "tokens": 30720,
  "seconds": 312.4,
  "seed": 7,
  "student_before": {
    "cross_entropy": 11.05,
    "perplexity": 62943.95,
    "bits_per_byte": 4.0875,
    "forward_kl": 8.7123,
    "agreement": 0.0321,
    "parameters": 74351616,
  },
  "student_after": {
    "cross_entropy": 4.8512,
    "perplexity": 127.893,
    "bits_per_byte": 1.7945,
    "forward_kl": 2.3104,
    "agreement": 0.4421,
    "parameters": 74351616,
  },
  "teacher": {
    "cross_entropy": 2.9107,
    "perplexity": 18.3696,
    "bits_per_byte": 1.0767,
    "forward_kl": 0.0,
    "agreement": 1.0,
    "parameters": 134515008,
  },
  "export": "runs/quickstart/export",
}
CONFIG: dict[str, Any] = {
  "method": "egad",
  "steps": 30,
  "teacher": {"source": "/home/someone/private/teacher.gguf"},
  "student": {"init": "layers", "layers": [0, 14, 29]},
  "data": {"source": "/home/someone/private/notes.txt"},
  "curriculum": {"kind": "linear", "start": 0.25, "end": 0.75},
  "branch": {"hard_fraction": 0.5, "threshold": None},
  "mesh": {"data": -1},
}
SAMPLES = [
  {
    "prompt": "Say ```` and | and <b>",
    "teacher": "t\n```\n# no heading",
    "before": "b",
    "after": "a",
  }
]


def card(**changes: Any) -> str:
  arguments: dict[str, Any] = {
    "teacher_name": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "teacher_license": License("apache-2.0"),
    "samples": SAMPLES,
  }
  summary = changes.pop("summary", SUMMARY)
  config = changes.pop("config", CONFIG)
  return model_card.write_model_card(summary, config, **(arguments | changes))


def row(text: str, name: str) -> list[str]:
  """Returns the cells after the first of the table row that starts with `name`."""
  lines = [line for line in text.split("\n") if line.startswith(f"| {name} |")]
  assert len(lines) == 1
  return [cell.strip() for cell in lines[0].strip("|").split("|")][1:]


def test_front_matter_is_what_the_hub_reads():
  data = huggingface_hub.ModelCard(card()).data
  assert data.license == "apache-2.0"
  assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
  assert data.library_name == "transformers"
  assert data.tags == ["distillation", "egad_jax"]


@pytest.mark.parametrize(
  "name", ["SmolLM2 135M Instruct", "teacher.gguf", "/models/teacher", "a/b/c"]
)
def test_base_model_is_left_out_when_it_is_not_an_owner_and_name(name):
  text = card(teacher_name=name)
  assert huggingface_hub.ModelCard(text).data.base_model is None
  assert f"`{name}`" in text


def test_licence_unknown_is_said_plainly():
  text = card(teacher_license=None)
  assert huggingface_hub.ModelCard(text).data.license == "unknown"
  assert "**The teacher's licence is unknown**" in text


def test_licence_that_is_no_identifier_keeps_its_name():
  text = card(teacher_license=License("Example: Research Only #1"))
  data = huggingface_hub.ModelCard(text).data
  assert (data.license, data.license_name) == ("other", "Example: Research Only #1")
  assert "licence is unknown" not in text
  assert (
    huggingface_hub.ModelCard(card(teacher_license=License("Apache-2.0"))).data.license
    == "apache-2.0"
  )


def test_licence_with_a_name_of_its_own_and_a_link():
  named = License("other", "llama3.2", "https://example.org/LICENSE")
  text = card(teacher_license=named)
  data = huggingface_hub.ModelCard(text).data
  assert (data.license, data.license_name) == ("other", "llama3.2")
  assert data.license_link == named.link
  assert "state the licence `llama3.2`, whose text is at `https://example.org/LICENSE`." in text
  # A file of the teacher's directory is named to people; no link could lead to it.
  text = card(teacher_license=License("other", "A Licence", "LICENSE.txt"))
  assert huggingface_hub.ModelCard(text).data.license_link is None
  assert "state the licence `A Licence`, whose text is at `LICENSE.txt`." in text


def test_numbers_are_the_measured_ones():
  text = card()
  assert row(text, "Forward KL to the teacher (nats per token)") == ["8.712", "2.310", "0"]
  assert row(text, "Cross-entropy (nats per token)") == ["11.05", "4.851", "2.911"]
  assert row(text, "Perplexity") == ["62,944", "127.9", "18.37"]
  assert row(text, "Bits per byte") == ["4.088", "1.794", "1.077"]
  assert row(text, "Same most likely token as the teacher") == ["3.2 %", "44.2 %", "100.0 %"]
  assert row(text, "Parameters") == ["74,351,616", "74,351,616", "134,515,008"]
  assert "30 steps, 30,720 tokens, 5 min 12 s." in text


def test_missing_measurements_are_said_to_be_missing():
  text = card(summary={"method": "vanilla_kd", "teacher": None}, samples=None)
  assert row(text, "Perplexity") == ["not measured"] * 3
  assert row(text, "Parameters") == ["not recorded"] * 3
  assert "None" not in text
  assert "## Samples" not in text


def test_training_settings_and_honest_claims():
  text = card()
  assert row(text, "`curriculum.start`") == ["`0.25`"]
  assert row(text, "`student.layers`") == ["`[0, 14, 29]`"]
  assert row(text, "`branch.threshold`") == ["`null`"]
  assert "mesh" not in text
  assert "the three mechanisms of the EGAD abstract" in text
  assert "not a reproduction of the paper's numbers" in text
  assert "EGAD abstract" not in card(summary=SUMMARY | {"method": "vanilla_kd"})


def test_local_paths_stay_local():
  text = card()
  assert "private" not in text
  assert row(text, "`data.source`") == ['`"notes.txt"`']
  several = card(config={"data": {"source": ["/a/private/b.txt", "gs://private/c/", "d/e.txt"]}})
  assert row(several, "`data.source`") == ['`["b.txt", "c", "d/e.txt"]`']
  relative = card(config={"data": {"source": "python_docs"}})
  assert row(relative, "`data.source`") == ['`"python_docs"`']


def test_foreign_text_cannot_leave_its_block():
  text = card(config={"data": {"source": "a|b`c\n# d"}})
  assert "`````text\nSay ```` and | and <b>\n`````" in text
  assert "````text\nt\n```\n# no heading\n````" in text
  assert '| `data.source` | `` "a\\|b`c\\n# d" `` |' in text


def test_only_the_first_samples_are_shown_and_headings_stay_in_order():
  many = [{"prompt": f"prompt {index}", "after": "x"} for index in range(9)]
  text = card(samples=many)
  assert "prompt 2\n" in text
  assert "prompt 3\n" not in text
  outside = re.sub(r"^(```+)\w*\n.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
  headings = re.findall(r"^## (.*)$", outside, re.MULTILINE)
  assert headings == ["Licence", "Measured", "Use", "Samples", "Training", "Limits"]


def test_load_snippet_is_python():
  snippet = re.search(r"```python\n(.*?)```", card(), re.DOTALL)
  assert snippet is not None
  compile(snippet[1], "README.md", "exec")


def test_lone_surrogates_are_replaced():
  card(samples=[{"prompt": "\ud83d", "after": "x"}]).encode("utf-8")


def test_a_checkpoint_before_the_last_claims_no_numbers():
  text = card(summary={"method": "egad", "steps": 4, "skipped_steps": 1, "seed": 0}, samples=None)
  assert "4 steps (and 1 more whose update was withheld), an unknown number of tokens" in text
  assert "Nothing was measured for this card" in text
  assert "Nothing was evaluated" in text
  for words in ("numbers above", "KL shown", "numbers are from this run", "counted above"):
    assert words not in text


def test_a_null_measurement_is_no_number_and_an_absent_one_was_not_made():
  after = SUMMARY["student_after"] | {"perplexity": None}
  del after["agreement"]
  text = card(summary=SUMMARY | {"student_after": after})
  assert row(text, "Perplexity")[1] == "n/a"
  assert row(text, "Same most likely token as the teacher")[1] == "not measured"


def test_what_changed_on_the_way_is_told():
  change = {"step": 8, "what": "data", "before": "ab", "after": "c|d", "forced": True}
  text = card(summary=SUMMARY | {"changes": [change]})
  assert "Not all of this held from the first step on" in text
  assert "- `the documents (config.data.source): ab until step 8, then c\\|d`" in text
  assert "Not all of this held" not in card()
