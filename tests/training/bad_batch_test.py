"""A run whose steps turn bad: warned of, survived, stopped in time, and the same when run again."""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from configs import tiny
from egad_jax import from_config
from egad_jax.data import pipeline
from egad_jax.data.batches import Batch, PairedBatch
from egad_jax.durability.restoring import restore_state
from egad_jax.durability.workdir import Workdir
from egad_jax.training import bad_batch, loop
from egad_jax.training.experiment import Experiment

STEPS, BATCH = 8, 4
# Batches whose loss is not finite, by number.
BAD = (2, 4, 5, 6)


def _bad_progress(step):
  return jnp.where(jnp.isin(step, jnp.array(BAD)), jnp.nan, 0.5)


class Made(NamedTuple):
  experiment: Experiment
  options: loop.LoopOptions


@pytest.fixture(scope="module")
def make_run(tmp_path_factory):
  """`(directory) -> run` with `BAD` batches, which stops at the third bad one in a row."""
  shared = tmp_path_factory.mktemp("shared")
  texts = shared / "texts.jsonl"
  lines = [{"text": f"Document {i} says that {i} and {i} make {2 * i}. é " * 4} for i in range(40)]
  texts.write_text("".join(json.dumps(line) + "\n" for line in lines))

  def make(directory):
    config = tiny.get_config()
    config.steps, config.batch_size, config.seq_len = STEPS, BATCH, 16
    # The curriculum alone: it is what the bad batches come by.
    config.branch.weight, config.temperature.kind, config.distribution.fill_batches = (
      0.0,
      "fixed",
      0,
    )
    config.student.layers, config.student.remat = 1, "none"
    config.compiler_options = "xla_backend_optimization_level=0"
    config.data.source, config.data.cache = str(texts), str(shared / "data")
    config.data.held_out_fraction, config.data.tokenizer = 0.2, "train:270"
    config.compilation_cache = str(shared / "programs")
    config.checkpoint.every_steps, config.eval.every_steps = 2, 0
    config.eval.sample_tokens, config.eval.rows, config.trackers = 0, 4, ()
    config.guard.max_skipped = 3
    run = from_config.build(config, directory, devices=jax.devices()[:1])
    optimization = dataclasses.replace(run.optimization, progress=_bad_progress)
    return Made(
      dataclasses.replace(run, optimization=optimization), from_config.loop_options(config)
    )

  return make


def train(made, directory):
  with Workdir(directory) as workdir:
    workdir.store_config({})
    return loop.train(made.experiment, made.options, workdir)


def lines_of(directory):
  lines = (directory / "metrics.jsonl").read_text().splitlines()
  # Times differ from run to run.
  timed = ("tokens_per_second", "step_seconds")
  return [{k: v for k, v in json.loads(x).items() if k not in timed} for x in lines]


def state_at(made, directory, step):
  like = made.experiment.abstract_state()
  return restore_state(epath.Path(directory), step, like)[1]


@pytest.fixture(scope="module")
def stopped(make_run, tmp_path_factory):
  """The run, its directory and its error, stopped once and then again."""
  directory = tmp_path_factory.mktemp("workdir")
  run, errors, lines = make_run(directory), [], []
  for _ in range(2):
    with pytest.raises(FloatingPointError) as error:
      train(run, directory)
    errors.append(str(error.value))
    lines.append(lines_of(directory))
  return run, directory, errors, lines


def test_stops_before_anything_bad_is_saved_and_says_what_to_do(stopped):
  run, directory, (message, _), _ = stopped
  assert "\n" not in message
  for words in (
    "step 7 is not finite: loss nan, gradient norm nan",
    "number 3 in a row",
    f"{directory}/bad_batch_7.json",
    "the last is of step 6",
    "lower optimizer.learning_rate (with --force)",
    "raise guard.max_skipped",
  ):
    assert words in message
  assert {path.name for path in (directory / "checkpoints").iterdir()} == {"4", "6"}
  before, state = (state_at(run, directory, step) for step in (4, 6))
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
  assert (int(state.step), int(state.guard.skipped), int(state.guard.skipped_in_a_row)) == (6, 3, 2)
  # Steps 5 and 6 were skipped.
  jax.tree.map(np.testing.assert_array_equal, before[1:4], state[1:4])


def test_the_log_shows_what_was_skipped(stopped):
  lines = stopped[3][0]
  assert [line["step"] for line in lines] == list(range(1, 8))
  assert [line["skipped"] for line in lines] == [0, 0, 1, 0, 1, 1, 1]
  assert [line["skipped_total"] for line in lines] == [0, 0, 1, 1, 2, 3, 4]
  assert [line["loss"] is None for line in lines] == [bool(line["skipped"]) for line in lines]
  # Tokens of skipped steps are none that were trained on.
  assert np.diff([line["tokens"] for line in lines]).tolist()[1] == 0
  assert not {"finite", "skipped_in_a_row", "loss_limit"} & lines[0].keys()


def test_the_same_command_stops_at_the_same_step(stopped):
  _, _, (first, second), (lines, again) = stopped
  assert first == second
  assert lines == again


