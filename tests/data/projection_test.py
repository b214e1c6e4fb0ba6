"""The projection between vocabularies, on small ones made here and on two real ones."""

from __future__ import annotations

import itertools
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from egad_jax.data import python_docs
from egad_jax.data.alignment import align
from egad_jax.data.projection import Projection, audit, build_projection, prepare_projection
from egad_jax.data.tokenizer import SpecialIds, Tokenizer
from egad_jax.errors import InputError
from egad_jax.losses.cross_tokenizer import common_tokens, cross_tokenizer_loss, project

_BYTES = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def byte_level(merges: list[str], *, special: tuple[str, ...] = ("<|end|>",), left_out: str = ""):
  """Byte-level BPE with exactly these merges; eos is the first special token."""
  tokens = [*(b for b in _BYTES if b not in left_out), *(m.replace(" ", "") for m in merges)]
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab={token: i for i, token in enumerate(tokens)},
      merges=[tuple(m.split(" ")) for m in merges],
    )
  )
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = tokenizers.decoders.ByteLevel()
  backend.add_special_tokens([*special])
  return Tokenizer(backend, special=SpecialIds(None, backend.token_to_id(special[0]), None, None))


def sentencepiece_like() -> Tokenizer:
  """Pieces with a block for the space, bytes as <0xNN>, and a space put in front of the text."""
  pieces = ["<s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *"abcdefgh", "ab", "▁ab"]
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab={piece: i for i, piece in enumerate(pieces)},
      merges=[("a", "b"), ("▁", "ab")],
      byte_fallback=True,
    )
  )
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="always")
  backend.decoder = tokenizers.decoders.Metaspace(prepend_scheme="always")
  backend.add_special_tokens(["<s>"])
  return Tokenizer(backend, special=SpecialIds(0, 0, None, None))


def row_of(projection: Projection, student: Tokenizer, teacher: Tokenizer, token: str) -> dict:
  index = {student.id_to_token(i): i for i in range(student.vocab_size)}[token]
  row = zip(projection.ids[index].tolist(), projection.weights[index].tolist(), strict=True)
  return {teacher.id_to_token(i): round(weight, 4) for i, weight in row if weight}


def test_rows():
  student = byte_level(["a b", "ab c", "d e", "f g", "fg h"])
  teacher = byte_level(["a b", "d e", "de f", "g h"])
  projection = build_projection(student, teacher)
  row = lambda token: row_of(projection, student, teacher, token)
  assert row("ab") == {"ab": 1}
  assert row("abc") == {"ab": 0.9091, "c": 0.0909}
  # Exact, although the teacher's "def" adds to it on the way back.
  assert row("de") == {"de": 1}
  # Three pieces, and "gh", which the student spells g, h.
  assert row("fgh") == {"f": 0.9091, "gh": 0.0909}
  assert row("fg") == {"f": 0.9091, "g": 0.0909}
  assert row("<|end|>") == {"<|end|>": 1}
  assert projection.ids.dtype == np.int32
  assert projection.weights.dtype == np.float32
  np.testing.assert_allclose(projection.weights.sum(1), 1, rtol=1e-6)
  assert (np.diff(projection.weights, axis=1) <= 0).all()


def test_both_directions_add_up():
  student = byte_level(["a b", "c d"])
  teacher = byte_level(["b c", "bc d", "a bcd"], left_out="")
  projection = build_projection(student, teacher, top_k=8)
  # The teacher's "abcd" is ab, cd to the student; "bcd" is b, cd, but b is exact.
  total = 1 + 0.9 / 0.99
  expected = {"a": 0.9 / 0.99 / total, "b": 0.09 / 0.99 / total, "abcd": 0.9 / 0.99 / total}
  row = row_of(projection, student, teacher, "ab")
  assert row == pytest.approx(expected, abs=1e-4)
  assert row_of(projection, student, teacher, "b") == {"b": 1}
  # The token's own spelling comes first at equal weight, and a cut row sums to 1 again.
  cut = build_projection(student, teacher, top_k=1)
  assert row_of(cut, student, teacher, "ab") == {"a": 1}
  assert cut.ids.shape == (student.vocab_size, 1)


def test_no_more_than_four_pieces():
  student = byte_level(["a b", "ab c", "abc d", "abcd e", "abcde f"])
  teacher = byte_level([])
  projection = build_projection(student, teacher, top_k=10)
  row = row_of(projection, student, teacher, "abcdef")
  assert row == {"a": 0.9001, "b": 0.09, "c": 0.009, "d": 0.0009}


