"""Accounting on programs small enough to count by hand."""

from __future__ import annotations

import re

import pytest

from egad_jax.planning.program import Collective, Program, shape_bytes

TEXT = """\
HloModule jit_train_step, is_scheduled=true

FileNames
1 "/site-packages/flax/core/lift.py"
2 "/home/me/egad_jax/models/dense.py"

FunctionNames
1 "project"

FileLocations
1 {file_name_id=2 function_name_id=1 line=25 end_line=25 column=1 end_column=9}
2 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=1 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%fused (p.0: bf16[8,16], p.1: bf16[16,32]) -> f32[8,32] {
  %p.0 = bf16[8,16]{1,0:T(8,128)} parameter(0)
  %p.1 = bf16[16,32]{1,0:T(8,128)} parameter(1)
  ROOT %conv = f32[8,32]{1,0:T(8,128)} convolution(%p.0, %p.1), dim_labels=bf_io->bf
}

%body (b: (s32[], bf16[8,16], bf16[16,32], s32[])) -> (s32[], bf16[8,16], bf16[16,32], s32[]) {
  %b = (s32[], bf16[8,16]{1,0}, bf16[16,32]{1,0}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %x = bf16[8,16]{1,0} get-tuple-element(%b), index=1
  %w = bf16[16,32]{1,0} get-tuple-element(%b), index=2
  %n = s32[] get-tuple-element(%b), index=3
  %y = f32[8,32]{1,0:T(8,128)} fusion(%x, %w), kind=kOutput, calls=%fused, \
metadata={op_name="jit(train_step)/dot_general" stack_frame_id=2}, \
backend_config={"window_config":{"estimated_cycles":"100"}}
  %g = bf16[32,16]{1,0} all-gather(%x), channel_id=5, dimensions={0}
  %h = bf16[32,16]{1,0} all-gather(%x), channel_id=5, dimensions={0}
  %step = s32[] constant(STEP)
  %next = s32[] add(%i, %step)
  ROOT %out = (s32[], bf16[8,16]{1,0}, bf16[16,32]{1,0}, s32[]) tuple(%next, %x, %w, %n)
}

%condition (c: (s32[], bf16[8,16], bf16[16,32], s32[])) -> pred[] {
  %c = (s32[], bf16[8,16]{1,0}, bf16[16,32]{1,0}, s32[]) parameter(0)
  %j = s32[] get-tuple-element(%c), index=0
  %limit = s32[] BOUND
  ROOT %lt = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (a.0: bf16[8,16], a.1: bf16[16,32], a.2: s32[]) -> f32[8] {
  %a.0 = bf16[8,16]{1,0} parameter(0), metadata={op_name="state.trainable[\\'student\\'][\\'w\\']"}
  %a.1 = bf16[16,32]{1,0} parameter(1)
  %a.2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %seven = s32[] constant(7)
  %start = (s32[], bf16[8,16]{1,0}, bf16[16,32]{1,0}, s32[]) tuple(%zero, %a.0, %a.1, %LAST)
  %loop = (s32[], bf16[8,16]{1,0}, bf16[16,32]{1,0}, s32[]) while(%start), \
condition=%condition, body=%body
  %k = f32[8]{0} custom-call(%a.0), custom_call_target="tpu_custom_call"
  ROOT %sum = f32[8]{0} all-reduce(%k), channel_id=6, to_apply=%add, \
backend_config={"window_config":{"estimated_cycles":"11"}}
}
"""


def program(bound="constant(4)", last="a.2", step=1, **options):
  text = TEXT.replace("BOUND", bound).replace("LAST", last).replace("STEP", str(step))
  return Program(text, **options)


def test_a_loop_counts_as_often_as_it_runs():
  counted = program()
  assert counted.matmul_flops() == 4 * 2 * 8 * 16 * 32
  assert counted.cycles == 4 * 100 + 11
  assert counted.traced_loops == 0
  assert [(kernel.calls, kernel.flops) for kernel in counted.kernels] == [(1, None)]


def test_a_bound_that_comes_in_with_the_values():
  bound = "get-tuple-element(%c), index=3"
  assert program(bound, "seven").cycles == 7 * 100 + 11
  traced = program(bound, traced_trips=3)
  assert (traced.cycles, traced.traced_loops) == (3 * 100 + 11, 1)


