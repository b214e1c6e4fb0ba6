"""Tests of what a run leaves: the export is the program that was evaluated, whoever loads it."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from configs import tiny
from egad_jax import from_config
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.models.load import load_pretrained
from egad_jax.training import results
from egad_jax.training.compiled_run import CompiledRun
from tests.models import tiny_llama

ROWS, IDS = 512, 300


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  """A teacher with more rows than ids, and ids that stand for nothing among them."""
  arrays = tiny_llama.tensors(rows=ROWS, tied=True)
  # Rows that no text trains may hold anything; here they would take most of the probability.
  arrays["model.embed_tokens.weight"][260:] *= 3
  settings = {"eos_token_id": [0, 50], "temperature": 0.7, "num_beams": 2}
  directory = tiny_llama.make(
    tmp_path_factory.mktemp("teacher") / "teacher",
    arrays,
    generation_config=settings,
    vocab_size=ROWS,
    tie_word_embeddings=True,
  )
  path = directory / "tokenizer.json"
  data = json.loads(path.read_text("utf-8"))
  data["model"]["vocab"]["the last one"] = IDS - 1
  path.write_text(json.dumps(data), "utf-8")
  (directory / "README.md").write_text("---\r\nlicense: other\r\nlicense_name: tiny\r\n---\r\n")
  return directory


def make_config(teacher, **changes):
  texts = teacher.parent / "texts"
  texts.mkdir(exist_ok=True)
  for i in range(12):
    (texts / f"{i}.txt").write_text(f"Document {i} says that {i} and {i} make {2 * i}. " * 3)
  config = tiny.get_config()
  values = {
    "teacher.source": str(teacher),
    "data.source": str(texts),
    "data.cache": str(teacher.parent / "data"),
    "data.held_out_fraction": 0.3,
    "data.tokenizer": "",
    "student.init": "layers",
    **{f"student.{size}": 0 for size in ("dim", "num_heads", "num_kv_heads", "mlp_dim")},
    "compilation_cache": "",
    "eval.prompts": (),
  }
  config.update_from_flattened_dict(values | changes)
  return config


@pytest.fixture(scope="module")
def finished(teacher, tmp_path_factory):
  """(directory with an export, programs, the student's evaluation)."""
  directory = tmp_path_factory.mktemp("workdir")
  config = make_config(teacher)
  run = from_config.build(config, directory, devices=jax.devices()[:1])
  programs = CompiledRun(run)
  state = run.first_state()
  results.export(
    run,
    jax.device_get(state.trainable["student"]),
    directory / "export",
    summary={"method": run.method_name, "steps": 0, "seed": run.seed},
    config=from_config.plain(config),
    samples=None,
  )
  return directory, programs, programs.evaluate(state)["student"]


def cross_entropy(arrays, batches):
  """Over all columns, by numpy, one piece of a document at a time."""
  total = count = 0
  for batch in jax.device_get(batches):
    for tokens, labels, segments, mask in zip(
      batch.tokens, batch.labels, batch.segment_ids, batch.mask, strict=True
    ):
      for segment in set(segments[mask].tolist()):
        places = segments == segment
        logits = tiny_llama.logits(arrays, tokens[places])
        shifted = logits - logits.max(-1, keepdims=True)
        log_probs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        taken = np.take_along_axis(log_probs, labels[places][:, None], -1)[:, 0]
        total, count = total - taken[mask[places]].sum(), count + mask[places].sum()
  return total / count


def test_cross_entropy_over_all_columns_is_that_of_the_evaluation(finished):
  directory, programs, evaluated = finished
  arrays = safetensors.numpy.load_file(directory / "export" / "model.safetensors")
  assert arrays["model.embed_tokens.weight"].shape == (IDS, 32)
  assert json.loads((directory / "export" / "config.json").read_text())["vocab_size"] == IDS
  wanted = evaluated["cross_entropy"]
  assert cross_entropy(arrays, programs.held_out()) == pytest.approx(wanted, rel=1e-5)


def test_the_student_stops_where_its_teacher_did(finished):
  directory, programs, _ = finished
  for name in ("config.json", "generation_config.json"):
    assert json.loads((directory / "export" / name).read_text())["eos_token_id"] == [0, 50], name
  settings = json.loads((directory / "export" / "generation_config.json").read_text())
  assert settings["temperature"] == 0.7
  # Beams are named when the teacher is read, and not passed on.
  assert "num_beams" not in settings
  assert programs.experiment.models.unread == ("teacher: generation_config.json: num_beams",)


def test_samples_stop_there_too(finished, monkeypatch):
  _, programs, _ = finished
  asked = []

  def record(model, params, prompts, *, eos_id, **_):
    asked.append(eos_id)
    return [[] for _ in prompts]

  monkeypatch.setattr("egad_jax.training.compiled_run.generate", record)
  state = programs.experiment.first_state()
  assert (programs.continuations(None), programs.continuations(state)) == ([], [])
  assert asked == [(0, 50), (0, 50)]


def test_the_card_states_the_licence_of_the_teacher(finished):
  card = (finished[0] / "export" / "README.md").read_text()
  assert "license: other\nlicense_name: tiny\n" in card


def test_the_export_is_read_back_as_student_and_as_teacher(finished, teacher):
  directory, _, evaluated = finished
  export = directory / "export"
  tokenizer = Tokenizer.from_source(export)
  assert tokenizer.vocab_size == IDS
  read = load_pretrained(str(export), tokenizer_size=IDS)
  assert (read.config.vocab_size, read.generation.end_ids) == (IDS, (0, 50))
  changes = {"student.init": "source", "student.source": str(export)}
  again = from_config.build(make_config(teacher, **changes), directory, devices=jax.devices()[:1])
  assert again.tokenizers.student is again.tokenizers.teacher
  placed = CompiledRun(again)
  before = placed.evaluate(again.first_state())["student"]
  for name in ("cross_entropy", "forward_kl", "agreement"):
    assert before[name] == pytest.approx(evaluated[name], rel=1e-5), name
  student = from_config.build(
    make_config(export, **changes | {"student.init": "layers"}), directory
  )
  assert student.models.student.config == student.models.teacher.config == read.config
