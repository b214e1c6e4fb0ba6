"""Round trips, special tokens, files and fingerprints of tokenizers."""

from __future__ import annotations

import json
import unicodedata

import numpy as np
import pytest
import tokenizers

from egad_jax.data.tokenizer import SpecialIds, Tokenizer
from egad_jax.errors import InputError

_TEXTS = [
  "",
  " ",
  "plain words",
  "  leading and trailing  ",
  "naïve café, Ærøskøbing, straße, ﬁne",
  unicodedata.normalize("NFD", "naïve café"),
  "مرحبا жд 日本語 नमस्ते",
  "🙂👩‍👩‍👧‍👦🏳️‍🌈 flags 🇩🇰",
  "def f(x):\n\tif x:\n\t\treturn {**x, 'a': 1_000.5e-3}\n\n\n\n# end",
  "line\r\nnext\rand\x0bmore\x0c\u2028sep\u00a0nbsp\u200bzero\ufeffbom",
  "many      spaces\t\t\ttabs   \n   \n",
  "2026-11-24 3.14159 ½ ² Ⅷ ٣",
  "<|im_end|> is text, so is <|endoftext|><|im_start|>user",
  "\x00\x01\x7f",
]


@pytest.fixture(params=["smollm2", "tokenizer"])
def any_tokenizer(request) -> Tokenizer:
  return request.getfixturevalue(request.param)


@pytest.mark.parametrize("text", _TEXTS)
def test_round_trip(any_tokenizer, text):
  ids = any_tokenizer.encode(text)
  assert any_tokenizer.decode(ids) == text
  assert any_tokenizer.token_bytes()[ids].sum() == len(text.encode())
  assert any_tokenizer.encode_batch([text, "x"])[0] == ids


def test_special_text_is_text_unless_asked(smollm2):
  text = "a<|im_end|>b"
  plain = smollm2.encode(text)
  assert smollm2.eos_id not in plain
  assert smollm2.eos_id in smollm2.encode(text, allow_special=True)
  assert smollm2.encode(text) == plain


def test_decode_skips_special_tokens_on_request(smollm2):
  ids = smollm2.encode("a<|im_end|>", allow_special=True)
  assert smollm2.decode(ids) == "a<|im_end|>"
  assert smollm2.decode(ids, skip_special=True) == "a"


def test_smollm2_is_what_its_file_says(smollm2):
  assert smollm2.vocab_size == 49152
  assert (smollm2.bos_id, smollm2.eos_id, smollm2.pad_id) == (1, 2, 2)
  assert smollm2.document_end_id == 0
  assert smollm2.max_length == 8192
  assert smollm2.token_bytes().shape == (49152,)
  assert smollm2.token_bytes()[:17].tolist() == [0] * 17


def test_smollm2_splits_every_digit(smollm2):
  pieces = [smollm2.id_to_token(index) for index in smollm2.encode("in 2026")]
  assert pieces == ["in", "Ġ", "2", "0", "2", "6"]


