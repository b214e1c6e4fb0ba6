"""Tests of end tokens and settings of sampling in other people's files."""

from __future__ import annotations

import json
import types

import pytest

from egad_jax.errors import InputError
from egad_jax.models.generation_settings import GenerationSettings, check_end_ids, read_settings

TOKENIZER = types.SimpleNamespace(eos_id=7, document_end_id=8)


def read(directory, file=None, **config):
  if file is not None:
    (directory / "generation_config.json").write_text(json.dumps(file))
  return read_settings(directory, config, 260)


@pytest.mark.parametrize(
  ("file", "config", "ends"),
  [
    ({"eos_token_id": [5, 3, 5]}, {"eos_token_id": 9}, (5, 3)),
    ({"eos_token_id": 4}, {"eos_token_id": 9}, (4,)),
    # As in transformers, a file that names none leaves it to config.json.
    ({"eos_token_id": None}, {"eos_token_id": [9, 1]}, (9, 1)),
    ({"eos_token_id": []}, {"eos_token_id": 0}, (0,)),
    ({}, {"eos_token_id": 0}, (0,)),
    (None, {"eos_token_id": [2]}, (2,)),
    (None, {}, ()),
    ({}, {"eos_token_id": None}, ()),
  ],
)
def test_end_tokens_of_both_files(tmp_path, file, config, ends):
  assert read(tmp_path, file, **config)[0].end_ids == ends


def test_ends_of_a_model_and_of_its_student():
  stated, silent = GenerationSettings((5, 3)), GenerationSettings()
  assert stated.ends(TOKENIZER) == (5, 3)
  assert silent.ends(TOKENIZER) == (7, 8)
  # Its training documents end with the tokenizer's own token.
  assert stated.learnt_ends(TOKENIZER) == (5, 3, 8)
  assert silent.learnt_ends(TOKENIZER) == (7, 8)
  assert GenerationSettings((8,)).learnt_ends(TOKENIZER) == (8,)


@pytest.mark.parametrize(
  "value", [260, -1, "2", 2.0, True, [1, None], [[1]], {"id": 1}, [1, 10**30]]
)
def test_end_tokens_that_are_no_ids(tmp_path, value):
  with pytest.raises(
    InputError, match=r"generation_config\.json: eos_token_id must be one or more"
  ):
    read(tmp_path, {"eos_token_id": value})
  with pytest.raises(InputError, match=r"/config\.json: eos_token_id .* from 0 to 259; got"):
    read(tmp_path, {}, eos_token_id=value)


def test_sampling_is_kept_and_checked(tmp_path):
  settings = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 40, "min_p": None}
  found, unread = read(tmp_path, {"eos_token_id": 1, "transformers_version": "9"} | settings)
  assert found.sampling == {key: settings[key] for key in settings if key != "min_p"}
  assert unread == []
  for key, value in (
    ("temperature", "hot"),
    ("top_p", -1),
    ("top_k", 1.5),
    ("do_sample", 1),
    ("temperature", True),
    ("repetition_penalty", [1]),
    ("top_k", -1),
  ):
    with pytest.raises(InputError, match=f"{key} must be (a number|true or false).*; got"):
      read(tmp_path, {key: value})


def test_what_asks_for_another_text_is_named(tmp_path):
  neutral = {"num_beams": 1, "suppress_tokens": None, "bad_words_ids": [], "guidance_scale": 1.0}
  assert read(tmp_path, neutral)[1] == []
  asked = {"num_beams": 4, "suppress_tokens": [5], "forced_bos_token_id": 1, "of_tomorrow": 0}
  assert read(tmp_path, neutral | asked)[1] == [f"generation_config.json: {key}" for key in asked]


def test_keys_of_older_versions_in_config_json(tmp_path):
  old = {"num_beams": 4, "temperature": 0.5, "hidden_size": 32}
  found, unread = read(tmp_path, None, **old)
  assert (found.sampling, unread) == ({"temperature": 0.5}, ["config.json: num_beams"])
  # A file of its own takes their place.
  found, unread = read(tmp_path, {"top_p": 0.5}, **old)
  assert (found.sampling, unread) == ({"top_p": 0.5}, [])


def test_a_file_that_is_no_object(tmp_path):
  (tmp_path / "generation_config.json").write_text("[1, 2]")
  with pytest.raises(InputError, match=r"generation_config\.json: expected a JSON object"):
    read_settings(tmp_path, {}, 260)


def test_ids_are_named_by_who_says_them():
  with pytest.raises(InputError, match="of a test must be one or more ids from 0 to 4; got 5"):
    check_end_ids("of a test", 5, 5)
