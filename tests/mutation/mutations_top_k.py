"""Mutations of teachers known through their top k entries."""

from __future__ import annotations

from tests.mutation.mutant import Equivalent, of_file

_BRACKET_HIGH = "return low, jnp.maximum(low, h_top + rest * (math.log(others) - log_rest))"

_TOP_K = [
  (
    "stop-gradient",
    "gradient flows through the teacher's logits",
    'logits = jax.lax.stop_gradient(check_logits("teacher_logits", teacher_logits))',
    'logits = check_logits("teacher_logits", teacher_logits)',
  ),
  (
    "mask",
    "hidden columns of the teacher are seen",
    "  logits = hide_columns(logits, where)\n  best",
    "  del where\n  best",
  ),
  (
    "normaliser",
    "log-probabilities are not normalized",
    "best - total[..., None], _log_rest",
    "best, _log_rest",
  ),
  (
    "normaliser",
    "the tail's mass is not normalized",
    "_log_rest(logits, ids) - total, token_entropy",
    "_log_rest(logits, ids), token_entropy",
  ),
  (
    "swap",
    "the entropy of the k entries for that of the vocabulary",
    "token_entropy(logits))",
    "token_entropy(best))",
  ),
  (
    "mask",
    "hidden columns of the student are in its ghost",
    'student_logits = hide_columns(check_logits("student_logits", student_logits), where)',
    'student_logits = check_logits("student_logits", student_logits)',
  ),
  (
    "mask",
    "hidden ids of the teacher count",
    "log_probs = jnp.where(jnp.asarray(where).astype(bool)[ids], log_probs, -jnp.inf)",
    "log_probs = jnp.asarray(log_probs)",
  ),
  (
    "swap",
    "the student's ghost is the teacher's tail",
    "jnp.concatenate([student, ghost[..., None]], axis=-1)",
    "jnp.concatenate([student, log_tail[..., None]], axis=-1)",
  ),
  (
    "stop-gradient",
    "no gradient reaches the student's other entries",
    "ghost = _log_rest(student_logits, ids)",
    "ghost = jax.lax.stop_gradient(_log_rest(student_logits, ids))",
  ),
  (
    "stop-gradient",
    "gradient flows through a stored teacher",
    'jax.lax.stop_gradient(promote(f"{name} of a TopK", value))',
    'promote(f"{name} of a TopK", value)',
  ),
  (
    "stop-gradient",
    "gradient flows through a stored entropy",
    'return jax.lax.stop_gradient(promote("entropy", top_k.entropy))',
    'return promote("entropy", top_k.entropy)',
  ),
  (
    "sign",
    "minus the entropy of the k entries",
    "h_top = jnp.sum(-jnp.exp(log_probs)",
    "h_top = jnp.sum(jnp.exp(log_probs)",
  ),
  (
    "mask",
    "0 log 0 is NaN",
    "jnp.where(log_probs > -jnp.inf, log_probs, 0), axis=-1)",
    "log_probs, axis=-1)",
  ),
  (
    "sign",
    "the tail lowers the lower bound",
    "low = h_top - rest * jnp.minimum(log_rest, least)",
    "low = h_top + rest * jnp.minimum(log_rest, least)",
  ),
  (
    "swap",
    "the larger of R and p_m",
    "low = h_top - rest * jnp.minimum(log_rest, least)",
    "low = h_top - rest * jnp.maximum(log_rest, least)",
  ),
  (
    "off by one",
    "the others are the whole vocabulary",
    "others = max(vocab_size - log_probs.shape[-1], 1)",
    "others = max(vocab_size, 1)",
  ),
  (
    "clip",
    "the bounds cross",
    _BRACKET_HIGH,
    "return low, h_top + rest * (math.log(others) - log_rest)",
  ),
  (
    "sign",
    "the upper bound adds log R",
    _BRACKET_HIGH,
    _BRACKET_HIGH.replace(" - log_rest", " + log_rest"),
  ),
  (
    "normaliser",
    "the sum of the bounds",
    "return (low + high) / 2",
    "return low + high",
  ),
  (
    "mask",
    "ids outside the mask stay",
    "jnp.where(mask[..., None], top_k.ids, first)",
    "jnp.where(mask[..., None] | True, top_k.ids, first)",
  ),
  (
    "mask",
    "values outside the mask stay",
    "jnp.where(mask[..., None], top_k.log_probs, -math.log(count))",
    "top_k.log_probs",
  ),
  (
    "mask",
    "tails outside the mask stay",
    "jnp.where(mask, top_k.log_tail, -jnp.inf)",
    "top_k.log_tail",
  ),
  (
    "mask",
    "the ghost includes the ids",
    "rest = jnp.put_along_axis(logits, ids, -jnp.inf, axis=-1, inplace=False)",
    "rest = jnp.asarray(logits)",
  ),
  (
    "double where",
    "the gradient of an empty ghost is 0 / 0",
    "total = jax.nn.logsumexp(jnp.where(left[..., None], rest, 0), axis=-1)",
    "total = jax.nn.logsumexp(rest, axis=-1)",
  ),
]

_SPREAD_TAIL = [
  (
    "normaliser",
    "each entry of the tail has all of its mass",
    "log_tail - math.log(others) if others",
    "log_tail if others",
  ),
  (
    "off by one",
    "the tail's mass is shared with the ids",
    "others = vocab_size - ids.shape[-1]",
    "others = vocab_size",
  ),
  (
    "swap",
    "the ids have the tail's share",
    "jnp.put_along_axis(dense, ids, log_probs, axis=-1, inplace=False)",
    "jnp.put_along_axis(dense, ids, share[..., None], axis=-1, inplace=False)",
  ),
]

MUTATIONS = (
  *of_file("losses/top_k.py", ["losses/top_k_test.py"], _TOP_K),
  *of_file("losses/top_k.py", ["losses/spread_tail_test.py"], _SPREAD_TAIL),
)

EQUIVALENTS: tuple[Equivalent, ...] = ()