def test_the_batch_saved_is_the_batch_of_that_step(stopped):
  (run, _), directory, _, _ = stopped
  saved = json.loads((directory / "bad_batch_7.json").read_text())
  assert (saved["step"], saved["batch"], saved["loss"], saved["grad_norm"]) == (7, 6, None, None)
  assert saved["why"] == "not finite: loss nan, gradient norm nan"
  batch = run.batch_source.batch(6, None)
  for i, row in enumerate(saved["rows"]):
    assert row["row_number"] == batch.row_numbers[i]
    for name in ("tokens", "labels", "positions", "segment_ids", "mask"):
      field = getattr(batch, name)
      np.testing.assert_array_equal(row[name], field[i], err_msg=name)
    assert row["text"] == run.tokenizers.student.decode(
      batch.tokens[i][batch.segment_ids[i] > 0].tolist()
    )
  assert len(saved["rows"]) == BATCH
  assert any("é" in row["text"] for row in saved["rows"])


@pytest.mark.slow
def test_goes_on_where_more_may_be_skipped(stopped, caplog):
  made, directory, _, lines = stopped
  with caplog.at_level(logging.WARNING, logger="egad_jax"):
    summary = train(
      made._replace(options=dataclasses.replace(made.options, max_skipped=4)), directory
    )
  warnings = [record.getMessage() for record in caplog.records if "withheld" in record.getMessage()]
  assert warnings == [
    "step 7 is not finite: loss nan, gradient norm nan; update withheld, 3 in a row "
    "(guard.max_skipped: 4)"
  ]
  assert lines_of(directory)[:7] == lines[0]
  assert lines_of(directory)[7]["skipped"] == 0
  assert np.isfinite(summary["student_after"]["forward_kl"])
  # The steps that trained, not those of the config.
  assert (summary["steps"], summary["skipped_steps"]) == (STEPS - len(BAD), len(BAD))
  assert (
    "4 steps (and 4 more whose update was withheld)" in (directory / "export/README.md").read_text()
  )
  assert (directory / "report.html").exists()


VALUES = {"finite": 1.0, "loss": 9.0, "grad_norm": 2.0, "loss_limit": 3.0, "grad_norm_limit": 4.0}


def test_a_spike_names_its_limits_and_its_own_remedy(make_run, tmp_path, caplog):
  run, _ = make_run(tmp_path)
  values = VALUES | {"skipped": 1.0, "skipped_in_a_row": 3.0}
  with Workdir(tmp_path) as workdir, pytest.raises(FloatingPointError) as error:
    bad_batch.note_skipped(run, None, workdir, 1, values, max_skipped=3, saved_step=None)
  message = str(error.value)
  assert "step 1 is a spike: loss 9 (limit 3), gradient norm 2 (limit 4)" in message
  assert "there is none yet" in message
  assert "raise guard.spike_sigmas" in message
  assert "learning_rate" not in message


def test_a_full_disk_does_not_hide_the_reason(make_run, tmp_path, monkeypatch):
  def full(*_):
    raise OSError("No space left on device")

  monkeypatch.setattr(bad_batch, "write_text", full)
  values = VALUES | {"skipped": 1.0, "skipped_in_a_row": 3.0}
  made, _ = make_run(tmp_path)
  refused = pytest.raises(FloatingPointError, match=r"a spike.*could not be saved \(No space left")
  with Workdir(tmp_path) as workdir, refused:
    bad_batch.note_skipped(made, None, workdir, 1, values, max_skipped=3, saved_step=0)


def test_a_batch_that_was_made_from_the_state_is_the_one_saved(make_run, tmp_path):
  run, _ = make_run(tmp_path)
  batch = run.batch_source.batch(3, None)
  run = dataclasses.replace(run, batch_source=None)  # Nobody may ask it again.
  values = VALUES | {"skipped": 1.0, "skipped_in_a_row": 3.0}
  placed = jax.tree.map(jax.numpy.asarray, batch)
  with Workdir(tmp_path) as workdir, pytest.raises(FloatingPointError, match="Its batch is in"):
    bad_batch.note_skipped(run, placed, workdir, 9, values, max_skipped=3, saved_step=None)
  rows = json.loads((tmp_path / "bad_batch_9.json").read_text())["rows"]
  assert [row["row_number"] for row in rows] == batch.row_numbers.tolist()
  assert [row["tokens"] for row in rows] == batch.tokens.tolist()


def test_a_paired_batch_is_saved_with_both_sides(make_run, tmp_path, monkeypatch):
  run, _ = make_run(tmp_path)
  ids = np.arange(BATCH * 3, dtype=np.int32).reshape(BATCH, 3)
  side = Batch(ids, ids, ids, np.ones_like(ids), np.ones(ids.shape, bool))
  pairs = PairedBatch(side, side._replace(tokens=ids + 20), ids, ids, np.arange(BATCH))
  monkeypatch.setattr(pipeline, "train_batch", lambda *_, **__: pairs)
  bad_batch.save_bad_batch(tmp_path / "bad.json", run, None, 1, VALUES)
  row = json.loads((tmp_path / "bad.json").read_text())["rows"][1]
  assert (row["student"]["tokens"], row["teacher"]["tokens"]) == ([3, 4, 5], [23, 24, 25])
  assert row["teacher"]["text"] == run.tokenizers.teacher.decode([23, 24, 25])
  assert row["student_spans"] == row["teacher_spans"] == [3, 4, 5]
