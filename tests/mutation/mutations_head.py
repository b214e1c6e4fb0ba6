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
    "soft_capped(student_logits, student_soft_cap), teacher_logits",
    "student_logits, teacher_logits",
  ),
  (
    "options",
    "the teacher gets the student's cap",
    "teacher_weight), teacher_soft_cap)",
    "teacher_weight), student_soft_cap)",
  ),
  (
    "mask",
    "stats outside the mask",
    "jnp.where(mask, jax.lax.stop_gradient(v), 0)",
    "jax.lax.stop_gradient(v)",
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
    "hidden states outside the mask reach the matmuls",
    "return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x, 0)",
    "return x",
  ),
  (
    "mask",
    "the student's first rows are cut instead of its padding",
    "student_weight = student_unembedding[:vocab].astype",
    "student_weight = student_unembedding[-vocab:].astype",
  ),
  (
    "mask",
    "the teacher's first rows are cut instead of its padding",
    "teacher_weight = teacher_unembedding[:vocab].astype",
    "teacher_weight = teacher_unembedding[-vocab:].astype",
  ),
  (
    "reduction",
    "evaluation keeps the last chunk's loss alone",
    "return (total + loss, unembedding_gradient), (None, stats)",
    "return (loss, unembedding_gradient), (None, stats)",
  ),
  (
    "reduction",
    "training keeps the last chunk's loss alone",
    "return (total + loss, unembedding_gradient), (hidden_gradient, stats)",
    "return (loss, unembedding_gradient), (hidden_gradient, stats)",
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
    "unembedding_gradient += jnp.einsum(",
    "unembedding_gradient -= jnp.einsum(",
  ),
  (
    "reduction",
    "the unembedding's gradient is that of the last chunk",
    "unembedding_gradient += jnp.einsum(",
    "unembedding_gradient = jnp.einsum(",
  ),
  (
    "promotion",
    "the unembedding's gradient is summed in bfloat16",
    '"nv,nd->vd", logits_gradient, student_rows, preferred_element_type=accumulator\n      )',
    '"nv,nd->vd", logits_gradient, student_rows\n      ).astype(jnp.bfloat16).astype(accumulator)',
  ),
  (
    "axis",
    "the unembedding's gradient multiplies the teacher's rows",
    '"nv,nd->vd", logits_gradient, student_rows, preferred',
    '"nv,nd->vd", logits_gradient, teacher_rows[:, : student_rows.shape[1]], preferred',
  ),
  (
    "off by one",
    "padding is kept, the first tokens are cut",
    "return x.reshape(-1, *x.shape[2:])[:num_tokens].reshape",
    "return x.reshape(-1, *x.shape[2:])[-num_tokens:].reshape",
  ),
  (
    "mask",
    "the gradient of padding rows comes first",
    "padding = ((0, rows[0] - vocab), (0, 0))",
    "padding = ((rows[0] - vocab, 0), (0, 0))",
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

_DENSE = [
  (
    "stop-gradient",
    "gradient flows to the teacher",
    "jax.lax.stop_gradient(teacher_logits)",
    "teacher_logits",
  ),
  (
    "mask",
    "hidden states outside the mask are multiplied",
    "hidden = jnp.where(flat[:, None], hidden.reshape(flat.size, -1), 0)",
    "hidden = hidden.reshape(flat.size, -1)",
  ),
  ("mask", "the loss ignores the mask", "jnp.sum(jnp.where(flat, loss, 0))", "jnp.sum(loss)"),
  ("mask", "stats outside the mask", "jnp.where(flat, v, 0)", "v"),
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
  *of_file("head/chunked.py", ["head/chunked_test.py"], _CHUNKED),
  *of_file("head/dense.py", ["head/dense_test.py", "head/chunked_test.py"], _DENSE),
  *of_file("head/sharded.py", ["head/sharded_test.py"], _SHARDED),
)

EQUIVALENTS = (
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
