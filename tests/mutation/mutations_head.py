"""Mutations of the chunked head's loss and gradient."""

from __future__ import annotations

from tests.mutation.mutant import Equivalent, of_file

_CHUNKED = [
  (
    "temperature",
    "a soft cap without the division",
    "soft_cap * jnp.tanh(logits / soft_cap)",
    "soft_cap * jnp.tanh(logits)",
  ),
  (
    "normaliser",
    "a soft cap of 1 whatever the cap",
    "soft_cap * jnp.tanh(logits / soft_cap)",
    "jnp.tanh(logits / soft_cap)",
  ),
  (
    "promotion",
    "logits in the dtype of the hidden states",
    'return jnp.einsum("nd,vd->nv", hidden, unembedding, preferred_element_type=dtype)',
    'return jnp.einsum("nd,vd->nv", hidden, unembedding).astype(dtype)',
  ),
  (
    "options",
    "the student's logits are not capped",
    "    student_logits = soft_capped(student_logits, self.student_soft_cap)\n",
    "",
  ),
  (
    "options",
    "the teacher gets the student's cap",
    "chunk_teacher(rows.outputs, vocab, self.teacher_soft_cap, self._split)",
    "chunk_teacher(rows.outputs, vocab, self.student_soft_cap, self._split)",
  ),
  (
    "mask",
    "the loss ignores the mask",
    "return jnp.sum(jnp.where(mask, loss, 0)), stats",
    "return jnp.sum(loss), stats",
  ),
  (
    "reduction",
    "mean for sum in a chunk",
    "return jnp.sum(jnp.where(mask, loss, 0)), stats",
    "return jnp.mean(jnp.where(mask, loss, 0)), stats",
  ),
  (
    "mask",
    "a token outside the mask fills up the last chunk",
    "filled = jnp.where(row_mask, indices, tokens[0])",
    "filled = jnp.minimum(indices, num_tokens - 1)",
  ),
  (
    "mask",
    "the student's first rows are cut instead of its padding",
    "inputs.student_unembedding[:vocab].astype",
    "inputs.student_unembedding[-vocab:].astype",
  ),
  (
    "mask",
    "the teacher's first rows are cut instead of its padding",
    "outputs.unembedding[:vocab].astype",
    "outputs.unembedding[-vocab:].astype",
  ),
  (
    "mask",
    "tokens outside the mask come first",
    "inside_first = jnp.argsort(~mask, stable=True)",
    "inside_first = jnp.argsort(mask, stable=True)",
  ),
  (
    "off by one",
    "the last, uneven chunk is dropped",
    "(count + chunk - 1) // chunk",
    "count // chunk",
  ),
  (
    "comparison",
    "one token too many is in the mask",
    "jnp.where(places < count, inside_first, num_tokens + places)",
    "jnp.where(places <= count, inside_first, num_tokens + places)",
  ),
  (
    "mask",
    "what fills up the last chunk counts",
    "row_mask = indices < num_tokens",
    "row_mask = indices < 2 * num_tokens + indices",
  ),
  (
    "reduction",
    "evaluation counts full chunks alone",
    "return _Sums(loss, stats, None, None)",
    "return _Sums(loss * mask[-1], stats, None, None)",
  ),
  (
    "reduction",
    "the last chunk's loss replaces the others",
    "return _Sums(carry.loss + terms.loss, stats",
    "return _Sums(terms.loss, stats",
  ),
  (
    "sign",
    "the pullback of -1",
    "pullback(jnp.ones_like(loss))",
    "pullback(-jnp.ones_like(loss))",
  ),
  (
    "sign",
    "the unembedding's gradient is subtracted",
    "unembedding_gradient + self._split(of_chunk, 0)",
    "unembedding_gradient - self._split(of_chunk, 0)",
  ),
  (
    "reduction",
    "the unembedding's gradient is that of the last chunk",
    "unembedding_gradient + self._split(of_chunk, 0)",
    "self._split(of_chunk, 0)",
  ),
  (
    "promotion",
    "the unembedding's gradient is summed in bfloat16",
    "      preferred_element_type=unembedding_gradient.dtype,\n    )\n",
    "    ).astype(jnp.bfloat16).astype(unembedding_gradient.dtype)\n",
  ),
  (
    "axis",
    "the unembedding's gradient multiplies the teacher's rows",
    "      rows.student_hidden,\n      preferred",
    "      rows.outputs.hidden[:, : rows.student_hidden.shape[1]],\n      preferred",
  ),
  (
    "off by one",
    "chunks overlap",
    "indices = jax.lax.dynamic_slice_in_dim(tokens, i * chunk, chunk)",
    "indices = jax.lax.dynamic_slice_in_dim(tokens, i, chunk)",
  ),
  (
    "mask",
    "the gradient of padding rows comes first",
    "padding = ((0, inputs.student_unembedding.shape[0] - vocab), (0, 0))",
    "padding = ((inputs.student_unembedding.shape[0] - vocab, 0), (0, 0))",
  ),
  (
    "sign",
    "the cotangent is ignored by the hidden states",
    "(scale * hidden_gradient).astype",
    "hidden_gradient.astype",
  ),
  (
    "sign",
    "the cotangent is ignored by the unembedding",
    "(scale * unembedding_gradient).astype",
    "unembedding_gradient.astype",
  ),
  (
    "promotion",
    "a float32 unembedding gets a gradient in another dtype",
    "unembedding_gradient).astype(like.dtype)",
    "unembedding_gradient).astype(jnp.bfloat16)",
  ),
  (
    "swap",
    "the gradient of hidden states reads the vocabulary backwards",
    "hidden_gradient = logits_gradient @ student_weight",
    "hidden_gradient = logits_gradient @ student_weight[::-1]",
  ),
]

