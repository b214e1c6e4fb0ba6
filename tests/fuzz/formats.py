"""What each format is: how a damaged input of it is made, and what the project does with it."""

from __future__ import annotations

import json
import os
import pathlib
import random
import sys
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
from absl import flags
from etils import epath

from egad_jax import from_config, sources
from egad_jax.data import chat
from egad_jax.data.readers.sources import find_files
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.durability import workdir
from egad_jax.errors import InputError
from egad_jax.models import family, layout
from egad_jax.models.load import load_pretrained
from launch import command_line
from tests.fuzz import data_files
from tests.fuzz.byte_mutations import INTEGERS, mutate_bytes
from tests.fuzz.header_mutations import mutate_gguf, mutate_safetensors
from tests.fuzz.json_mutations import mutate_json
from tests.fuzz.seeds import TEMPLATES, TEXT, Seeds, pick

ROOT = pathlib.Path(__file__).parents[2]


class Format(NamedTuple):
  """One kind of input.

  Attributes:
    share: of all files, in percent.
    write: puts a damaged input into an empty directory, or returns it if it is no file.
    read: what the project does with it; raises InputError to refuse it, and any other error, an
      AssertionError for a wrong result among them, is a bug.
  """

  share: int
  write: Callable[[pathlib.Path, random.Random, Seeds], Any]
  read: Callable[[pathlib.Path, Any], None]


def _all(*steps: Callable[[], None]) -> None:
  """Runs all steps, then raises the first refusal: one may not hide another's bug."""
  refused = None
  for step in steps:
    try:
      step()
    except InputError as error:
      refused = refused or error
  if refused:
    raise refused


def _read_model(path: pathlib.Path) -> None:
  model = load_pretrained(str(path))
  assert model.params is not None
  for tensor in family.tensors(model.config):
    assert (
      layout.by_name(family.tensors(model.config), model.params)[tensor.hf].shape == tensor.shape
    )
    break
  for leaf in jax.tree.leaves(model.params):
    assert leaf.dtype == np.float32
    assert np.isfinite(leaf).all()


def _read_tokenizer(path: pathlib.Path) -> None:
  tokenizer = Tokenizer.from_source(path)
  ids = tokenizer.encode(TEXT)
  assert tokenizer.encode_batch([TEXT, ""])[0] == ids
  assert all(0 <= index < tokenizer.vocab_size for index in ids)
  tokenizer.encode(TEXT * 20 + "<|endoftext|></s>", allow_special=True)
  tokenizer.decode(ids)
  assert tokenizer.token_bytes().shape == (tokenizer.vocab_size,)
  assert tokenizer.eos_id < tokenizer.vocab_size
  saved = path.parent / "saved"
  tokenizer.save(saved)
  assert Tokenizer.from_source(saved).fingerprint == tokenizer.fingerprint


def _write_gguf(directory: pathlib.Path, rng: random.Random, seeds: Seeds) -> None:
  data = rng.choice(seeds.gguf)
  data = mutate_gguf(data, rng) if rng.random() < 0.6 else mutate_bytes(data, rng, seeds.gguf)
  (directory / "a.gguf").write_bytes(data)


def _read_gguf(directory: pathlib.Path, _: Any) -> None:
  path = directory / "a.gguf"
  _all(lambda: _read_model(path), lambda: _read_tokenizer(path))


def _write_files(directory: pathlib.Path, files: dict[str, bytes]) -> None:
  for name, data in files.items():
    (directory / name).write_bytes(data)


def _mutate_file(
  files: dict[str, bytes], rng: random.Random, suffixes: tuple[str, ...]
) -> dict[str, bytes]:
  name = pick(rng, files, suffixes)
  data = files[name]
  if rng.random() < 0.3:
    data = mutate_bytes(data, rng, list(files.values()))
  elif name.endswith(".json"):
    data = mutate_json(json.loads(data), rng)
  elif name.endswith(".safetensors"):
    data = mutate_safetensors(data, rng)
  return {k: v for k, v in (files | {name: data}).items() if k != name or rng.random() > 0.01}


def _write_safetensors(directory: pathlib.Path, rng: random.Random, seeds: Seeds) -> None:
  files = rng.choice(seeds.safetensors)
  (directory / "model").mkdir()
  _write_files(directory / "model", _mutate_file(files, rng, (".safetensors", ".md")))


