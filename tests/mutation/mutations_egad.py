"""Mutations of what EGAD is assembled from: terms, guidance, and the methods' shared parts."""

from __future__ import annotations

from tests.mutation.mutant import Equivalent, of_file

_TERMS = [
  (
    "swap",
    "log-probabilities change places",
    "log_q = log_probabilities(student_logits)",
    "log_q, log_p = log_p, log_probabilities(student_logits)",
  ),
  (
    "swap",
    "the student's entropy in the place of the teacher's",
    "entropy = entropy_of(log_p) if teacher_entropy is None",
    "entropy = entropy_of(log_q) if teacher_entropy is None",
  ),
  (
    "temperature",
    "the student is compared at T = 1",
    "log_probabilities(pair.student_logits, temperature=temperature)",
    "pair.log_q",
  ),
  (
    "temperature",
    "the teacher is compared at T = 1",
    "log_probabilities(pair.teacher_logits, temperature=temperature)",
    "pair.log_p",
  ),
  (
    "sign",
    "plus log q of the label",
    "cross_entropy=-label_value(pair.vocab_log_q, labels)",
    "cross_entropy=label_value(pair.vocab_log_q, labels)",
  ),
  (
    "swap",
    "cross-entropy of the teacher",
    "cross_entropy=-label_value(pair.vocab_log_q, labels)",
    "cross_entropy = -label_value(pair.log_p, labels)",
  ),
  (
    "swap",
    "the labels index the categories of a top k",
    "cross_entropy=-label_value(pair.vocab_log_q, labels)",
    "cross_entropy = -label_value(pair.log_q, labels)",
  ),
  (
    "swap",
    "the student's entropy is that of the categories of a top k",
    "entropy_of(jax.lax.stop_gradient(pair.vocab_log_q))",
    "entropy_of(jax.lax.stop_gradient(pair.log_q))",
  ),
  (
    "normaliser",
    "a top k's log-probabilities are not normalized",
    "log_q, log_p = log_probabilities(coarse_q), log_probabilities(coarse_p)",
    "log_q, log_p = log_probabilities(coarse_q), coarse_p",
  ),
  (
    "sign",
    "cross-entropy is subtracted",
    "loss = value + ce_weight * cross_entropy",
    "loss = value - ce_weight * cross_entropy",
  ),
  (
    "normaliser",
    "cross-entropy without its weight",
    "loss = value + ce_weight * cross_entropy",
    "loss = value + cross_entropy",
  ),
  (
    "stop-gradient",
    "gradient flows through the stats",
    "name: jax.lax.stop_gradient(jnp.broadcast_to(jnp.asarray(stat, loss.dtype), loss.shape))",
    "name: jnp.broadcast_to(jnp.asarray(stat, loss.dtype), loss.shape)",
  ),
]

_METHOD = [
  (
    "swap",
    "the running distribution is that of the student's entropy",
    'stats["teacher_entropy"], mask, half_life',
    'stats["student_entropy"], mask, half_life',
  ),
  (
    "mask",
    "the running distribution sees tokens outside the mask",
    'stats["teacher_entropy"], mask, half_life',
    'stats["teacher_entropy"], mask | True, half_life',
  ),
]

_IN_BATCH = [
  (
    "mask",
    "logits outside the mask reach the maths",
    "hide_columns(jnp.where(mask[..., None], logits, 0), where)",
    "hide_columns(logits, where)",
  ),
  (
    "mask",
    "hidden columns are seen",
    "hide_columns(jnp.where(mask[..., None], logits, 0), where)",
    "jnp.where(mask[..., None], logits, 0)",
  ),
  (
    "mask",
    "metrics average over all tokens",
    "masked_mean(stats[name], mask)",
    "jnp.mean(stats[name])",
  ),
  (
    "swap",
    "the metric of the weight is that of the temperature",
    '"temperature": "temperature_mean", "weight": "weight_mean"',
    '"temperature": "weight_mean", "weight": "temperature_mean"',
  ),
]