def test_a_loop_of_an_idle_scope_makes_no_trip():
  text = TEXT.replace("LAST", "a.2").replace("STEP", "1")
  text = text.replace(
    "body=%body\n", 'body=%body, metadata={op_name="jit(train_step)/jvp(rare)/while"}\n'
  )
  traced = text.replace("BOUND", "get-tuple-element(%c), index=3")
  counted = Program(traced, traced_trips=3, idle_scopes=("rare",))
  assert (counted.cycles, counted.traced_loops) == (11, 0)
  assert Program(traced, traced_trips=3, idle_scopes=("rar",)).cycles == 3 * 100 + 11
  known = text.replace("BOUND", "constant(4)")
  assert Program(known, idle_scopes=("rare",)).cycles == 4 * 100 + 11


def test_cycles_that_are_no_estimate_are_left_out_and_counted():
  assert program().without_estimate == 0
  text = TEXT.replace("BOUND", "constant(4)").replace("LAST", "a.2").replace("STEP", "1")
  counted = Program(text.replace('"estimated_cycles":"100"', f'"estimated_cycles":"{2**63 - 1}"'))
  assert (counted.cycles, counted.without_estimate) == (11, 4)


def test_operands_that_name_an_element_of_a_tuple():
  """Newer compilers write `%tuple#2` where older ones wrote an instruction that takes it."""
  text = TEXT.replace("BOUND", "constant(4)").replace("LAST", "a.2").replace("STEP", "1")
  for name, element in (("i", "b#0"), ("x", "b#1"), ("w", "b#2"), ("n", "b#3"), ("j", "c#0")):
    text = re.sub(rf"  %{name} = .*\n", "", text)
    text = re.sub(rf"%{name}\b", f"%{element}", text)
  assert "get-tuple-element" not in text
  counted, expected = Program(text), program()
  assert counted.matmul_flops() == expected.matmul_flops()
  assert (counted.cycles, counted.traced_loops) == (4 * 100 + 11, 0)
  assert counted.collectives == expected.collectives


def test_an_element_of_an_element_has_its_shape():
  text = (
    "ENTRY %main (p: x) -> x {\n"
    "  %p = (s32[]{:T(128)}, (f32[2,3]{1,0:T(8,128)}, /*index=1*/bf16[4,5])) parameter(0)\n"
    "  ROOT %a = bf16[4,4]{1,0} dot(%p#1#1, %p#1#1), lhs_contracting_dims={1}\n}\n"
  )
  counted = Program(text)
  assert counted.ops["p#1#1"].shape == "bf16[4,5]"
  assert counted.matmul_flops() == 2 * 4 * 4 * 5


def test_an_unrolled_loop_counts_in_larger_steps():
  assert program(step=2).cycles == 2 * 100 + 11
  assert program(step=3).cycles == 2 * 100 + 11


def test_collectives_count_their_channel_once():
  assert program().collectives == [
    Collective("all-gather", 4, 4 * 32 * 16 * 2),
    Collective("all-reduce", 1, 8 * 4),
  ]


def test_sources_are_lines_of_this_package():
  counted = program()
  assert counted.source("y") == "egad_jax/models/dense.py:25"
  assert counted.source("a.0") == "state.trainable['student']['w']"
  assert counted.source("loop") == "while"
  assert counted.source("nothing") == ""


@pytest.mark.parametrize(
  ("left", "right", "out", "attributes", "flops"),
  [
    ("bf16[4,6]", "bf16[9,6]", "f32[4,9]", "dim_labels=bf_oi->bf", 2 * 4 * 9 * 6),
    # The next two are how TPUs write a product with 4 heads, [2, 10, 5] x [5, 4, 7] ...
    (
      "bf16[2,10,5,1]",
      "bf16[4,7,5,1]",
      "f32[2,10,4,7]",
      "window={size=1x4 pad=0_0x3_3 rhs_reversal=0x1}, dim_labels=0bf1_1oi0->0b1f",
      2 * (2 * 10) * 5 * (4 * 7),
    ),
    # ... and one for each of 3 heads, with holes between them so that none meets another.
    (
      "bf16[3,10,5]",
      "bf16[3,7,5]",
      "f32[3,10,7]",
      "window={size=3 stride=2 pad=0_0 lhs_dilate=3}, dim_labels=0bf_0oi->0bf",
      2 * 3 * 10 * 7 * 5,
    ),
  ],
)
def test_matmuls_written_as_convolutions(left, right, out, attributes, flops):
  text = (
    "ENTRY %main (l: x, r: x) -> x {\n"
    f"  %l = {left} parameter(0)\n"
    f"  %r = {right} parameter(1)\n"
    f"  ROOT %c = {out} convolution(%l, %r), {attributes}\n}}\n"
  )
  assert Program(text).matmul_flops() == flops


def test_bytes_of_a_shape():
  assert shape_bytes("(bf16[2,3]{1,0:T(8,128)(2,1)}, /*index=1*/pred[5], s32[])") == 12 + 5 + 4
