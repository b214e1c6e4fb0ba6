"""From the keys of config.data to a corpus with its tokenizers."""

from __future__ import annotations

import json

import pytest
from etils import epath

from configs import default
from egad_jax import from_config
from egad_jax.data.packing import prepare_rows
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.errors import InputError
from egad_jax.from_config.data import data_paths, make_corpus_and_tokenizers
from launch import command_line, config_file
from tests.data import mask_cases


def _message(role, content):
  return {"role": role, "content": content}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """A directory with chats and a tokenizer whose template renders them."""
  directory = tmp_path_factory.mktemp("files")
  records = [
    {
      "talk": [
        {"role": "user", "content": f"say {i}"},
        {"role": "assistant", "content": f"it is {i}"},
      ]
    }
    for i in range(60)
  ]
  (directory / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
  (directory / "b.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records[:9]))
  tokenizer = Tokenizer.train(["user assistant say it is"], vocab_size=280)
  tokenizer.chat_templates["default"] = tokenizer.chat_template = mask_cases.SMOLLM_2
  tokenizer.save(directory / "tokenizer")
  return directory


def _config(files, **data):
  config = default.get_config()
  config.teacher.source = "random:tiny"
  config.data.tokenizer = str(files / "tokenizer")
  config.data.source = str(files / "a.jsonl")
  config.data.fields = "messages=talk"
  config.data.update(data)
  return config


def test_chats_of_a_config_become_rows_with_the_assistant_as_target(files, tmp_path):
  config = _config(files, held_out_source=str(files / "b.jsonl"))
  from_config.validate(config)
  corpus, (tokenizer, _) = make_corpus_and_tokenizers(config, epath.Path(tmp_path))
  assert corpus.num_documents == {"train": 60, "held_out": 9}
  assert set(corpus.formats.values()) == {"messages"}
  rows = prepare_rows(corpus, tokenizer, seq_len=256, directory=tmp_path)
  # The closing of a turn is no special token of this tokenizer, and what follows it a target too.
  expected = sum(len(tokenizer.encode(f"it is {i}<|im_end|>\n")) for i in range(9))
  assert abs(rows.num_targets["held_out"] - expected) <= 9


def test_a_tokenizer_that_is_to_be_trained_has_no_template(files, tmp_path):
  config = _config(files, tokenizer="train:300")
  with pytest.raises(InputError, match="messages need a chat template, and the tokenizer has none"):
    make_corpus_and_tokenizers(config, epath.Path(tmp_path))


@pytest.mark.parametrize(
  ("data", "message"),
  [
    ({"format": "chat"}, r"config\.data\.format must be one of auto, messages, prompt_completion"),
    ({"fields": "body"}, r"config\.data\.fields must be name=value"),
    ({"fields": "body=text"}, "no format has a value named 'body'; expected one of completion"),
    ({"min_tokens": 9, "max_tokens": 8}, r"max_tokens \(8\) must be 0 or at least"),
    ({"min_tokens": -1}, r"config\.data\.min_tokens must not be negative"),
  ],
)
def test_wrong_values_are_named(files, data, message):
  with pytest.raises(InputError, match=message):
    from_config.validate(_config(files, **data))


def test_several_sources_may_be_a_tuple(files):
  names = (f"{files}/a.jsonl*2", f"{files}/b.jsonl")
  config = _config(files, source=names)
  stored = json.loads(json.dumps(config.to_dict()))
  assert config_file.checked("config.json", stored).data.source == names
  assert command_line._NamesParser().parse(repr(names)) == names
  assert command_line._NamesParser().parse("a.jsonl") == "a.jsonl"
  found = data_paths(config)
  assert sorted(map(str, found.values())) == [f"{files}/a.jsonl", f"{files}/b.jsonl"]
  stored["data"]["source"] = [1]
  with pytest.raises(InputError, match=r"data\.source must be of type"):
    config_file.checked("config.json", stored)