def test_a_token_without_a_counterpart_has_an_empty_row():
  student, teacher = byte_level(["x y"]), byte_level([], left_out="xy")
  projection = build_projection(student, teacher)
  unmapped = [student.encode(token)[0] for token in ("x", "y", "xy")]
  np.testing.assert_array_equal(projection.weights[unmapped], 0)
  others = np.setdiff1d(np.arange(student.vocab_size), unmapped)
  np.testing.assert_allclose(projection.weights[others].sum(1), 1, rtol=1e-6)
  counts = np.zeros(student.vocab_size)
  counts[unmapped] = 1, 5, 2
  counts[student.encode("a")] = 8
  report = audit(projection, student, teacher, counts)
  size = student.vocab_size
  assert report["rows"] == {"exact": size - 4, "single": 1, "multi": 0, "unmapped": 3}
  assert report["unmapped"] == ["y", "xy", "x"]
  assert report["teacher_reachable"] == teacher.vocab_size
  assert report["corpus"] == {"exact": 0.5, "single": 0.0, "multi": 0.0, "unmapped": 0.5}
  assert report["covered"] == 0.5
  assert "corpus" not in audit(projection, student, teacher)
  assert audit(projection, student, teacher, np.zeros(size))["corpus"]["unmapped"] == 0
  with pytest.raises(InputError, match="one for each of the student's"):
    audit(projection, student, teacher, np.zeros(3))


def test_bytes_are_compared_not_spellings():
  student, teacher = byte_level(["Ġ ab".replace("ab", "a"), "Ġa b"]), sentencepiece_like()
  projection = build_projection(student, teacher)
  row = lambda token: row_of(projection, student, teacher, token)
  assert row("Ġab") == {"▁ab": 1}
  assert row("Ġ") == {"▁": 1}
  assert row("a") == {"a": 1}
  # A byte that is no character.
  assert row("ÿ") == {"<0xFF>": 1}
  back = build_projection(teacher, student)
  assert row_of(back, teacher, student, "▁ab") == {"Ġab": 1}
  assert row_of(back, teacher, student, "<0xFF>") == {"ÿ": 1}
  # encode would put a space in front: spelled greedily instead.
  assert row_of(back, teacher, student, "ab") == {"a": 0.9091, "b": 0.0909}
  student = byte_level(["a c", "ac d"])
  projection = build_projection(student, teacher)
  assert row_of(projection, student, teacher, "acd") == {"a": 0.9009, "c": 0.0901, "d": 0.009}


def test_special_tokens_pair_by_role_and_likeness():
  student = byte_level([], special=("<stop>", "<|im_start|>", "<file_sep>"))
  teacher = byte_level([], special=("<|end|>", "<im_start>", "<tool>"))
  projection = build_projection(student, teacher)
  row = lambda token: row_of(projection, student, teacher, token)
  assert row("<stop>") == {"<|end|>": 1}
  assert row("<|im_start|>") == {"<im_start>": 1}
  assert row("<file_sep>") == {}


def test_a_tokenizer_and_itself(tokenizer):
  projection = build_projection(tokenizer, tokenizer)
  np.testing.assert_array_equal(projection.ids[:, 0], np.arange(tokenizer.vocab_size))
  np.testing.assert_array_equal(projection.weights[:, 0], 1)
  for ids in common_tokens(projection, 1.0):
    np.testing.assert_array_equal(ids, np.arange(tokenizer.vocab_size))


def test_built_once(tokenizer, tmp_path, caplog, monkeypatch):
  caplog.set_level(logging.INFO)
  teacher = byte_level(["t h", "th e"])
  built = prepare_projection(tokenizer, teacher, directory=tmp_path)
  np.testing.assert_array_equal(built.ids, build_projection(tokenizer, teacher).ids)
  assert f"the student's {tokenizer.vocab_size} tokens: " in caplog.text
  (directory,) = (path for path in tmp_path.iterdir() if path.name.startswith("projection-"))
  assert json.loads((directory / "audit.json").read_text()) == audit(built, tokenizer, teacher)
  monkeypatch.setattr("egad_jax.data.projection.build_projection", None)
  counts = np.arange(tokenizer.vocab_size)
  again = prepare_projection(tokenizer, teacher, directory=tmp_path, counts=counts)
  jax.tree.map(np.testing.assert_array_equal, again, built)
  assert "of the corpus' tokens: " in caplog.text
  (report,) = directory.glob("corpus-*/audit.json")
  assert json.loads(report.read_text()) == audit(built, tokenizer, teacher, counts)
  for file in directory.glob("*.npz"):
    file.write_bytes(file.read_bytes()[:100])
  with pytest.raises(InputError, match=r"projection.npz cannot be read .* Delete the directory"):
    prepare_projection(tokenizer, teacher, directory=tmp_path)


def test_misuse(tokenizer, tmp_path):
  for function in (
    build_projection,
    lambda *a, **o: prepare_projection(*a, directory=tmp_path, **o),
  ):
    with pytest.raises(InputError, match=r"top_k \(0\) must be at least 1"):
      function(tokenizer, tokenizer, top_k=0)