def _write_hf_json(directory: pathlib.Path, rng: random.Random, seeds: Seeds) -> None:
  files = rng.choice(seeds.safetensors)
  (directory / "model").mkdir()
  _write_files(directory / "model", _mutate_file(files, rng, (".json",)))


def _write_tokenizer(directory: pathlib.Path, rng: random.Random, seeds: Seeds) -> None:
  (directory / "model").mkdir()
  files = _mutate_file(rng.choice(seeds.tokenizers), rng, ("tokenizer.json",))
  _write_files(directory / "model", files)


def _write_tokenizer_config(directory: pathlib.Path, rng: random.Random, seeds: Seeds) -> None:
  (directory / "model").mkdir()
  files = rng.choice(seeds.tokenizers)
  files = _mutate_file(files, rng, ("tokenizer_config.json", "special_tokens_map.json"))
  if rng.random() < 0.2:
    files["chat_template.jinja"] = mutate_bytes(rng.choice(TEMPLATES).encode(), rng)
  _write_files(directory / "model", files)


# Ways to ask for endless time, endless memory or Python itself.
_BOMBS = (
  "{% for i in range(10**9) %}{% endfor %}",
  "{{ 10 ** 10 ** 10 }}",
  "{{ 'a' * 10**10 }}",
  "{{ ''.__class__.__mro__[1].__subclasses__() }}",
  "{{ 'x' | center(10**10) }}",
  "{{ '%*d' % (10**9, 1) }}",
  "{{ '{:>1000000000}'.format(1) }}",
  "{{ lipsum(n=10**8) }}",
  "{% for i in range(9**5) %}{% for j in range(9**5) %}{% endfor %}{% endfor %}",
  "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
  "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
  "{{ range.__globals__ }}",
  "{{ cycler.__init__.__globals__.os }}",
  "{{ self._TemplateReference",
  "{{ messages | attr('__class__') }}",
  "{% include '/etc/passwd' %}",
  "{{ joiner(1)() }}",
  "{{ '{0.__class__}'.format(1) }}",
  "{{ raise_exception(messages) }}",
  "{{ '\\ud800' }}",
)
_PARTS = ("{{", "}}", "{%", "%}", "'", "(", ")", "|", "10**9", "range", " for ", "if", "__class__")


def _write_template(directory: pathlib.Path, rng: random.Random, seeds: Seeds) -> str:
  if rng.random() < 0.2:
    return rng.choice(_BOMBS)
  text = rng.choice(TEMPLATES)
  for _ in range(rng.randint(1, 3)):
    at = rng.randrange(len(text) + 1)
    part = rng.choice((*_PARTS, *map(str, INTEGERS), rng.choice(_BOMBS), ""))
    text = text[:at] + part + text[at + rng.choice((0, 0, 1, 5)) :]
  return text


def _read_template(directory: pathlib.Path, template: str) -> None:
  messages = [{"role": "user", "content": "Hi <b> é"}, {"role": "x", "content": "y"}]
  text = chat.render_chat(
    template, messages, add_generation_prompt=True, special_tokens={"bos_token": "<s>"}
  )
  assert not any(leak in text for leak in ("root:", "<class", "<module", "subclasses"))


def _write_stored(directory: pathlib.Path, rng: random.Random, seeds: Seeds) -> dict[str, Any]:
  (directory / "run").mkdir()
  data = json.dumps(seeds.config).encode()
  data = mutate_bytes(data, rng) if rng.random() < 0.2 else mutate_json(seeds.config, rng)
  (directory / "run" / "config.json").write_bytes(data)
  return seeds.config


def _read_stored(directory: pathlib.Path, config: dict[str, Any]) -> None:
  def resume() -> None:
    with workdir.Workdir(str(directory / "run")) as opened:
      opened.check_config(config)

  def export() -> None:
    stored = command_line.stored_config(epath.Path(directory / "run" / "config.json"))
    stored.teacher.source = stored.teacher.source or "random:tiny"
    from_config.validate(stored)

  _all(resume, export)