_CLOSED_FORM = [
  (
    "promotion",
    "a reverse KL is taken for a forward one",
    "isinstance(token_loss, EntropyGuidedLoss) and token_loss.is_forward_kl",
    "isinstance(token_loss, EntropyGuidedLoss)",
  ),
  (
    "sign",
    "entropy grows with certainty",
    "jnp.log(total) - weighted",
    "jnp.log(total) + weighted",
  ),
  (
    "off by one",
    "the last entry is no label",
    "(labels >= 0) & (labels < vocab)",
    "(labels >= 0) & (labels < vocab - 1)",
  ),
  (
    "comparison",
    "a negative label is an entry",
    "(labels >= 0) & (labels < vocab)",
    "labels < vocab",
  ),
  ("temperature", "T for 1 / T", "one / guidance.temperature", "one * guidance.temperature"),
  (
    "temperature",
    "the gradient lacks 1 / T",
    "token_loss.weighted(one, guidance) * inverse, 0)",
    "token_loss.weighted(one, guidance), 0)",
  ),
  (
    "mask",
    "the divergence's gradient ignores the mask",
    "jnp.where(mask, token_loss.weighted(one, guidance) * inverse, 0)",
    "token_loss.weighted(one, guidance) * inverse",
  ),
  (
    "mask",
    "the cross-entropy's gradient ignores the mask",
    "jnp.where(mask & is_entry(labels, vocab), one",
    "jnp.where(is_entry(labels, vocab), one",
  ),
  (
    "swap",
    "the divergence of the student from the teacher",
    "jnp.sum(p * (teacher - student), axis=-1)",
    "jnp.sum(q * (teacher - student), axis=-1)",
  ),
  (
    "sign",
    "the normalisers change signs",
    "- jnp.log(sum_p) + jnp.log(sum_q)",
    "+ jnp.log(sum_p) - jnp.log(sum_q)",
  ),
  (
    "temperature",
    "the cross-entropy is taken at T",
    "jnp.log(sum_1) - label_logit",
    "jnp.log(sum_q) - label_logit",
  ),
  (
    "swap",
    "the student's entropy is the teacher's",
    "entropy_of_sums(sum_1, jnp.sum(q_1 * student, axis=-1))",
    "teacher_entropy",
  ),
  (
    "sign",
    "uphill",
    "(q / sum_q[:, None] - p / sum_p[:, None])",
    "(p / sum_p[:, None] - q / sum_q[:, None])",
  ),
  (
    "reduction",
    "the label has no gradient",
    "(q_1 / sum_1[:, None] - at_label)",
    "(q_1 / sum_1[:, None])",
  ),
]

_DENSE = [
  (
    "stop-gradient",
    "gradient flows to the teacher",
    "masked(jax.lax.stop_gradient(rows), flat)",
    "masked(rows, flat)",
  ),
  (
    "mask",
    "hidden states outside the mask are multiplied",
    "hidden = jnp.where(flat[:, None], student_hidden.reshape(flat.size, -1), 0)",
    "hidden = student_hidden.reshape(flat.size, -1)",
  ),
  ("mask", "the loss ignores the mask", "jnp.sum(jnp.where(flat, loss, 0))", "jnp.sum(loss)"),
  ("mask", "stats outside the mask", "jnp.where(flat, v, 0)", "v"),
]

_TEACHER = [
  (
    "options",
    "the entropy of the even tail guides the tokens",
    "extras if self.entropy is None else {**extras, TEACHER_ENTROPY: self.entropy}",
    "extras",
  ),
  (
    "swap",
    "the bounds of the entropy change places",
    "bounds = entropy_bracket(rows, vocab)",
    "bounds = entropy_bracket(rows, vocab)[::-1]",
  ),
  (
    "mask",
    "a TopK outside the mask is read",
    "return mask_top_k(outputs, mask)",
    "return outputs",
  ),
  (
    "numerics",
    "an entry of probability 0 makes NaN in the closed form",
    "teacher = jnp.maximum(teacher, _NOTHING)",
    "pass",
  ),
]

_SHARDED = [
  (
    "reduction",
    "one device's loss for the sum",
    "return jnp.sum(losses), stats",
    "return losses[0], stats",
  ),
]

MUTATIONS = (
  *of_file(
    ["head/chunked.py", "head/logits.py", "head/teacher.py"], ["head/chunked_test.py"], _CHUNKED
  ),
  *of_file(["head/teacher.py", "head/closed_form.py"], ["head/teacher_test.py"], _TEACHER),
  *of_file(
    "head/closed_form.py", ["head/closed_form_test.py", "head/chunked_test.py"], _CLOSED_FORM
  ),
  *of_file("head/dense.py", ["head/dense_test.py", "head/chunked_test.py"], _DENSE),
  *of_file("head/sharded.py", ["head/sharded_test.py"], _SHARDED),
)

EQUIVALENTS = (
  Equivalent(
    "head/chunked.py",
    "drop the mask of the stats",
    "what fills up the last chunk has an index that no token has, and is dropped",
  ),
  Equivalent(
    "head/chunked.py",
    "drop the stop-gradient of the teacher's arrays",
    "the custom rule has no cotangent for them, so nothing flows there with or without it",
  ),
  Equivalent(
    "head/chunked.py",
    "drop the stop-gradient of the stats",
    "they leave the differentiated function as auxiliary output, which carries no gradient",
  ),
)
