"""The files beside tokenizer.json: tokens that only they name, flags, templates, unknown keys."""

from __future__ import annotations

import json

import pytest
import tokenizers
from tokenizers import normalizers, pre_tokenizers

from egad_jax.data.tokenizer import Tokenizer
from egad_jax.errors import InputError
from tests.models import tiny_llama as tiny


def _make(directory, added=None, special=None, **config):
  tiny.make(directory, tokenizer_config=config)
  for name, content in (("added_tokens.json", added), ("special_tokens_map.json", special)):
    if content is not None:
      (directory / name).write_text(json.dumps(content))
  return directory


_FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)


def test_tokens_that_only_added_tokens_names(tmp_path):
  # `AutoTokenizer` of transformers 5.23 gives these ids for "a <call> b <x>" and "<pad>".
  directory = _make(tmp_path, {"<x>": 261, "<call>": 260, "<pad>": 262}, pad_token="<pad>")
  tokenizer = Tokenizer.from_directory(directory)
  assert tokenizer.vocab_size == 263
  assert tokenizer.pad_id == 262
  byte = lambda text: tiny.tokenizer().encode(text).ids
  assert tokenizer.encode("a <call> b <x>") == [*byte("a "), 260, *byte(" b "), 261]
  # One that is special is only text in a document.
  assert tokenizer.encode("<pad>") == byte("<pad>")
  assert tokenizer.encode("<pad>", allow_special=True) == [262]
  tokenizer.save(tmp_path / "export")
  again = Tokenizer.from_directory(tmp_path / "export")
  assert again.parts == tokenizer.parts


def test_tokens_and_flags_of_added_tokens_decoder(tmp_path):
  decoder = {
    "0": {"content": tiny.SPECIAL[0], "special": True, "normalized": False},
    "260": _FLAGS | {"content": "<mask>", "lstrip": True, "rstrip": True},
    "261": _FLAGS | {"content": "<end>", "special": True},
    "262": _FLAGS | {"content": "ab", "single_word": True},
  }
  tokenizer = Tokenizer.from_directory(_make(tmp_path, added_tokens_decoder=decoder))
  byte = lambda text: tiny.tokenizer().encode(text).ids
  assert tokenizer.encode("a <mask> b") == [*byte("a"), 260, *byte("b")]
  assert tokenizer.encode("<end>") == byte("<end>")
  assert tokenizer.encode("cab ab") == [*byte("cab "), 262]
  assert tokenizer.special_tokens[261] == "<end>"


@pytest.mark.parametrize(
  ("added", "config", "message"),
  [
    ({"<x>": 300}, {}, r"'<x>' should have id 300, but has 260"),
    ({"<x>": 5}, {}, r"'<x>' should have id 5, but has None .* where 5 is"),
    ({tiny.SPECIAL[0]: 2}, {}, "should have id 2, but has 0"),
    ({"<x>": "many"}, {}, "an added token must have a number; got 'many'"),
    (None, {"added_tokens_decoder": {"260": "<x>"}}, "must have tokens with content"),
    (None, {"added_tokens_decoder": {"260": {"content": "<x>", "bold": True}}}, "has the flags"),
    (None, {"added_tokens_decoder": {"3": {"content": "<x>"}}}, "should have id 3"),
    (None, {"added_tokens_decoder": {"260": {"content": "<x>", "lstrip": "yes"}}}, "has the flags"),
    (None, {"split_special_tokens": True}, "split_special_tokens is true"),
    (None, {"fix_mistral_regex": True}, "fix_mistral_regex is true"),
    (None, {"add_bos_token": "yes"}, "add_bos_token must be true or false; got 'yes'"),
    (None, {"add_prefix_space": True}, "add_prefix_space is true, but tokenizer.json does the"),
    (None, {"do_lower_case": True}, "do_lower_case is true, but tokenizer.json does the other"),
    (None, {"image_token": 7}, "image_token must be text; got 7"),
  ],
)
def test_what_contradicts_tokenizer_json_is_refused(tmp_path, added, config, message):
  with pytest.raises(InputError, match=message) as caught:
    Tokenizer.from_directory(_make(tmp_path, added, **config))
  assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
  ("changes", "config"),
  [
    ({"normalizer": normalizers.Lowercase()}, {"do_lower_case": True}),
    (
      {"normalizer": normalizers.BertNormalizer(lowercase=False, strip_accents=True)},
      {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": True},
    ),
    ({"pre_tokenizer": pre_tokenizers.ByteLevel(True)}, {"add_prefix_space": True}),
    ({"pre_tokenizer": pre_tokenizers.Metaspace()}, {"add_prefix_space": True}),
    ({}, {"add_prefix_space": False, "do_lower_case": False, "split_special_tokens": False}),
    ({"pre_tokenizer": None, "normalizer": None}, {"add_prefix_space": True}),
  ],
)
def test_what_agrees_with_tokenizer_json_is_taken(tmp_path, changes, config):
  directory = _make(tmp_path, **config)
  backend = tiny.tokenizer()
  for part, step in changes.items():
    setattr(backend, part, step)
  backend.save(str(directory / "tokenizer.json"))
  assert Tokenizer.from_directory(directory).vocab_size == 260