class Real:
  """SmolLM2's vocabulary, one trained on Python's documentation, and text of neither's training."""

  def __init__(self, smollm2: Tokenizer) -> None:
    documents = list(itertools.islice(python_docs.read_python_docs(), 260))
    self.student = smollm2
    self.teacher = Tokenizer.train(documents[:200], vocab_size=3000)
    self.projection = build_projection(self.student, self.teacher)
    self.passages = documents[200:]


@pytest.fixture(scope="module")
def real(smollm2) -> Real:
  return Real(smollm2)


@pytest.mark.slow
def test_pieces_of_real_tokens_spell_the_text(real):
  for tokenizer in (real.student, real.teacher):
    pieces = tokenizer.token_pieces()
    assert tokenizer.token_bytes().tolist() == [len(piece) for piece in pieces]
    for passage in real.passages[:20]:
      assert b"".join(pieces[i] for i in tokenizer.encode(passage)) == passage.encode()
    assert pieces[tokenizer.document_end_id] == b""
    assert tokenizer.special_tokens[tokenizer.document_end_id] == "<|endoftext|>"


@pytest.mark.slow
def test_coverage_of_real_vocabularies(real):
  for student, teacher, projection in (
    (real.student, real.teacher, real.projection),
    (real.teacher, real.student, build_projection(real.teacher, real.student)),
  ):
    assert projection.ids.shape == (student.vocab_size, 4)
    assert 0 <= projection.ids.min() <= projection.ids.max() < teacher.vocab_size
    sums = projection.weights.sum(1, dtype=np.float64)
    np.testing.assert_allclose(sums[sums > 0], 1, atol=1e-6)
    ids = np.concatenate([np.array(ids) for ids in student.encode_batch(real.passages)])
    counts = np.bincount(ids, minlength=student.vocab_size)
    report = audit(projection, student, teacher, counts)
    assert report["covered"] == 1
    assert sum(report["rows"].values()) == student.vocab_size
    assert report["corpus"]["exact"] > 0.75
    # Bytes that SmolLM2 lacks one way, special tokens of chats and repositories the other way.
    assert 0 < report["rows"]["unmapped"] < 30
    end = projection.ids[student.document_end_id, 0], projection.weights[student.document_end_id, 0]
    assert end == (teacher.document_end_id, 1)
    strict, relaxed = (common_tokens(projection, weight) for weight in (1.0, 0.6))
    assert 2000 < len(strict[0]) <= len(relaxed[0])
    assert set(zip(*strict, strict=True)) <= set(zip(*relaxed, strict=True))
    assert len(np.unique(relaxed[1])) == len(relaxed[1])


@pytest.mark.slow
def test_alignment_of_real_text(real):
  pieces = real.student.token_pieces(), real.teacher.token_pieces()
  for passage in real.passages:
    ids = real.student.encode(passage), real.teacher.encode(passage)
    sides = [[table[i] for i in side] for table, side in zip(pieces, ids, strict=True)]
    spans = align(*sides)
    assert (spans[0] > 0).all()
    assert (spans[1] > 0).all()
    assert spans[0].max() == spans[1].max() > 0.5 * min(map(len, ids))
    texts = [{}, {}]
    for text, side, of_token in zip(texts, sides, spans, strict=True):
      for piece, span in zip(side, of_token.tolist(), strict=True):
        text[span] = text.get(span, b"") + piece
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_p_kl_of_real_text(real):
  """Two count models of the same text: finite, with gradient, and lower for the better student."""
  passage = real.passages[0][:120]
  ids = real.student.encode(passage), real.teacher.encode(passage)
  tables = real.student.token_pieces(), real.teacher.token_pieces()
  spans = align(*([t[i] for i in side] for t, side in zip(tables, ids, strict=True)))
  vocab_sizes = real.student.vocab_size, real.teacher.vocab_size
  # Each position predicts its own token with logit 8 among zeros.
  student, teacher = (
    8 * jax.nn.one_hot(jnp.array(side), size) for side, size in zip(ids, vocab_sizes, strict=True)
  )

  @jax.jit
  @jax.value_and_grad
  def loss(logits):
    arguments = (logits, teacher, *map(jnp.asarray, spans))
    return cross_tokenizer_loss(*arguments, projection=real.projection, teacher_top_k=1024)[0]

  knowing, gradient = loss(student)
  unknowing, _ = loss(jnp.zeros_like(student))
  assert bool(jnp.isfinite(gradient).all())
  assert 0 < knowing < 0.5 * unknowing
  q = jax.nn.softmax(student[:4])
  lost = q[:, real.projection.weights.sum(1) == 0].sum(1)
  np.testing.assert_allclose(
    project(q, real.projection, vocab_sizes[1]).sum(1), 1 - lost, rtol=1e-4
  )
