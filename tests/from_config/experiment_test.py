"""From a config to a run, and what does not fit together."""

from __future__ import annotations

import re
import types

import jax
import pytest

from egad_jax import from_config
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.errors import InputError
from egad_jax.training.batch_source import StateReader
from egad_jax.training.guard import Spikes


def test_a_config_becomes_a_run(small, tmp_path):
  run = from_config.build(small(), tmp_path)
  assert run.mesh.devices.shape == (1, 1, 8, 1)
  assert (run.models.student_taps, run.models.teacher_taps) == ((2,), (4,))
  assert run.models.student.config.head_dim == 16
  assert run.models.teacher.config.vocab_size == run.tokenizers.student.vocab_size == 270
  assert run.optimization.spikes is None


def test_spikes_are_skipped_where_the_config_says_so(small, tmp_path):
  run = from_config.build(small(guard__spike_sigmas=6.0, guard__half_life=50.0), tmp_path)
  assert run.optimization.spikes == Spikes(sigmas=6.0, half_life=50.0)


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"batch_size": 4}, r"rows over 8 devices .* config\.batch_size / accumulation \(4\)"),
    ({"accumulation": 2}, r"config\.batch_size / accumulation \(4\); use a multiple of 8"),
    ({"eval__batch_size": 3}, r"rows over 8 devices .* config\.eval\.batch_size \(3\)"),
    ({"mesh__tensor": 4, "seq_len": 66}, r"mesh\.tensor \(4\) must divide config\.seq_len \(66\)"),
    ({"mesh__data": 3}, r"the mesh must use all 8 devices; got mesh\.replica=1, mesh\.data=3"),
    ({"seq_len": 1024}, r"config\.seq_len \(1024\) is above the teacher's 512 positions"),
    (
      {"student__num_heads": 3},
      r"student\.num_heads \(3\) must divide config\.student\.dim \(32\)",
    ),
    ({"student__init": "layers"}, r"student\.init=layers takes layers of a trained teacher"),
    ({"teacher__source": "random:tony"}, r'unknown architecture "tony".*Did you mean "tiny"'),
    ({"data__tokenizer": ""}, r"random:tiny brings no tokenizer; set config\.data\.tokenizer"),
    ({"data__tokenizer": "train:many"}, r"must be train:N with a number N; got 'train:many'"),
    ({"data__tokenizer": "train:10"}, r"vocab_size \(10\) must be at least 257"),
    ({"branch__layers": "3:4"}, r"different student layers between 1 and 2; got '3:4'"),
  ],
)
def test_what_does_not_fit_together(values, message, small, tmp_path):
  with pytest.raises(InputError, match=message):
    from_config.build(small(**values), tmp_path)


def test_a_source_that_reads_the_state_needs_its_teacher_beside_it(small, tmp_path):
  extensions = from_config.Extensions(batch_source=lambda config, rows: StateReader())
  assert from_config.build(small(), tmp_path, extensions=extensions).batch_source.reads_state
  config = small(teacher__mesh__devices=4)
  with pytest.raises(
    InputError, match=r"teacher\.mesh\.devices \(4\) must be 0 with a batch source"
  ):
    from_config.build(config, tmp_path, extensions=extensions)


def test_the_teacher_of_an_extension_takes_the_place_of_the_configs(small, tmp_path):
  teacher = object()
  found = []

  def make(config, models, meshes):
    found.append((config.seed, models.teacher.config.vocab_size, meshes[0] is meshes[1]))
    return types.SimpleNamespace(meshes=(), it=teacher)

  # Without a feature loss, for which the teacher's outputs would be looked at.
  config = small(branch__weight=0.0)
  run = from_config.build(config, tmp_path, extensions=from_config.Extensions(teacher=make))
  assert run.teacher.it is teacher
  assert found == [(0, 270, True)]


def test_a_student_with_another_tokenizer(small, tmp_path):
  for size in (260, 265):
    Tokenizer.train(["some text, some more text"] * 4, size).save(tmp_path / str(size))
  config = small(
    data__tokenizer=str(tmp_path / "265"),
    student__init="source",
    student__source=str(tmp_path / "260"),
  )
  message = r"student\.source \(.*260, 260 entries\) is not the teacher's \(265 entries\)"
  with pytest.raises(InputError, match=message):
    from_config.build(config, tmp_path, devices=jax.devices()[:1])


def test_a_batch_larger_than_the_data_is_refused(small, tmp_path):
  config = small(batch_size=100_000, eval__batch_size=8)
  message = r"batch_size \(100000 rows\) is larger than .*lower"
  with pytest.raises(InputError, match=message) as raised:
    from_config.build(config, tmp_path)
  # The number that it names fits.
  fitting = int(re.search(r"batch_size to (\d+)", str(raised.value))[1])
  rows = from_config.build(small(batch_size=fitting, eval__batch_size=8), tmp_path).rows
  assert fitting <= rows.train_size < fitting + 8