def test_unknown_keys_are_named_once_and_usual_ones_are_not(tmp_path, caplog):
  usual = {
    "tokenizer_class": "LlamaTokenizerFast",
    "clean_up_tokenization_spaces": True,
    "padding_side": "left",
    "legacy": False,
    "sp_model_kwargs": {},
    "model_input_names": ["input_ids"],
    "additional_special_tokens": [tiny.SPECIAL[2]],
    "model_max_length": 1e30,
  }
  Tokenizer.from_directory(_make(tmp_path / "a", **usual))
  assert not caplog.records
  Tokenizer.from_directory(_make(tmp_path / "b", **usual, later=1, another="x", unset=None))
  [record] = caplog.records
  assert "tokenizer_config.json: these keys are not read: another, later." in record.getMessage()


def test_two_files_that_name_different_tokens(tmp_path, caplog):
  directory = _make(tmp_path, special={"eos_token": {"content": tiny.SPECIAL[2]}})
  assert Tokenizer.from_directory(directory).eos_id == 0
  assert "special_tokens_map.json '<|eot_id|>'; the first is used" in caplog.text


def test_a_role_that_is_not_in_the_vocabulary_is_said(tmp_path, caplog):
  tokenizer = Tokenizer.from_directory(_make(tmp_path, pad_token="[PAD]"))
  assert tokenizer.pad_id is None
  assert "pad_token '[PAD]' is not in the vocabulary" in caplog.text


def test_templates_of_files_and_of_configs(tmp_path):
  ask = [{"role": "user", "content": "Hi"}]
  named = {"default": "{{ bos_token }}d", "tool_use": "t"}
  listed = [{"name": name, "template": template} for name, template in named.items()]
  for form in (named, listed):
    tokenizer = Tokenizer.from_directory(_make(tmp_path, chat_template=form))
    assert tokenizer.chat_templates == named
    assert tokenizer.apply_chat(ask) == "<|begin_of_text|>d"
    tokenizer.save(tmp_path / "export")
    assert Tokenizer.from_directory(tmp_path / "export").chat_templates == named
  with pytest.raises(InputError, match="no chat template named default, only tool_use"):
    Tokenizer.from_directory(_make(tmp_path, chat_template={"tool_use": "t"})).apply_chat(ask)
  # Files of their own stand for all that the config has.
  folder = tmp_path / "additional_chat_templates"
  folder.mkdir()
  (folder / "rag.jinja").write_text("r")
  assert Tokenizer.from_directory(_make(tmp_path, chat_template="c")).chat_templates == {"rag": "r"}
  (tmp_path / "chat_template.jinja").write_text("{{ image_token }}f")
  directory = _make(tmp_path, chat_template="c", extra_special_tokens={"image_token": "<|pad|>"})
  tokenizer = Tokenizer.from_directory(directory)
  assert tokenizer.chat_templates == {"default": "{{ image_token }}f", "rag": "r"}
  assert tokenizer.apply_chat(ask) == "<|pad|>f"


def test_the_export_has_the_ids_of_the_library(tmp_path):
  decoder = {"260": _FLAGS | {"content": "<mask>", "lstrip": True}}
  tokenizer = Tokenizer.from_directory(
    _make(tmp_path, added_tokens_decoder=decoder, add_bos_token=True)
  )
  tokenizer.save(tmp_path / "export")
  library = tokenizers.Tokenizer.from_file(str(tmp_path / "export" / "tokenizer.json"))
  assert library.encode("a <mask>b").ids == tokenizer.encode_prompt("a <mask>b")
