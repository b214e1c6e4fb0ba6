"""Plans of small configs, against the compiler's own numbers and against analysis."""

from __future__ import annotations

import math
import os

import jax
import pytest

from egad_jax import from_config, sharding
from egad_jax.chips import CHIPS, topology
from egad_jax.planning import plan as planning
from egad_jax.planning.environment import prepare_environment
from egad_jax.planning.program import Program
from egad_jax.training.programs import lower_train_step
from tests.from_config.configs import changed

SLICE = topology("v5e:2x2")
# Plain distillation, large enough for matmuls to be most of it.
LARGE_MATMULS = {
  "method": "vanilla_kd",
  "batch_size": 4,
  "seq_len": 128,
  "student__remat": "none",
  "student__dim": 128,
  "student__num_heads": 4,
  "student__num_kv_heads": 2,
  "student__mlp_dim": 256,
}


@pytest.fixture(scope="module")
def devices():
  before = dict(os.environ)
  prepare_environment(SLICE.name)
  yield planning.devices_of(SLICE)
  os.environ.clear()
  os.environ.update(before)


@pytest.fixture(scope="module")
def vanilla(devices):
  """(run, executable) with attention that XLA knows."""
  config = changed(attention="xla", **LARGE_MATMULS)
  run = from_config.plan_run(config, devices)
  return run, lower_train_step(run).compile()


@pytest.fixture(scope="module")
def planned(vanilla):
  return planning.plan(vanilla[0], SLICE, config="vanilla")


def test_memory_is_the_compiler_s_own(vanilla, planned):
  stats = vanilla[1].memory_analysis()
  assert planned.fits
  assert sum(planned.arguments_bytes.values()) == stats.argument_size_in_bytes
  assert planned.temporaries_bytes == stats.temp_size_in_bytes
  outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
  assert planned.total_bytes == stats.argument_size_in_bytes + outputs + stats.temp_size_in_bytes


def test_the_students_of_a_sweep_fill_the_memory_that_one_leaves(vanilla, planned):
  (note,) = (note for note in planned.notes if note.startswith("A sweep has room for about"))
  students = int(note.split()[6].replace(",", ""))
  each = planned.arguments_bytes["student"] + planned.arguments_bytes["optimizer"]
  (_, seq), dim = vanilla[0].abstract_batch().tokens.shape, vanilla[0].models.teacher.config.dim
  rows = vanilla[0].optimization.batch_size // sharding.batch_devices(vanilla[0].mesh)
  left = planned.hbm_bytes - planned.total_bytes - rows * seq * dim * 4
  assert left - each < (students - 1) * each <= left


def test_trees_have_the_bytes_of_their_arrays(vanilla, planned):
  """At least those of the shards, padded to tiles."""
  run = vanilla[0]
  state = run.abstract_state()

  def bytes_of(tree):
    leaves = jax.tree.leaves(tree)
    return sum(x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in leaves)

  for tree, arrays in (
    ("teacher", run.teacher.abstract_params()),
    ("student", state.trainable["student"]),
    ("optimizer", state.opt_state),
  ):
    assert bytes_of(arrays) <= planned.arguments_bytes[tree] < 20 * bytes_of(arrays), tree


@pytest.mark.slow
def test_a_teacher_in_host_memory_takes_none_of_its_matrices_on_a_device(devices, planned):
  host = {"teacher__placement": "host", "teacher__dtype": "bfloat16"}
  run = from_config.plan_run(changed(attention="xla", **LARGE_MATMULS | host), devices)
  found = planning.plan(run, SLICE, config="host")
  sizes = {"pinned_host": 0, "device": 0}
  for x in jax.tree.leaves(run.teacher.abstract_params()):
    sizes[x.sharding.memory_kind] += math.prod(x.sharding.shard_shape(x.shape))
  # The other plan is of four bytes a value.
  freed = planned.arguments_bytes["teacher"] - 4 * sizes["pinned_host"]
  assert 2 * sizes["device"] <= found.arguments_bytes["teacher"] <= freed


def test_flops_of_the_heads_are_the_least_possible(vanilla):
  run, compiled = vanilla
  program = Program(compiled.as_text(), traced_trips=planning.head_chunks(run, ""))
  found = 4 * program.matmul_flops(lambda op: "shard_map" in op.rest)
  dims = run.models.teacher.config.dim + 3 * run.models.student.config.dim
  wanted = 2 * 4 * 128 * run.tokenizers.student.vocab_size * dims
  assert found == pytest.approx(wanted, rel=0.02)


def test_all_flops_are_the_least_possible_but_for_the_mask_of_attention(vanilla, planned):
  run = vanilla[0]
  causal_half = sum(
    passes * 2 * 128 * 4 * 128 * c.num_layers * c.num_heads * c.head_dim
    for passes, c in ((1, run.models.teacher.config), (3, run.models.student.config))
  )
  assert planned.flops_minimum == planning.minimum_flops(run)
  assert planned.flops == pytest.approx(planned.flops_minimum + causal_half, rel=0.02)


