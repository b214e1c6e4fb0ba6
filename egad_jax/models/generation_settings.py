"""End tokens and sampling settings that a model's files state."""

from __future__ import annotations

import pathlib
import types
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from egad_jax.errors import InputError
from egad_jax.files.json_file import read_json
from egad_jax.models.foreign_keys import CORRECT, Table, names, shown
from egad_jax.models.hf_config import ANY_MODEL

FILE = "generation_config.json"
# Sampling settings, which the export passes on. They do not affect the model's distribution.
SAMPLING = (
  "do_sample",
  "temperature",
  "top_k",
  "top_p",
  "min_p",
  "typical_p",
  "repetition_penalty",
)
GENERATION_CONFIG = Table(
  read=frozenset({"eos_token_id", *SAMPLING}),
  harmless=(
    names(
      """
      _from_model_config _commit_hash transformers_version bos_token_id pad_token_id
      decoder_start_token_id use_cache cache_implementation cache_config max_cache_len
      return_dict_in_generate output_scores output_logits output_attentions output_hidden_states
      renormalize_logits max_length max_new_tokens max_time num_return_sequences low_memory
      compile_config disable_compile prefill_chunk_size continuous_batching_config
      """
    )
    # Settings of speculative decoding, which gives the same text.
    | names(
      """
      is_assistant num_assistant_tokens num_assistant_tokens_schedule use_mtp
      assistant_confidence_threshold prompt_lookup_num_tokens max_matching_ngram_size
      assistant_early_exit assistant_lookbehind target_lookbehind assistant_ensemble_weight
      speculation_type trust_remote_code
      """
    )
  ),
  # Settings that lead to other texts than sampling does; they are named and not passed on.
  neutral={
    "min_length": (0,),
    "min_new_tokens": (0,),
    "early_stopping": (False,),
    "stop_strings": (),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0,),
    "length_penalty": (1,),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "top_h": (),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "bad_words_ids": (),
    "force_words_ids": (),
    "constraints": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "remove_invalid_values": (False,),
    "exponential_decay_length_penalty": (),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "sequence_bias": (),
    "token_healing": (False,),
    "guidance_scale": (1,),
    "watermarking_config": (),
  },
)
# Keys of generation that transformers 4 also had in config.json.
LEGACY_GENERATION = frozenset(
  (GENERATION_CONFIG.harmless | GENERATION_CONFIG.neutral.keys() | set(SAMPLING)) - ANY_MODEL
)


class EndTokens(Protocol):
  """The part of a `Tokenizer` that says how texts end."""

  eos_id: int
  document_end_id: int


class GenerationSettings(NamedTuple):
  """Settings of generation from a model's files.

  Attributes:
    end_ids: ids that end a text or a turn, in the order of the files; () if they name none.
    sampling: sampling settings by their names in generation_config.json. They are only passed on
      to an export; generation here does not use them.
  """

  end_ids: tuple[int, ...] = ()
  sampling: Mapping[str, Any] = types.MappingProxyType({})

  def ends(self, tokenizer: EndTokens) -> tuple[int, ...]:
    """The ids that end the model's texts: from its files, else from its tokenizer."""
    return self.end_ids or _once(tokenizer.eos_id, tokenizer.document_end_id)

  def learnt_ends(self, tokenizer: EndTokens) -> tuple[int, ...]:
    """The ids that end a student's texts: the model's, and the end of training documents."""
    return _once(*self.ends(tokenizer), tokenizer.document_end_id)


# For a model whose files state no settings.
NO_SETTINGS = GenerationSettings()


def read_settings(
  directory: pathlib.Path, config: Mapping[str, Any], vocab_size: int
) -> tuple[GenerationSettings, list[str]]:
  """Reads generation_config.json or, without that file, the same keys of config.json.

  Args:
    directory: the model's directory, with config.json and perhaps generation_config.json.
    config: content of config.json.
    vocab_size: number of rows of the embedding.

  Returns:
    The settings, and "FILE: KEY" of each key that asks for other texts than sampling gives, or is
    unknown.

  Raises:
    InputError: the file is not a JSON object, or a key that is read has a value of another kind.
  """
  path = directory / FILE
  legacy = {key: config[key] for key in config if key in LEGACY_GENERATION}
  data = read_json(path) if path.exists() else legacy
  name = str(path if path.exists() else directory / "config.json")
  ends, where = data.get("eos_token_id"), name
  if ends in (None, []):
    ends, where = config.get("eos_token_id"), str(directory / "config.json")
  sampling = {key: data[key] for key in SAMPLING if data.get(key) is not None}
  for key, value in sampling.items():
    _check_setting(name, key, value)
  departures = GENERATION_CONFIG.departures(data) + GENERATION_CONFIG.unknown(data)
  settings = GenerationSettings(check_end_ids(f"{where}: eos_token_id", ends, vocab_size), sampling)
  return settings, [f"{pathlib.Path(name).name}: {key}" for key in departures]


def check_end_ids(what: str, value: Any, vocab_size: int) -> tuple[int, ...]:
  """Checks the ids that end a text, and returns each once, in order.

  Args:
    what: name of the file and key, for messages.
    value: an id, a list of ids, or None for none.
    vocab_size: number of rows of the embedding.

  Raises:
    InputError: the value is something else, or an id is out of range.
  """
  ids = [] if value is None else value if isinstance(value, list) else [value]
  for index in ids:
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < vocab_size:
      raise InputError(
        f"{what} must be one or more ids from 0 to {vocab_size - 1}; got {shown(value)}. {CORRECT}"
      )
  return _once(*ids)


def _once(*ids: int) -> tuple[int, ...]:
  return tuple(dict.fromkeys(ids))


def _check_setting(source: str, key: str, value: Any) -> None:
  if key == "do_sample":
    right = isinstance(value, bool)
  elif key == "top_k":
    right = isinstance(value, int) and not isinstance(value, bool) and value >= 0
  else:
    right = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e38
  if not right:
    expected = "true or false" if key == "do_sample" else "a number that is not negative"
    raise InputError(f"{source}: {key} must be {expected}; got {shown(value)}. {CORRECT}")
