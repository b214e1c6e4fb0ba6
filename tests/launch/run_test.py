"""Real processes of the train command, beyond `resume_test`: what it refuses and what it mends."""

from __future__ import annotations

import json
import pathlib
import shutil

import pytest

from tests.launch.fork_server import SERVER
from tests.launch.short_run import STEPS
from tests.launch.stand_ins import messages

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = f"--config={ROOT}/configs/tiny.py"


def run_command(*arguments):
  return SERVER.run("launch/run.py", *arguments)


@pytest.fixture
def copied(finished, tmp_path):
  return pathlib.Path(shutil.copytree(finished, tmp_path / "run"))


def assert_refused(done, *words):
  assert done.returncode == 2, done.stderr
  assert "Traceback" not in done.stderr
  assert len(messages(done.stderr)) == 1, done.stderr
  assert done.stdout == ""
  for word in words:
    assert word in done.stderr


def steps_of(path):
  return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_leaves_the_student_and_its_card(finished):
  assert {path.name for path in (finished / "export").iterdir()} >= {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "README.md",
    "tokenizer.json",
    "tokenizer_config.json",
  }
  # The latest two stay, and nothing half-written.
  assert {path.name for path in (finished / "checkpoints").iterdir()} == {"6", "8"}
  assert not [path for path in finished.rglob("*") if path.name.endswith(".partial")]


@pytest.mark.slow
@pytest.mark.parametrize("lost", [("8",), ()], ids=["in the last save", "after the last step"])
def test_what_a_kill_left_undone_or_half_done_is_mended(train, finished, copied, lost):
  """As a kill leaves it: results missing, a line cut short, a checkpoint partly written."""
  for name in ("summary.json", "report.html", "export/model.safetensors"):
    (copied / name).unlink()
  for step in lost:
    checkpoint = copied / "checkpoints" / step
    checkpoint.rename(checkpoint.with_name(f"{step}.orbax-checkpoint-tmp"))
  with (copied / "metrics.jsonl").open("a") as file:
    file.write('{"step": 9, "lo')
  # A harmless change, too: it must not stand in the way.
  done = train(copied, "--config.checkpoint.keep=3")
  assert done.returncode == 0, done.stderr
  assert "checkpoint.keep: 2 there, 3 now" in done.stderr
  assert f"resumed from step {6 if lost else STEPS}" in done.stderr
  assert steps_of(copied / "metrics.jsonl") == list(range(1, STEPS + 1))
  assert steps_of(copied / "evaluations.jsonl") == [0, 4, STEPS]
  assert {path.name for path in (copied / "checkpoints").iterdir()} == {"6", "8"}
  weights = "export/model.safetensors"
  assert (copied / weights).read_bytes() == (finished / weights).read_bytes()
  before, after = (json.loads((d / "summary.json").read_text()) for d in (finished, copied))
  assert after.pop("command") != before.pop("command")
  # Wall time covers both attempts.
  assert after.pop("seconds") > before.pop("seconds")
  spent, spent_before = after.pop("goodput"), before.pop("goodput")
  assert (spent["lost"] > 0) == bool(lost)
  assert spent["init"] > spent_before["init"] > 0
  assert after | {"export": ""} == before | {"export": ""}
  assert (copied / "report.html").exists()


def test_a_finished_run_is_a_no_op_under_a_harmless_change(train, finished):
  done = train(finished, "--config.log_every=3")
  assert (done.returncode, "nothing to do" in done.stdout) == (0, True)


def test_print_config_prints_the_resolved_config_and_makes_nothing(tmp_path):
  done = run_command(TINY, "--config.seed=7", "--print_config", f"--workdir={tmp_path}/run")
  assert (done.returncode, messages(done.stderr)) == (0, [])
  assert "seed: 7" in done.stdout
  assert not (tmp_path / "run").exists()


BAD_COMMANDS = {
  "no config": ([], ["--config is required"]),
  "no workdir": ([TINY], ["--workdir is required"]),
  "stray argument": ([TINY, "stray"], ["stray", "--name=value"]),
  "missing preset": (
    ["--config=configs/nowhere.py", "--workdir=nowhere"],
    ["--config cannot be read", "configs/nowhere.py"],
  ),
  "missing preset and an override": (
    ["--config=configs/nowhere.py", "--workdir=nowhere", "--config.steps=3"],
    ["--config", "configs/nowhere.py"],
  ),
  "nested key": ([TINY, "--config.optimizer.learningrate=1"], ["learningrate", "learning_rate"]),
  "fraction for a count": ([TINY, "--config.steps=2.5"], ["--config.steps", "2.5"]),
  "number for a switch": (
    [TINY, "--config.branch.hard_logits=7"],
    ["--config.branch.hard_logits", "7"],
  ),
  "flag of another type": ([TINY, "--force=perhaps"], ["--force", "perhaps"]),
}


@pytest.mark.short_form(3)
@pytest.mark.parametrize("name", BAD_COMMANDS)
def test_a_bad_command_is_one_message_and_exit_code_2(name):
  arguments, words = BAD_COMMANDS[name]
  assert_refused(run_command(*arguments), *words)


@pytest.mark.short_form(1)
@pytest.mark.parametrize(
  ("text", "word"), [("def get_config(:", "invalid syntax"), ("import no_such_module", "no_such")]
)
def test_a_broken_config_file_is_named_as_such(tmp_path, text, word):
  path = tmp_path / "mine.py"
  path.write_text(text)
  assert_refused(run_command(f"--config={path}", f"--workdir={tmp_path}/run"), word)