_OVERRIDE_VALUES = (
  *map(str, INTEGERS),
  "",
  "None",
  "True",
  "nan",
  "inf",
  "-inf",
  "1e999",
  "0.5",
  "a=b",
  "a=1,a=2",
  "=",
  ",",
  "[1,2]",
  "(1,)",
  "__import__('os').getcwd()",
  "9" * 5000,
  "x" * 100_000,
  "\x1b[31m",
  "é",
  "\udcff",
  "6:12,13:30",
  "uniform:0",
  "uniform:999999999999",
  "random:",
  "train:-1",
  "egad",
  "{}",
)


def _write_overrides(directory: pathlib.Path, rng: random.Random, seeds: Seeds) -> list[str]:
  keys = sorted(workdir.flat(seeds.config))
  arguments = ["--config.teacher.source=random:tiny"]
  for _ in range(rng.randint(1, 3)):
    key, value = rng.choice(keys), rng.choice(_OVERRIDE_VALUES)
    if rng.random() < 0.1:
      key = mutate_bytes(key.encode(), rng).decode("utf-8", "surrogateescape")
    arguments.append(f"--config.{key}{rng.choice(('=', '=', '=', ''))}{value}")
  return arguments


def _read_overrides(directory: pathlib.Path, arguments: list[str]) -> None:
  for name in list(flags.FLAGS):
    if name == "config" or name.startswith("config."):
      delattr(flags.FLAGS, name)
  flags.FLAGS.unparse_flags()
  argv = ["run", f"--config={ROOT / 'configs/default.py'}", *arguments]
  # ml_collections looks there for the keys that are overridden.
  with mock.patch.object(sys, "argv", argv):
    flag = command_line.define_config()
    command_line._parse(argv)
  from_config.validate(command_line.config(flag))


_NAMES = (
  "",
  ".",
  "..",
  "/",
  "~",
  "~nobody_of_that_name/x",
  "a" * 300,
  "a" * 5000,
  "\0",
  "a\0b",
  "*",
  "**/*",
  "[",
  "[!",
  "python:",
  "python:egad_jax",
  "python:egad_jax/",
  "python:__main__/x",
  "python:egad_jax/../configs/tiny.py",
  "python:egad_jax//etc/passwd",
  "python:/etc/passwd",
  "python:..//x",
  "python:egad_jax/./errors.py",
  "python:os/x",
  "python:\0/x",
  "\udcff",
  "é",
  "/dev/zero",
  "/dev/null",
  "/proc/self/mem",
  "/proc/self/environ",
  "random:tiny",
  "train:9",
)


def _write_name(directory: pathlib.Path, rng: random.Random, seeds: Seeds) -> str:
  name = rng.choice(_NAMES)
  if rng.random() < 0.5:
    name = mutate_bytes(name.encode("utf-8", "surrogateescape"), rng).decode("utf-8", "replace")
  return name


def _read_name(directory: pathlib.Path, name: str) -> None:
  # Real directories may be large: whether a name is one is all that is asked here.
  def resolve() -> None:
    path = sources.resolve(name)
    if name.startswith("python:"):
      assert path.resolve().is_relative_to(ROOT / "egad_jax"), path

  def find() -> None:
    if "*" not in name and not os.path.isdir(os.path.expanduser(name.replace("\0", ""))):
      find_files(name)

  _all(resolve, find)


def _read_directory(directory: pathlib.Path, _: Any) -> None:
  _read_model(directory / "model")


def _read_tokenizer_directory(directory: pathlib.Path, _: Any) -> None:
  _read_tokenizer(directory / "model")


FORMATS = {
  "GGUF": Format(20, _write_gguf, _read_gguf),
  "safetensors": Format(16, _write_safetensors, _read_directory),
  "config.json and index": Format(13, _write_hf_json, _read_directory),
  "tokenizer.json": Format(11, _write_tokenizer, _read_tokenizer_directory),
  "tokenizer_config.json": Format(8, _write_tokenizer_config, _read_tokenizer_directory),
  "chat template": Format(4, _write_template, _read_template),
  "JSONL and text": Format(6, data_files.write_texts, data_files.read_texts),
  "chats": Format(6, data_files.write_chats, data_files.read_chats),
  "Parquet and compressed": Format(6, data_files.write_packed, data_files.read_chats),
  "stored config.json": Format(5, _write_stored, _read_stored),
  "overrides": Format(3, _write_overrides, _read_overrides),
  "source names": Format(2, _write_name, _read_name),
}
