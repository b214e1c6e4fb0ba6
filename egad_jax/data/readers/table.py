"""The kinds of files, of data sets and of records that can be read; an addition is a line here."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable
from typing import Any

from egad_jax.data.readers import alpaca, messages, plain_text, prompt_completion
from egad_jax.data.readers.formats import RecordFormat
from egad_jax.data.readers.hf import open_hf
from egad_jax.data.readers.json_files import read_json
from egad_jax.data.readers.jsonl import read_jsonl
from egad_jax.data.readers.parquet import read_parquet
from egad_jax.data.readers.records import BadRecords, Part
from egad_jax.data.readers.text_files import read_text
from egad_jax.data.readers.tfds import open_tfds

# Kinds of files in which a file may be one document; they need to know whether it is the only one.
TEXT_FILES = {".txt": read_text, ".md": read_text}
# Suffix -> `(file, bad) -> (line or number, record)`; .gz and .zst may stand behind it.
RECORD_FILES: dict[str, Callable[[pathlib.Path, BadRecords], Iterable[tuple[int, Any]]]] = {
  ".jsonl": read_jsonl,
  ".json": read_json,
  ".parquet": read_parquet,
}
# Scheme -> `(source) -> Part`.
SCHEMES: dict[str, Callable[[str], Part]] = {"hf:": open_hf, "tfds:": open_tfds}
# Name in data.format -> format. `auto` takes the first whose keys a record has.
FORMATS: dict[str, RecordFormat] = {
  "messages": messages.FORMAT,
  "prompt_completion": prompt_completion.FORMAT,
  "alpaca": alpaca.FORMAT,
  "text": plain_text.FORMAT,
}
