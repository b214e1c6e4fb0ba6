"""Tokenizer directories that come from others: only plain values are taken, and all are checked."""

from __future__ import annotations

import json

import pytest

from egad_jax.data.tokenizer import Tokenizer
from egad_jax.errors import InputError


@pytest.fixture
def directory(tmp_path, tokenizer):
  tokenizer.save(tmp_path)
  return tmp_path


def _change(path, **changes) -> None:
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"[]", "expected a JSON object; got list"),
    (b"\xff", "not valid JSON"),
    (b"{", "not valid JSON"),
    (b"[" * 100_000, "not valid JSON"),
    (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    (b'{"eos_token": 3}', "eos_token must be text; got 3"),
    (b'{"eos_token": "\\ud800"}', "eos_token must be text"),
    (b'{"eos_token": {"content": ["x"]}}', "eos_token must be text"),
    (b'{"chat_template": 3}', "chat_template must be text"),
    (b'{"chat_template": [3, {"name": "default", "template": []}]}', "chat_template must be text"),
    (b'{"model_max_length": "long"}', "model_max_length must be a positive number"),
    (b'{"model_max_length": NaN}', "NaN is no number in JSON"),
  ],
)
def test_wrong_configs_are_refused(directory, content, message):
  (directory / "tokenizer_config.json").write_bytes(content)
  with pytest.raises(InputError, match=message) as caught:
    Tokenizer.from_directory(directory)
  assert str(directory) in str(caught.value)


def test_code_beside_a_tokenizer_is_never_run(directory, monkeypatch):
  monkeypatch.chdir(directory)
  marker = directory / "ran"
  code = f"import pathlib; pathlib.Path({str(marker)!r}).touch()"
  for name in ("tokenizer.py", "tokenization_x.py", "jinja2.py", "sitecustomize.py"):
    (directory / name).write_text(code)
  _change(
    directory / "tokenizer_config.json",
    auto_map={"AutoTokenizer": ["tokenization_x.X", None]},
    tokenizer_class="tokenization_x.X",
    trust_remote_code=True,
    chat_template="{{ messages[0].content }}",
  )
  tokenizer = Tokenizer.from_directory(directory)
  assert tokenizer.apply_chat([{"role": "user", "content": "x"}]) == "x"
  assert not marker.exists()


@pytest.mark.parametrize("largest", [2**24, 2**32 - 2, 2**32 - 1])
def test_ids_that_would_be_rows_of_a_huge_table_are_refused(directory, largest):
  vocab = {"<|endoftext|>": 0, "far": largest}
  model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<|endoftext|>"}
  _change(directory / "tokenizer.json", model=model)
  with pytest.raises(InputError, match="ids from 0 to at most 16777215"):
    Tokenizer.from_directory(directory)


def test_tokens_that_share_an_id_are_refused(directory):
  path = directory / "tokenizer.json"
  model = json.loads(path.read_text())["model"]
  _change(path, model=model | {"vocab": model["vocab"] | {"b": model["vocab"]["a"]}})
  with pytest.raises(InputError, match="each must have one of its own"):
    Tokenizer.from_directory(directory)


def test_dropout_is_refused(directory):
  path = directory / "tokenizer.json"
  _change(path, model=json.loads(path.read_text())["model"] | {"dropout": 0.1})
  with pytest.raises(InputError, match="dropout"):
    Tokenizer.from_directory(directory)


@pytest.mark.parametrize("prepend", [False, True])
def test_texts_that_would_explode_are_refused(directory, prepend):
  double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
  steps = [{"type": "Prepend", "prepend": "a" * 300}] if prepend else [double] * 30
  _change(directory / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": steps})
  with pytest.raises(InputError, match="times longer; at most 256"):
    Tokenizer.from_directory(directory)


def test_an_endless_regular_expression_is_an_error_of_the_input(directory):
  split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
  _change(directory / "tokenizer.json", pre_tokenizer=split)
  tokenizer = Tokenizer.from_directory(directory)
  with pytest.raises(InputError, match=r"cannot encode this text.*retry-limit"):
    tokenizer.encode("a" * 40 + "b")
  with pytest.raises(InputError, match=r"cannot encode this text.*retry-limit"):
    tokenizer.encode_batch(["a" * 40 + "b"])


def test_half_a_surrogate_pair_is_an_error_of_the_input(tokenizer):
  with pytest.raises(InputError, match="valid Unicode"):
    tokenizer.encode("\ud800")
