"""Tests of the command `launch/generate.py` as it is run."""

from __future__ import annotations

import jax
import pytest

from egad_jax.data.tokenizer import Tokenizer
from egad_jax.errors import InputError
from egad_jax.models.config import DecoderConfig
from egad_jax.models.export import export_student
from egad_jax.models.generation import generate
from egad_jax.models.model import make_model
from tests.launch.fork_server import SERVER


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  """A random model with a tokenizer, its directory, and what it takes to run it here."""
  tokenizer = Tokenizer.train(["to be or not to be, that is the question"] * 3, vocab_size=270)
  config = DecoderConfig(
    # Two rows more than the tokenizer has ids.
    vocab_size=tokenizer.vocab_size + 2,
    dim=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_dim=32,
    max_seq_len=48,
  )
  model = make_model(config)
  params = jax.device_get(jax.jit(model.init)(jax.random.key(3)))
  directory = tmp_path_factory.mktemp("model") / "export"
  export_student(directory, config, params, tokenizer, model_card="")
  return directory, tokenizer, model, params


def run(*arguments, cwd):
  return SERVER.run("launch/generate.py", *arguments, cwd=cwd)


def test_stdout_is_the_continuation_and_nothing_else(exported, tmp_path):
  directory, tokenizer, model, params = exported
  prompt = "to be"
  [ids] = generate(
    model,
    params,
    [tokenizer.encode(prompt)],
    max_new_tokens=12,
    temperature=0.9,
    top_k=50,
    top_p=0.95,
    seed=4,
    vocab_size=tokenizer.vocab_size,
  )
  done = run(
    f"--model={directory}",
    f"--prompt={prompt}",
    "--max_new_tokens=12",
    "--temperature=0.9",
    "--top_k=50",
    "--top_p=0.95",
    "--seed=4",
    "--ignore_eos",
    cwd=tmp_path,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == tokenizer.decode(ids)
  assert len(ids) == 12


@pytest.mark.short_form(2)
@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--model=no/such/model", "--prompt=a"], "no such file or directory"),
    (["--model=DIRECTORY", "--prompt="], "prompt must have at least one token"),
    (["--model=DIRECTORY", "--prompt=a", "--chat"], "no chat template"),
    (["--model=DIRECTORY", "--prompt=a", "--max_new_tokens=many"], "max_new_tokens"),
    (["--prompt=a"], "--model"),
  ],
)
def test_bad_input_is_one_message_and_exit_code_2(exported, tmp_path, arguments, message):
  done = run(*(a.replace("DIRECTORY", str(exported[0])) for a in arguments), cwd=tmp_path)
  assert done.returncode == 2
  assert message in done.stderr
  assert "Traceback" not in done.stderr
  assert done.stdout == ""


def test_a_workdir_means_its_export(tmp_path):
  from launch import generate as command

  workdir = tmp_path / "run"
  (workdir / "checkpoints" / "12").mkdir(parents=True)
  (workdir / "config.json").write_text("{}")
  with pytest.raises(InputError, match=r"has not ended.*export\.py --checkpoint="):
    command.model_of(str(workdir))
  (workdir / "export").mkdir()
  (workdir / "export" / "config.json").write_text("{}")
  assert command.model_of(str(workdir)) == str(workdir / "export")
  with pytest.raises(InputError, match=r"is a checkpoint.*export\.py --checkpoint="):
    command.model_of(str(workdir / "checkpoints" / "12"))
  # Everything else is what it was.
  for name in (str(workdir / "export"), "python:package/a.gguf", "a\0b", "~nobody/x", ""):
    assert command.model_of(name) == name
