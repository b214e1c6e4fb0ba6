from __future__ import annotations

import pytest

from egad_jax.planning.kernels import Kernel, kernel_flops

QUERY = (4, 16, 2048, 128)


def attributes(suffix, block_q=512, block_kv=512):
  return rf'"xprof_metadata":"{{\"block_q{suffix}\": {block_q}, \"block_kv{suffix}\": {block_kv}}}"'


@pytest.mark.parametrize(("kernel", "suffix", "products"), [("fwd", "", 2), ("dkv", "_dkv", 4)])
def test_flops_of_causal_blocks(kernel, suffix, products):
  name = f"splash_mha_{kernel}_segmented_residuals.1"
  # 10 of the 4 x 4 blocks are on the diagonal or below it.
  expected = products * 2 * 4 * 16 * (10 * 512 * 512) * 128
  assert kernel_flops(name, [QUERY], attributes(suffix)) == expected


def test_blocks_that_are_no_squares():
  wide = kernel_flops("splash_mqa_dq.2", [QUERY], attributes("_dq", block_q=256, block_kv=1024))
  # Four rows of blocks see 1024 keys, four 2048.
  assert wide == 3 * 2 * 4 * 16 * 256 * (4 * 1024 + 4 * 2048) * 128


def test_flops_of_the_head():
  # 768 tokens, 1,003 entries, widths 256 and 128.
  hidden, weight, logits = (768, 128), (1003, 128), (768, 1003)
  assert kernel_flops("teacher_logits.3", [(768, 256), (1003, 256)], "") == 2 * 768 * 1003 * 256
  operands = [hidden, weight, logits, (768, 128)]
  assert kernel_flops("student_logits.1", operands, "") == 2 * 768 * 1003 * 128
  operands = [logits, logits, hidden, weight, (768, 128), (1003, 128)]
  assert kernel_flops("logits_gradient.1", operands, "") == 2 * 2 * 768 * 1003 * 128


def test_flops_of_a_grouped_product():
  # 4,096 rows of width 256, 16 experts from width 256 to 100.
  assert kernel_flops("ragged-dot-none.2", [(4096, 256), (16, 256, 100)], "") == 2 * 4096 * 25600


def test_other_kernels_are_not_known():
  assert kernel_flops("matmul.1", [QUERY], attributes("")) is None
  assert kernel_flops("splash_mha_fwd.1", [QUERY], "") is None


def test_the_least_time_is_that_of_flops_or_bytes():
  assert Kernel("k", 3, 200, 10).seconds(100.0, 10.0) == 6.0
  assert Kernel("k", 3, 200, 100).seconds(100.0, 10.0) == 30.0
  assert Kernel("k", 1, None, 5).seconds(100.0, 10.0) == 0.5
