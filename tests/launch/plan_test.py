"""Real processes of the plan command."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.launch.stand_ins import messages

ROOT = pathlib.Path(__file__).resolve().parents[2]
KEYS = (
  "config",
  "topology",
  "devices",
  "chip",
  "fits",
  "hbm_bytes",
  "arguments_bytes",
  "temporaries_bytes",
  "total_bytes",
  "flops",
  "flops_minimum",
  "modelled_seconds",
  "roofline_seconds",
  "tokens_per_step",
  "tokens_per_second",
  "mfu",
  "collectives",
  "largest_buffers",
  "compile_seconds",
)
TIMES = ("modelled_seconds", "roofline_seconds", "tokens_per_second", "mfu")


def plan(*flags, config="tiny", **variables):
  # From an environment that another command's flags have not touched.
  environment = {k: v for k, v in os.environ.items() if not k.startswith(("TPU_", "XLA_", "JAX_"))}
  return subprocess.run(
    [sys.executable, ROOT / "launch" / "plan.py", f"--config={ROOT}/configs/{config}.py", *flags],
    env=environment | variables,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )


def test_json_is_alone_on_stdout_and_has_the_contract_s_keys():
  done = plan("--topology=v5e:2x2", "--json")
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert tuple(found) == KEYS
  assert (found["config"], found["chip"], found["devices"]) == ("tiny.py", "v5e", 4)
  assert found["fits"] is True
  assert list(found["arguments_bytes"]) == ["teacher", "student", "optimizer", "other"]
  assert found["total_bytes"] > sum(found["arguments_bytes"].values()) > 0
  assert all(found[key] > 0 for key in TIMES)
  assert found["flops"] > found["flops_minimum"] > 0
  assert {"kind", "count", "bytes"} == set(found["collectives"][0])
  assert {"bytes", "shape", "source"} == set(found["largest_buffers"][0])


# The quickstart's sizes, on far too many rows.
LARGE = (
  "--config.teacher.architecture=smollm2-135m",
  "--config.batch_size=16384",
)


@pytest.mark.slow
def test_what_does_not_fit_is_exit_3_and_still_a_whole_report():
  done = plan("--topology=v5e:2x2", "--json", *LARGE, config="quickstart")
  assert done.returncode == 3, done.stderr
  found = json.loads(done.stdout)
  assert tuple(found) == KEYS
  assert found["fits"] is False
  assert found["total_bytes"] > found["hbm_bytes"] * 0.9
  assert [found[key] for key in TIMES] == [None] * 4
  assert all(size > 0 for size in found["arguments_bytes"].values())
  # The teacher's parameters: float32, a quarter on each chip, and no more padding than a tenth.
  assert found["arguments_bytes"]["teacher"] == pytest.approx(134.5e6 * 4 / 4, rel=0.2)
  assert "egad_jax/" in found["largest_buffers"][0]["source"]
  assert found["flops"] > found["flops_minimum"]


@pytest.mark.short_form(2)
@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (("--topology=v5e:3x5",), "no slice 3x5 of v5e"),
    (("--topology=v9:2x2",), "got 'v9:2x2'"),
    (("--topology=h100:8",), "GPU programs compile only on a machine with a GPU"),
    ((), "topology"),
    (("--topology=v5e:2x2", "--config.mesh.data=3"), "the mesh must use all 4 devices"),
    (
      (
        "--topology=v5e:2x2",
        "--config.method=x_token",
        "--config.method_options.x_token.kind=h_kl",
      ),
      "kind=h_kl cannot be planned",
    ),
    (
      ("--topology=v5e:2x2", "--config.teacher.source=models/T"),
      "config.teacher.architecture must name what config.teacher.source=models/T has",
    ),
  ],
)
def test_bad_input_is_one_message_and_exit_2(flags, words):
  done = plan(*flags)
  assert done.returncode == 2, done.stderr
  assert (done.stdout, len(messages(done.stderr))) == ("", 1), done.stderr
  assert words in done.stderr


def test_without_the_tpu_compiler(tmp_path):
  (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['libtpu'] = None\n")
  done = plan("--topology=v5e:2x2", PYTHONPATH=str(tmp_path))
  assert done.returncode == 2, done.stderr
  assert "needs the TPU compiler, libtpu: pip install libtpu" in done.stderr
