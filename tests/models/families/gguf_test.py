"""Models of each family from GGUF, against the same models from Hugging Face's files.

The files are written with the names, keys and layouts of llama.cpp's converter: names by the gguf
package, rows of Llama's queries and keys permuted, norms of Gemma with their 1.
"""

from __future__ import annotations

import dataclasses
import itertools

import gguf
import numpy as np
import pytest

from egad_jax.errors import InputError
from egad_jax.models.gguf_import import read_gguf
from tests.models.conftest import permute
from tests.models.families.golden_test import loaded

ARCHITECTURES = {
  ("llama", 2): gguf.MODEL_ARCH.LLAMA,
  ("qwen2", 0): gguf.MODEL_ARCH.QWEN2,
  ("qwen3", 0): gguf.MODEL_ARCH.QWEN3,
  ("gemma2", 0): gguf.MODEL_ARCH.GEMMA2,
  ("gemma3_text", 1): gguf.MODEL_ARCH.GEMMA3,
  ("mistral", 1): gguf.MODEL_ARCH.LLAMA,
}


def converted(name, index):
  """(architecture, metadata, tensors) of a golden model as llama.cpp's converter writes them."""
  _, _, arrays, read = loaded(name, index)
  arch, c = ARCHITECTURES[name, index], read.config
  names = gguf.get_tensor_name_map(arch, c.num_layers)
  tensors = {}
  for theirs, array in arrays.items():
    heads = {"q_proj": c.num_heads, "k_proj": c.num_kv_heads}.get(theirs.split(".")[-2])
    if arch == gguf.MODEL_ARCH.LLAMA and heads:
      array = permute(array, heads)
    if "gemma" in name and "norm" in theirs:
      array = array + np.float32(1)
    tensors[names.get_name(theirs, try_suffixes=(".weight", ".bias"))] = array
  metadata = {
    "block_count": c.num_layers,
    "context_length": c.max_seq_len,
    "embedding_length": c.dim,
    "feed_forward_length": c.mlp_dim,
    "attention.head_count": c.num_heads,
    "attention.head_count_kv": c.num_kv_heads,
    "attention.key_length": c.head_dim,
    "attention.value_length": c.head_dim,
    "attention.layer_norm_rms_epsilon": c.norm_eps,
    "rope.freq_base": c.rope_theta,
  }
  if c.rope_scaling is not None:
    metadata |= {"rope.scaling.type": "linear", "rope.scaling.factor": c.rope_scaling.factor}
  if c.pattern[0].window:
    metadata["attention.sliding_window"] = c.pattern[0].window
  if c.attention_soft_cap:
    metadata |= {"attn_logit_softcapping": c.attention_soft_cap}
    metadata |= {"final_logit_softcapping": c.logit_soft_cap}
  prefix = gguf.MODEL_ARCH_NAMES[arch]
  return prefix, {f"{prefix}.{key}": value for key, value in metadata.items()}, tensors


def write(path, architecture, metadata, tensors):
  writer = gguf.GGUFWriter(path, architecture)
  add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
  for key, value in metadata.items():
    add[type(value)](key, value)
  for name, array in tensors.items():
    writer.add_tensor(name, np.ascontiguousarray(array))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.mark.parametrize(("name", "index"), ARCHITECTURES)
def test_a_model_from_gguf_is_that_of_the_directory(tmp_path, name, index):
  wanted = loaded(name, index)[3]
  got = read_gguf(write(tmp_path / "a.gguf", *converted(name, index)))
  # GGUF does not say what the random initial values were, nor that a Llama is a Mistral.
  same = {"embedding_std": wanted.config.embedding_std, "family": name}
  assert dataclasses.replace(got.config, **same) == wanted.config
  assert got.unread == ()
  flat = lambda tree: dict(leaves(tree))
  ours, theirs = flat(got.params), flat(wanted.params)
  assert ours.keys() == theirs.keys()
  for path, array in ours.items():
    # A norm with its 1 was rounded once.
    np.testing.assert_allclose(array, theirs[path], atol=2e-7 if "norm" in path else 0, rtol=0)


def leaves(tree, path=""):
  for key, value in tree.items():
    below = f"{path}/{key}"
    yield from leaves(value, below) if isinstance(value, dict) else [(below, value)]


@pytest.mark.parametrize(
  ("name", "index", "key", "value"),
  [
    ("qwen2", 0, "qwen2.attention.sliding_window", 8),
    ("gemma2", 0, "gemma2.of_tomorrow", 1),
    ("gemma3_text", 1, "gemma3.attention.sliding_window_pattern", 4),
    ("qwen3", 0, "qwen3.expert_count", 8),
  ],
)
def test_keys_that_change_the_model_are_refused(tmp_path, name, index, key, value):
  architecture, metadata, tensors = converted(name, index)
  path = write(tmp_path / "a.gguf", architecture, metadata | {key: value}, tensors)
  with pytest.raises(InputError, match=key):
    read_gguf(path)


def split(directory, parts=3, **changes):
  """A golden Qwen3 in parts; `changes` replace the split keys of the last part."""
  architecture, metadata, tensors = converted("qwen3", 0)
  names = list(tensors)
  paths = []
  for index in range(parts):
    own = {"split.no": index, "split.count": parts, "split.tensors.count": len(names)}
    if index == parts - 1:
      own |= changes
    held = {name: tensors[name] for name in itertools.islice(names, index, None, parts)}
    paths.append(directory / f"m-{index + 1:05}-of-{parts:05}.gguf")
    write(paths[-1], architecture, (metadata if index == 0 else {}) | own, held)
  return paths


def test_a_split_file_is_read_whole(tmp_path):
  wanted = dict(leaves(loaded("qwen3", 0)[3].params))
  got = dict(leaves(read_gguf(split(tmp_path)[0]).params))
  assert got.keys() == wanted.keys()
  for path, array in got.items():
    np.testing.assert_array_equal(array, wanted[path], err_msg=path)


def test_parts_that_do_not_fit_are_refused(tmp_path):
  paths = split(tmp_path)
  with pytest.raises(InputError, match=r"is not the first of 3 parts; name m-00001-of-00003\.gguf"):
    read_gguf(paths[1])
  paths[2].rename(tmp_path / "elsewhere.gguf")
  with pytest.raises(InputError, match=r"m-00003-of-00003\.gguf: no such file, though m-00001-of-"):
    read_gguf(paths[0])
  with pytest.raises(InputError, match=r"name must end in -00001-of-00003\.gguf"):
    read_gguf(tmp_path / "elsewhere.gguf")
  split(tmp_path, **{"split.no": 1})
  with pytest.raises(InputError, match=r"m-00003.* does not belong to m-00001.*'split.no': 1"):
    read_gguf(paths[0])
  paths[1].write_bytes(paths[0].read_bytes())
  with pytest.raises(InputError, match=r"m-00002.* does not belong to m-00001"):
    read_gguf(paths[0])


def test_a_wrong_number_of_tensors_is_refused(tmp_path):
  paths = split(tmp_path, parts=2)
  for path, tensors in zip(paths, (["output_norm.weight"], []), strict=True):
    architecture, metadata, held = converted("qwen3", 0)
    kept = {name: held[name] for name in tensors or ["token_embd.weight"]}
    number = {"split.no": paths.index(path), "split.count": 2, "split.tensors.count": 24}
    write(path, architecture, metadata | number, kept)
  with pytest.raises(InputError, match=r"have 24 tensors \(split.tensors.count\); they have 2"):
    read_gguf(paths[0])