def test_flops_of_loop_bodies_counted_once_are_xla_s(vanilla):
  program = Program(vanilla[1].as_text())
  once = sum(
    program._flops(op)
    for name, ops in program.computations.items()
    if program.times.get(name)
    for op in ops
  )
  # XLA counts element-wise work too.
  assert 0.85 < once / vanilla[1].cost_analysis()["flops"] <= 1


@pytest.mark.slow
def test_the_attention_kernel_counts(vanilla, devices, planned):
  """One block of 128 x 128 and no square of logits: forward 2 products, backward 3 and 4."""
  run = from_config.plan_run(changed(**LARGE_MATMULS), devices)
  splash = planning.plan(run, SLICE, config="splash")
  pair = vanilla[0].models
  product = 2 * 4 * 128 * 128
  extra = 3 * product * pair.student.config.num_layers * pair.student.config.num_heads
  # The backward kernels make the logits anew and once more.
  assert splash.flops - planned.flops == extra * pair.student.config.head_dim
  assert any("kernels of attention" in note for note in splash.notes)
  assert not any("kernels of attention" in note for note in planned.notes)


def test_times_are_consistent(planned):
  assert planned.modelled_seconds > planned.roofline_seconds > 0
  assert planned.tokens_per_step == 4 * 128
  assert planned.tokens_per_second == pytest.approx(512 / planned.modelled_seconds)
  peak = 4 * 197e12 * planned.modelled_seconds
  assert planned.mfu == pytest.approx(planned.flops_minimum / peak)


@pytest.mark.slow
def test_a_device_of_tpu7x_is_half_a_chip(devices):
  slice_ = topology("tpu7x:2x2x1")
  config = changed(**LARGE_MATMULS | {"batch_size": 8})
  run = from_config.plan_run(config, planning.devices_of(slice_))
  found = planning.plan(run, slice_, config="tpu7x")
  assert (found.devices, found.hbm_bytes) == (8, 96 * 2**30)
  peak = 4 * 2307e12 * found.modelled_seconds
  assert found.mfu == pytest.approx(found.flops_minimum / peak)
  assert found.roofline_seconds >= sum(found.arguments_bytes.values()) / (7380e9 / 2)
  assert any("links' 600 GB/s" in note for note in found.notes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_the_clock_fits_the_compiler_s_cycles(devices, tmp_path, name):
  """A large product takes no less than at the peak, and not twice as long."""
  device = planning.devices_of(topology(name))[0]
  size = 8192
  matrix = jax.ShapeDtypeStruct(
    (size, size), "bfloat16", sharding=jax.sharding.SingleDeviceSharding(device)
  )
  options = {"xla_dump_to": str(tmp_path), "xla_dump_hlo_as_text": True}
  jax.jit(lambda x, y: x @ y).lower(matrix, matrix).compile(options)
  (path,) = tmp_path.glob("*.after_codegen.txt")
  facts = CHIPS[topology(name).chip].device
  seconds = Program(path.read_text()).cycles / facts.hertz
  assert 1 < seconds * facts.flops_per_second / (2 * size**3) < 1.5


def test_what_is_large_has_its_line(planned):
  sizes = [buffer.bytes for buffer in planned.largest_buffers]
  assert sizes == sorted(sizes, reverse=True)
  assert all(buffer.source for buffer in planned.largest_buffers)


# `tests/launch/plan_test.py` has a plan that does not fit.
@pytest.mark.slow
def test_what_the_compiler_refuses_does_not_fit(devices):
  # Attention's squares of long rows fill the memory. The other verdict is `planned`'s, above.
  large = {"method": "vanilla_kd", "attention": "xla", "seq_len": 512, "batch_size": 16_384}
  run = from_config.plan_run(changed(**large), devices)
  with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
    lower_train_step(run).compile()
  refused = planning.plan(run, SLICE, config="rows")
  assert not refused.fits
  assert refused.total_bytes > refused.hbm_bytes


def test_the_least_flops_of_paired_rows_are_of_two_vocabularies(devices):
  paired = {"method": "x_token", "student__tokenizer": "train:384", "seq_len": 128}
  found = planning.minimum_flops(from_config.plan_run(changed(**paired), devices))
  same = from_config.plan_run(changed(**paired | {"student__tokenizer": ""}), devices)
  tokens, dim = same.optimization.batch_size * 128, same.models.student.config.dim
  # The student's head loses 128 of its entries.
  assert planning.minimum_flops(same) - found == 6 * tokens * 128 * dim


@pytest.mark.slow
def test_paired_rows_are_planned(devices):
  config = changed(method="x_token", student__tokenizer="train:384")
  config.method_options.x_token.kind = "uld"
  assert planning.plan(from_config.plan_run(config, devices), SLICE, config="x_token").fits


@pytest.mark.parametrize(
  ("loops", "words"), [(1, "1 loop has a number of trips"), (2, "2 loops have a number of trips")]
)
def test_notes_count_in_english(vanilla, loops, words):
  program = Program(vanilla[1].as_text())
  program.traced_loops = loops
  assert any(note.startswith(words) for note in planning._notes(program, SLICE))