_PLACEMENT = [
  (
    "options",
    "the curriculum does not advance",
    "curriculum_weights(position, progress, **",
    "curriculum_weights(position, 0 * context.progress, **",
  ),
  (
    "swap",
    "the curriculum advances with the training instead of its own progress",
    "curriculum_weights(position, progress, **",
    "curriculum_weights(position, context.elapsed, **",
  ),
  (
    "options",
    "the running temperature reads another kind of position",
    "distribution.position(entropy, temperature.position)",
    "distribution.position(entropy)",
  ),
  (
    "normaliser",
    "in-batch weights are not normalized",
    "mask=mask, normalize=True",
    "mask=mask, normalize=False",
  ),
  (
    "mask",
    "in-batch weights are normalized over all tokens",
    "curriculum_weights(position, progress, mask=mask, normalize=True",
    "curriculum_weights(position, progress, normalize=True",
  ),
  (
    "mask",
    "the mean temperature is over all tokens",
    "masked_mean(function(adaptive()), mask)",
    "jnp.mean(function(adaptive()))",
  ),
  (
    "double where",
    "a mean over nothing is a temperature of 0",
    "return jnp.where(jnp.any(mask), masked_mean(function(adaptive()), mask), of_base)",
    "return masked_mean(function(adaptive()), mask)",
  ),
  (
    "comparison",
    "an entropy at the threshold is easy",
    "above = entropy >= branch.threshold",
    "above = entropy > branch.threshold",
  ),
  (
    "sign",
    "hard tokens are those of low entropy",
    "above = entropy >= branch.threshold",
    "above = entropy <= branch.threshold",
  ),
  (
    "mask",
    "a soft threshold reads tokens outside the mask",
    "where=mask & ~above, initial=-1",
    "where=~above, initial=-1",
  ),
  (
    "off by one",
    "a soft threshold is at the hardest easy token",
    "(hardest_below + easiest_above) / 2",
    "hardest_below",
  ),
  (
    "temperature",
    "mean_norm: E[T] for E[T^2]",
    'mean(jnp.square) if kind == "mean_norm"',
    'mean(lambda t: t) if kind == "mean_norm"',
  ),
  (
    "temperature",
    "the mean temperature is E[T^2]",
    "value = mean(lambda t: t)",
    "value = mean(jnp.square)",
  ),
  (
    "temperature",
    "mean_norm of one temperature: T for T^2",
    "mean_square=value**2",
    "mean_square=value",
  ),
  (
    "temperature",
    "a fixed temperature: T for T^2",
    '{"per_token": base**2, "linear"',
    '{"per_token": base, "linear"',
  ),
  (
    "temperature",
    "a fixed temperature, linear: T^2 for T",
    '"linear": base, "none"',
    '"linear": base**2, "none"',
  ),
]

_STEERED = [
  (
    "temperature",
    "the compensation is left out",
    "value = value * guidance.factor",
    "value = value * 1",
  ),
  (
    "temperature",
    "the compensation is squared",
    "value = value * guidance.factor",
    "value = value * guidance.factor**2",
  ),
  (
    "normaliser",
    "the curriculum's weight is left out",
    "value = value * guidance.weight",
    "value = value * 1",
  ),
  (
    "sign",
    "easy tokens lose their logit loss",
    "value = value * (1 - guidance.hard)",
    "value = value * guidance.hard",
  ),
  (
    "options",
    "the closed form counts the cross-entropy twice",
    "ce_weight=self.ce_weight,\n      **_reported(guidance),\n    )\n\n\ndef",
    "ce_weight=2 * self.ce_weight,\n      **_reported(guidance),\n    )\n\n\ndef",
  ),
  (
    "normaliser",
    "the closed form leaves out weights and factors",
    "self.weighted(divergence, guidance),",
    "divergence,",
  ),
]

_EGAD = [
  (
    "mask",
    "the loss is averaged over all tokens",
    "return masked_mean(loss, mask) + feature_loss, metrics",
    "return jnp.mean(loss) + feature_loss, metrics",
  ),
  (
    "sign",
    "the feature loss is subtracted",
    "return masked_mean(loss, mask) + feature_loss, metrics",
    "return masked_mean(loss, mask) - feature_loss, metrics",
  ),
  (
    "reduction",
    "the feature loss is left out",
    "return masked_mean(loss, mask) + feature_loss, metrics",
    "return masked_mean(loss, mask), metrics",
  ),
]

MUTATIONS = (
  *of_file(
    "losses/terms.py",
    ["losses/terms_test.py", "losses/method_test.py", "losses/egad_test.py"],
    _TERMS,
  ),
  *of_file("methods/method.py", ["losses/method_test.py"], _METHOD),
  *of_file(
    "losses/in_batch.py",
    ["losses/in_batch_test.py", "losses/egad_test.py", "losses/taid_test.py"],
    _IN_BATCH,
  ),
  *of_file(
    "losses/guidance.py",
    ["losses/guidance_test.py", "losses/method_test.py", "losses/egad_test.py"],
    _PLACEMENT,
  ),
  *of_file(
    "losses/entropy_guided.py",
    ["losses/egad_test.py", "losses/method_test.py", "head/closed_form_test.py"],
    _STEERED,
  ),
  *of_file(
    ("losses/egad.py", "methods/egad.py"), ["losses/egad_test.py", "losses/method_test.py"], _EGAD
  ),
)

EQUIVALENTS = (
  Equivalent(
    "losses/terms.py",
    "drop the stop-gradient of the student's entropy",
    "all stats are detached again where they are returned",
  ),
  Equivalent(
    "losses/entropy_guided.py",
    "drop the test for a factor of 1",
    "a product with 1.0 changes no bit; the test spares the program a multiplication",
  ),
)