BAD_VALUES = {
  "out of range": (["--config.batch_size=0"], ["config.batch_size must be positive", "0"]),
  "accumulation": (["--config.accumulation=3"], ["accumulation (3)", "batch_size (8)"]),
  "hyper-parameter": (["--config.branch.hard_fraction=2"], ["hard_fraction"]),
  "option of another method": (
    ["--config.method_options.adakd.ratio_step=0.1"],
    ["config.method_options.adakd.ratio_step (0.1) is not read", "config.method is egad", "0.05"],
  ),
  # Hundreds of terabytes, known before any of it is used.
  "too big for the disk": (["--config.student.layers=1000000000"], ["GiB free", "checkpoint.keep"]),
}


@pytest.mark.short_form(2)
@pytest.mark.parametrize("name", BAD_VALUES)
def test_a_bad_value_is_refused_before_the_workdir_holds_a_run(train, tmp_path, name):
  flags, words = BAD_VALUES[name]
  assert_refused(train(tmp_path, *flags), *words)
  assert not (tmp_path / "config.json").exists()


def test_bad_records_are_counted_against_what_is_allowed(train, tmp_path):
  text = tmp_path / "text.jsonl"
  text.write_bytes(b'{"text": "one"}\nno JSON\n{"text": "two"}\n{"text": "\xff"}\n')
  done = train(tmp_path / "run", f"--config.data.source={text}", "--config.data.max_bad_records=1")
  assert done.returncode == 2, done.stderr
  assert "Traceback" not in done.stderr
  # The first is left out with a warning; the second is one too many.
  assert f"{text}, line 4:" in done.stderr.splitlines()[-1]
  assert "data.max_bad_records is 1" in done.stderr.splitlines()[-1]


def test_a_student_of_another_tokenizer_is_refused(train, finished, tmp_path):
  done = train(
    tmp_path,
    "--config.student.init=source",
    f"--config.student.source={finished}/export",
    "--config.data.tokenizer=train:300",
  )
  assert_refused(
    done, "config.student.source", "512 entries", "300 entries", "config.method=x_token"
  )


def test_truncated_safetensors_are_refused_by_name(train, finished, tmp_path):
  teacher = shutil.copytree(finished / "export", tmp_path / "teacher")
  weights = teacher / "model.safetensors"
  weights.write_bytes(weights.read_bytes()[:-1000])
  done = train(tmp_path / "run", f"--config.teacher.source={teacher}", "--config.data.tokenizer=")
  assert_refused(done, "model.safetensors")


_TRACKED = """
import pathlib
import sys

from configs import tiny

STUBS = pathlib.Path(__file__).with_name("stubs")
if STUBS.exists():
  sys.path.insert(0, str(STUBS))
else:
  sys.modules["wandb"] = None


def get_config():
  config = tiny.get_config()
  config.trackers = ("tensorboard", "wandb", "mlflow") if STUBS.exists() else ("wandb",)
  return config
"""


@pytest.mark.slow
def test_trackers_that_fail_and_hang_leave_a_run_and_its_code_alone(train, tmp_path):
  stubs = tmp_path / "stubs"
  stubs.mkdir()
  (stubs / "wandb.py").write_text("raise RuntimeError('broken\\ninstallation')")
  (stubs / "mlflow.py").write_text("import threading\nthreading.Event().wait()")
  # As long as it takes to tell: 30 s are for those who upload.
  patch = "from egad_jax.reporting import trackers; trackers.FINISH_SECONDS = 3.0\n"
  (tmp_path / "mine.py").write_text(patch + _TRACKED)
  done = train(tmp_path / "run", f"--config={tmp_path}/mine.py")
  assert done.returncode == 0, done.stderr
  told = [line for line in done.stderr.splitlines() if "is dropped and the run goes on" in line]
  assert len(told) == 2, done.stderr
  assert "tracker wandb is dropped" in told[0]
  assert told[0].endswith("start raised RuntimeError: broken installation")
  assert "tracker mlflow is dropped" in told[1]
  assert told[1].endswith("start has not returned 3 s after the end")
  assert "Traceback" not in done.stderr
  assert steps_of(tmp_path / "run" / "metrics.jsonl") == list(range(1, STEPS + 1))
  assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1


def test_a_tracker_whose_package_is_missing_is_refused_before_any_work(tmp_path):
  (tmp_path / "mine.py").write_text(_TRACKED)
  done = run_command(f"--config={tmp_path}/mine.py", f"--workdir={tmp_path}/run")
  assert_refused(done, "config.trackers", "package wandb is not installed", "pip install wandb")
  assert not (tmp_path / "run").exists()


def test_a_model_that_cannot_be_downloaded_is_one_message(tmp_path):
  text = tmp_path / "text.txt"
  text.write_text("\n\n\n".join(f"Entropy guides distillation, {i}. " * 20 for i in range(99)))
  done = SERVER.run(
    "launch/run.py",
    TINY,
    f"--workdir={tmp_path}/run",
    f"--config.data.source={text}",
    "--config.teacher.source=hf:someone/tiny",
    "--config.data.tokenizer=",
    environment={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
  )
  assert_refused(done, "hf:someone/tiny", "cannot be downloaded", "give a directory")