def test_smollm2_chat(smollm2):
  text = smollm2.apply_chat([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
  assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
  ids = smollm2.encode(text, allow_special=True)
  assert ids.count(smollm2.bos_id) == 3
  assert smollm2.decode(ids) == text


def test_unexpressible_bytes_are_dropped_and_can_be_counted(smollm2):
  ids = smollm2.encode("a\x04b")
  assert smollm2.decode(ids) == "ab"
  assert smollm2.token_bytes()[ids].sum() == 2


def test_trained_tokenizer_has_all_bytes_and_one_special(tokenizer):
  assert tokenizer.vocab_size == 300
  assert tokenizer.eos_id == tokenizer.document_end_id == tokenizer.pad_id == 0
  assert np.count_nonzero(tokenizer.token_bytes() == 0) == 1
  with pytest.raises(InputError, match="no chat template"):
    tokenizer.apply_chat([{"role": "user", "content": "Hi"}])


def test_training_is_deterministic(texts, tokenizer):
  assert Tokenizer.train(texts, vocab_size=300).fingerprint == tokenizer.fingerprint
  assert Tokenizer.train(texts, vocab_size=301).fingerprint != tokenizer.fingerprint


def test_too_small_a_vocabulary_is_refused():
  with pytest.raises(InputError, match=r"vocab_size \(256\) must be at least 257"):
    Tokenizer.train(["text"], vocab_size=256)


def test_saved_files_give_the_same_tokenizer(any_tokenizer, tmp_path):
  any_tokenizer.save(tmp_path)
  loaded = Tokenizer.from_source(str(tmp_path))
  assert loaded.fingerprint == any_tokenizer.fingerprint
  for name in ("vocab_size", "bos_id", "eos_id", "pad_id", "unk_id", "chat_template", "max_length"):
    assert getattr(loaded, name) == getattr(any_tokenizer, name), name
  for text in _TEXTS:
    assert loaded.encode(text) == any_tokenizer.encode(text)
  config = json.loads((tmp_path / "tokenizer_config.json").read_text())
  assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
  assert config["clean_up_tokenization_spaces"] is False
  special = json.loads((tmp_path / "special_tokens_map.json").read_text())
  assert special["eos_token"] == any_tokenizer.id_to_token(any_tokenizer.eos_id)


def test_directory_conventions_of_hugging_face(tokenizer, tmp_path):
  tokenizer.save(tmp_path)
  config = json.loads((tmp_path / "tokenizer_config.json").read_text())
  config["eos_token"] = {"content": "<|endoftext|>", "special": True}
  config["chat_template"] = [
    {"name": "tool_use", "template": "tools"},
    {"name": "default", "template": "default"},
  ]
  del config["pad_token"]
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
  (tmp_path / "special_tokens_map.json").unlink()
  loaded = Tokenizer.from_directory(tmp_path)
  assert (loaded.eos_id, loaded.pad_id, loaded.chat_template) == (0, None, "default")
  (tmp_path / "chat_template.jinja").write_text("from the file")
  assert Tokenizer.from_directory(tmp_path).chat_template == "from the file"


def test_saved_truncation_and_added_tokens_do_not_touch_documents(tokenizer, tmp_path):
  tokenizer.save(tmp_path)
  backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
  backend.enable_truncation(2)
  backend.post_processor = tokenizers.processors.TemplateProcessing(
    single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
  )
  backend.save(str(tmp_path / "tokenizer.json"))
  text = "the teacher and the entropy"
  assert Tokenizer.from_directory(tmp_path).encode(text) == tokenizer.encode(text)


def test_sentencepiece_tokens_are_counted_in_bytes():
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE({"</s>": 0, "<0x0A>": 1, "▁é": 2, "x": 3}, [], byte_fallback=True)
  )
  backend.add_special_tokens(["</s>"])
  tokenizer = Tokenizer(backend, special=SpecialIds(bos=None, eos=0, pad=None, unk=None))
  assert tokenizer.token_bytes().tolist() == [0, 1, 3, 1]


def _break_json(directory):
  (directory / "tokenizer.json").write_text("{")


def _break_config(directory):
  (directory / "tokenizer_config.json").write_text("{")


def _remove_json(directory):
  (directory / "tokenizer.json").unlink()


def _remove_eos(directory):
  for name in ("tokenizer_config.json", "special_tokens_map.json"):
    (directory / name).write_text('{"eos_token": "<not there>"}')


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (_break_json, "not valid JSON"),
    (_break_config, "not valid JSON"),
    (_remove_json, "no tokenizer.json"),
    (_remove_eos, "eos_token"),
  ],
)
def test_bad_directories_are_named(tokenizer, tmp_path, damage, message):
  tokenizer.save(tmp_path)
  damage(tmp_path)
  with pytest.raises(InputError, match=message) as caught:
    Tokenizer.from_directory(tmp_path)
  assert str(tmp_path) in str(caught.value)


def test_foreign_file_is_refused(tmp_path):
  file = tmp_path / "model.bin"
  file.write_bytes(b"x")
  with pytest.raises(InputError, match=r"expected a \*\.gguf file or a Hugging Face directory"):
    Tokenizer.from_source(file)
