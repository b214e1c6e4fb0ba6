"""Documents on disk, and their ids and targets."""

from __future__ import annotations

import numpy as np
import pytest

from egad_jax.data import spans
from egad_jax.data.spans import Span

_DOCUMENTS = [
  (Span("plain é\x00\n"),),
  (Span("question", is_target=False), Span(" answer")),
  (Span("<|im_start|>", is_target=False, special=True), Span("x<|im_end|>", special=True)),
  (Span("context", is_target=False),),
  (Span(""),),
]


@pytest.mark.parametrize("document", _DOCUMENTS)
def test_a_document_comes_back(document):
  assert spans.load(spans.dump(document)) == document


def test_targets_follow_the_spans_and_the_end_the_last(tokenizer):
  ids, targets = tokenizer.encode_document((Span("document 1:", is_target=False), Span(" naïve")))
  whole = tokenizer.encode("document 1: naïve")
  assert ids.tolist() == [*whole, tokenizer.document_end_id]
  context = len(tokenizer.encode("document 1:"))
  assert whole[:context] == tokenizer.encode("document 1:")
  assert targets.tolist() == [0] * context + [1] * (len(whole) - context) + [1]
  _, targets = tokenizer.encode_document((Span("naïve"), Span(" teacher", is_target=False)))
  assert targets[-1] == 0
  assert targets[0] == 1


def test_a_token_across_the_bound_of_a_span_is_a_target(smollm2):
  assert len(smollm2.encode("document")) == 1
  ids, targets = smollm2.encode_document((Span("docu", is_target=False), Span("ment")))
  assert (ids.tolist(), targets.tolist()) == ([*smollm2.encode("document"), 0], [1, 1])


def test_special_tokens_are_made_in_special_spans_alone(smollm2):
  plain, special = (Span("<|im_end|>", special=flag) for flag in (False, True))
  assert smollm2.eos_id not in smollm2.encode_document((plain,))[0]
  ids, targets = smollm2.encode_document((special,))
  # The template writes what is around a chat.
  assert (ids.tolist(), targets.tolist()) == ([smollm2.eos_id], [1])
  ids, _ = smollm2.encode_document((plain, special))
  assert ids.tolist() == [*smollm2.encode("<|im_end|>"), smollm2.eos_id]


def test_documents_together_are_as_one_by_one(smollm2):
  encoded = smollm2.encode_documents(_DOCUMENTS, with_bytes=True)
  for document, found in zip(_DOCUMENTS, encoded, strict=True):
    ids, targets = smollm2.encode_document(document)
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_array_equal(found.targets, targets)
    assert found.text_bytes.shape == ids.shape
    # Special tokens stand for no text.
    text = spans.text_of(document)
    for spelling in smollm2.special_tokens.values():
      text = text.replace(spelling, "") if document[0].special else text
    assert found.text_bytes.sum() == len(text.encode())
