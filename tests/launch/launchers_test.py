"""The launchers for TPU slices and SLURM: linted, dry runs read, and run against stand-ins."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shlex
import shutil
import signal
import sys

import pytest

from tests.launch.stand_ins import (
  GCLOUD,
  ROOT,
  RUN_FLAGS,
  STEADY_TRAINER,
  TRAINER,
  executable,
  lines,
  run,
  wait_for,
)

TPU_POD, RESTART = ROOT / "launch" / "tpu_pod.sh", ROOT / "launch" / "restart.sh"
GKE, SLURM = ROOT / "launch" / "gke.sh", ROOT / "launch" / "slurm.sbatch"
SCRIPTS = (TPU_POD, GKE, RESTART, SLURM)
TPU = ("--name=pod", "--zone=us-west4-a")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script, stubs):
  run(stubs, pathlib.Path(sys.executable).with_name("shellcheck"), script)
  assert os.access(script, os.X_OK) or script == SLURM
  assert "set -euo pipefail" in script.read_text()


@pytest.mark.parametrize("script", [TPU_POD, GKE, RESTART], ids=lambda path: path.name)
def test_help_is_the_head_of_the_script(script, stubs):
  out, _ = run(stubs, script, "--help")
  assert f"  launch/{script.name} " in out
  flags = set(re.findall(r"--[a-z_]+", script.read_text().split("set -euo")[0]))
  assert flags == set(re.findall(r"--[a-z_]+", out))
  assert "set -euo" not in out


# TPU slices


def words_of(text: str) -> list[str]:
  """The words of one printed command, as a shell reads them."""
  return shlex.split(text)


def test_dry_run_prints_what_create_would_run(stubs):
  out, _ = run(
    stubs,
    TPU_POD,
    "create",
    *TPU,
    "--project=p",
    "--accelerator_type=v5litepod-16",
    "--spot",
    "--runtime_version=v2-alpha-tpuv5-lite",
    "--service_account=a@b.c",
    "--dry_run",
  )
  create, _, describe = out.splitlines()
  queued = ["gcloud", "compute", "tpus", "queued-resources"]
  where = ["pod", "--zone=us-west4-a", "--project=p"]
  assert words_of(create) == [
    *queued,
    "create",
    *where,
    "--accelerator-type=v5litepod-16",
    "--runtime-version=v2-alpha-tpuv5-lite",
    "--node-id=pod",
    "--spot",
    "--service-account=a@b.c",
  ]
  assert words_of(describe) == [*queued, "describe", *where, "--format=value(state.state)"]
  assert not (stubs / "calls").exists()


def test_several_slices_are_one_request(stubs):
  flags = ("--accelerator_type=v5p-32", "--runtime_version=v2-alpha-tpuv5", "--slices=4")
  out, _ = run(stubs, TPU_POD, "create", *TPU, *flags, "--dry_run")
  assert "--node-count=4 --node-prefix=pod" in out
  assert "--node-id" not in out
  assert "--spot" not in out


@pytest.mark.parametrize(
  ("command", "flags", "expected"),
  [
    (
      "setup",
      ("--staging=gs://b/s/",),
      "git archive --format=tar.gz HEAD | gcloud storage cp - ",
    ),
    ("setup", ("--staging=gs://b", "--inputs=gs://b/in"), "rsync --recursive gs://b/in ~/inputs"),
    ("status", (), "tail -n 3 egad_jax/run.log"),
    ("logs", ("--follow",), "--worker=0 --node=0 '--command=tail -n 100 -F egad_jax/run.log'"),
    ("profile", (), "pkill -USR1 -P"),
    ("stop", (), "pkill -TERM -P"),
    ("delete", (), "queued-resources delete pod --zone=us-west4-a --force --quiet"),
  ],
)
def test_dry_runs_print_and_run_nothing(command, flags, expected, stubs):
  out, err = run(stubs, TPU_POD, command, *TPU, *flags, "--dry_run")
  assert expected in out
  assert not err
  assert not (stubs / "calls").exists()
  for word in words_of(out.replace("#", "")):  # What a worker's shell gets is a whole script.
    if word.startswith("--command="):
      run(stubs, "bash", "-n", "-c", word.removeprefix("--command="))


def test_create_waits_for_the_slices(stubs):
  executable(stubs / "bin" / "gcloud", GCLOUD)
  flags = ("--accelerator_type=v5litepod-16", "--runtime_version=v2-alpha-tpuv5-lite")
  (stubs / "states").write_text("WAITING_FOR_RESOURCES\nPROVISIONING\nPROVISIONING\nACTIVE\n")
  _, err = run(stubs, TPU_POD, "create", *TPU, *flags, POLL_SECONDS="0")
  assert re.findall(r"pod: (\w+)", err) == ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
  (stubs / "states").write_text("WAITING_FOR_RESOURCES\nFAILED\n")
  _, err = run(stubs, TPU_POD, "create", *TPU, *flags, POLL_SECONDS="0", code=1)
  assert "the request is FAILED" in err


@pytest.fixture
def pod(stubs):
  """Two workers that `setup` has been to; ends what a test leaves running on them."""
  executable(stubs / "bin" / "gcloud", GCLOUD)
  workers = [stubs / f"worker{i}" / "egad_jax" for i in range(2)]
  for worker in workers:
    (worker / "launch").mkdir(parents=True)
    for file in (RESTART, RESTART.with_suffix(".py")):
      shutil.copy(file, worker / "launch")
  yield workers
  for worker in workers:
    if pid := "".join(lines(worker / "run.pid")):
      with contextlib.suppress(ProcessLookupError):
        os.killpg(int(pid), signal.SIGKILL)


@pytest.mark.parametrize(("codes", "starts", "end"), [("75 75 0", 3, 0), ("2 0", 1, 2)])
def test_every_worker_restarts_what_another_attempt_may_mend(codes, starts, end, pod, stubs):
  for worker in pod:
    executable(worker / ".venv" / "bin" / "python", TRAINER)
    (worker / "codes").write_text(codes.replace(" ", "\n") + "\n")
  run(stubs, TPU_POD, "run", *TPU, "--backoff_seconds=0", "--", *RUN_FLAGS)
  wait_for(f"ended with exit code {end}.", *(worker / "run.log" for worker in pod))
  for worker in pod:
    assert len(lines(worker / "starts")) == starts
    assert lines(worker / "started") == ["tpu,cpu", "launch/run.py", *RUN_FLAGS] * starts


def test_run_needs_setup(stubs):
  executable(stubs / "bin" / "gcloud", GCLOUD)
  (stubs / "worker0").mkdir()
  (stubs / "worker1").mkdir()
  _, err = run(stubs, TPU_POD, "run", *TPU, "--", *RUN_FLAGS, code=1)
  assert err.count("setup comes first") == 2
  assert not list((stubs / "worker0").iterdir())


def test_stop_signals_the_trainer_once_and_nothing_starts_again(pod, stubs):
  for worker in pod:
    executable(worker / ".venv" / "bin" / "python", STEADY_TRAINER)
  run(stubs, TPU_POD, "run", *TPU, "--", *RUN_FLAGS)
  wait_for(".", *(worker / "starts" for worker in pod))
  _, err = run(stubs, TPU_POD, "run", *TPU, "--", *RUN_FLAGS, code=2)
  assert "a run is going on here" in err
  run(stubs, TPU_POD, "profile", *TPU)
  wait_for("USR1", *(worker / "signals" for worker in pod))
  out, _ = run(stubs, TPU_POD, "stop", *TPU)
  assert out.count("stopped with exit code 75.") == 2
  for worker in pod:
    assert lines(worker / "starts") == ["."]
    assert lines(worker / "signals") == ["USR1", "TERM"]
  run(stubs, TPU_POD, "stop", *TPU)  # Of what has stopped: nothing to do.


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ((), "the first argument must be one of: create setup run"),
    (("start", *TPU), "got 'start'"),
    (("status", "--name=pod"), "status needs --zone="),
    (("status", "--name=Pod 1", "--zone=z"), "--name must be lower-case letters"),
    (("status", *TPU, "--spot"), "--spot is a flag of create, not of status"),
    (("create", *TPU, "--runtime_version=v"), "create needs --accelerator_type="),
    (
      ("create", *TPU, "--accelerator_type=a", "--runtime_version=v", "--slices=0"),
      "--slices must be a positive number, got '0'",
    ),
    (
      ("create", *TPU, "--accelerator_type=tpu7x-8", "--runtime_version=v"),
      "the Cloud TPU API, which this script uses, has no TPU7x; use launch/gke.sh",
    ),
    (("setup", *TPU), "setup needs --staging="),
    (("run", *TPU), "run needs the flags of launch/run.py after --"),
    (("run", *TPU, "--config=x"), "run has no flag --config"),
    (
      ("run", *TPU, "--max_restarts=many", "--", "--config=x"),
      "whole number, got 'many'",
    ),
    (("stop", *TPU, "--", "--config=x"), "only run passes flags on"),
    (("delete", *TPU, "pod2"), "unexpected 'pod2'"),
  ],
)
def test_bad_flags_of_tpu_pod(arguments, message, stubs):
  _, err = run(stubs, TPU_POD, *arguments, code=2)
  assert message in err
  assert len(err.splitlines()) == 1
  assert not (stubs / "calls").exists()


# SLURM


def directives() -> dict[str, str]:
  """The options of sbatch: it reads them down to the first line that is not a comment."""
  found = {}
  for line in SLURM.read_text().splitlines():
    if not line.startswith("#"):
      break
    if option := re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line):
      found[option[1]] = option[2] or ""
    else:
      assert not line.startswith("#SBATCH"), line
  return found


def test_directives_of_the_job():
  found = directives()
  assert len(found) == SLURM.read_text().count("\n#SBATCH ")
  # Not B: (the shell of the job alone), so that every process is told.
  assert re.fullmatch(r"TERM@\d+", found["signal"])
  assert int(found["signal"].split("@")[1]) >= 120
  assert "requeue" in found
  assert found["open-mode"] == "append"
  # JAX gives each process of a job the one device of its number on the machine.
  assert found["ntasks-per-node"] == found["gpus-per-node"]
  assert "%j" in found["output"]


def test_dry_run_of_the_job(stubs):
  out, _ = run(stubs, "bash", SLURM, *RUN_FLAGS, DRY_RUN="1", MAX_RESTARTS="5")
  train, limit, again = out.splitlines()
  assert words_of(train) == [
    "JAX_PLATFORMS=cuda,cpu",
    "srun",
    "--kill-on-bad-exit=0",
    ".venv/bin/python",
    "launch/run.py",
    *RUN_FLAGS,
  ]
  assert "at most 5 times" in limit
  assert again == "scontrol requeue $SLURM_JOB_ID"
  assert not (stubs / "calls").exists()


@pytest.mark.parametrize(
  ("codes", "starts", "code"),
  [
    ((0,), 1, 0),
    ((75, 75, 0), 3, 0),
    ((134, 2, 0), 2, 2),
    ((3, 0), 1, 3),
    ((1,) * 9, 4, 1),
    ((127, 0), 1, 127),
    ((75, 126, 0), 2, 126),
  ],
)
def test_the_job_is_queued_again(codes, starts, code, stubs):
  executable(stubs / "bin" / "srun", TRAINER)
  executable(stubs / "bin" / "scontrol", '#!/bin/sh\necho "$*" >> "$STUBS/requeued"\n')
  (stubs / "codes").write_text("".join(f"{c}\n" for c in codes))
  environment = {"SLURM_JOB_ID": "7", "MAX_RESTARTS": "3", "PYTHON": "python"}
  # As SLURM does: the same script and arguments, with the count of restarts.
  for restarts in range(starts):
    count = {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
    last = restarts == starts - 1
    run(
      stubs,
      "bash",
      SLURM,
      *RUN_FLAGS,
      code=code if last else 0,
      cwd=stubs,
      **environment,
      **count,
    )
    assert lines(stubs / "requeued") == ["requeue 7"] * (restarts if last else restarts + 1)
  call = ["cuda,cpu", "--kill-on-bad-exit=0", "python", "launch/run.py", *RUN_FLAGS]
  assert lines(stubs / "started") == call * starts


def test_a_job_that_cannot_be_queued_again_ends_with_its_code(stubs):
  executable(stubs / "bin" / "srun", "#!/bin/sh\nexit 75\n")
  run(stubs, "bash", SLURM, *RUN_FLAGS, code=75, SLURM_JOB_ID="7")
  assert len(lines(stubs / "calls")) == 1


def test_bad_arguments_of_the_job(stubs):
  assert "give the flags" in run(stubs, "bash", SLURM, code=2)[1]
  assert "whole number" in run(stubs, "bash", SLURM, "--config=x", MAX_RESTARTS="-1", code=2)[1]
  assert not (stubs / "calls").exists()
