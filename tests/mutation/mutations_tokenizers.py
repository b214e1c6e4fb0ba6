"""Mutations of distillation across tokenizers: spans, projection, X-Token."""

from __future__ import annotations

from tests.mutation.mutant import Equivalent, of_file

_SPANS = [
  (
    "off by one",
    "chain rule: the last position of a span",
    "first = jax.ops.segment_min(places, self.span",
    "first = jax.ops.segment_max(places, self.span",
  ),
  (
    "normaliser",
    "a sum over the positions of a span",
    "counts = jnp.maximum(self.counts, 1)[:, None]",
    "counts = jnp.ones_like(self.counts)[:, None]",
  ),
  (
    "normaliser",
    "the mean of log-probabilities is not normalized",
    "return jax.nn.log_softmax(self.total(log_p) / counts, axis=-1)",
    "return self.total(log_p) / counts",
  ),
  (
    "swap",
    "the mean of log-probabilities for that of probabilities",
    "return log_or_floor(self.total(jnp.exp(log_p)) / counts)",
    "return self.total(log_p) / counts",
  ),
  (
    "temperature",
    "spans are averaged at T = 1",
    "log_p = log_probabilities(self.logits, temperature=temperature)",
    "log_p = log_probabilities(self.logits)",
  ),
  (
    "off by one",
    "a position reads the next span's value",
    "return jnp.append(values, jnp.ones((), values.dtype))[self.span]",
    "return jnp.append(jnp.ones((), values.dtype), values)[self.span]",
  ),
  (
    "mask",
    "spans of one side alone count",
    "index = jnp.where(jnp.append(valid, jnp.zeros((), bool))[index], index, valid.shape[0])",
    "index = jnp.asarray(index)",
  ),
  (
    "mask",
    "logits in no span reach the maths",
    "logits = jnp.where((index < valid.shape[0])[:, None], logits, 0)",
    "logits = jnp.asarray(logits)",
  ),
  (
    "stop-gradient",
    "gradient flows to the teacher",
    "teacher = side(jax.lax.stop_gradient(teacher_logits), teacher_spans)",
    "teacher = side(teacher_logits, teacher_spans)",
  ),
  (
    "double where",
    "the logarithm of 0",
    "return jnp.where(positive, jnp.log(jnp.where(positive, probabilities, 1)), LOG_ZERO)",
    "return jnp.where(positive, jnp.log(probabilities), LOG_ZERO)",
  ),
  (
    "mask",
    "a span of either side is valid",
    "return jnp.logical_and(*(counts > 0 for counts in sides))",
    "return jnp.logical_or(*(counts > 0 for counts in sides))",
  ),
  (
    "off by one",
    "spans are numbered from 0",
    "jnp.where((spans >= 1) & (spans <= size), spans - 1, size)",
    "jnp.where((spans >= 0) & (spans < size), spans, size)",
  ),
  (
    "comparison",
    "the last span is dropped",
    "(spans >= 1) & (spans <= size)",
    "(spans >= 1) & (spans < size)",
  ),
]

_CROSS = [
  (
    "swap",
    "the teacher's entropy is the student's",
    "values, valid, student_entropy, teacher_entropy = jnp",
    "values, valid, teacher_entropy, student_entropy = jnp",
  ),
  (
    "mask",
    "the mean is over all spans",
    "return masked_mean(values, valid), jax.tree.map",
    "return jnp.mean(values), jax.tree.map",
  ),
  (
    "stop-gradient",
    "sorted distance: gradient flows to the teacher",
    'teacher_logits = jax.lax.stop_gradient(check_logits("teacher_logits", teacher_logits))',
    'teacher_logits = check_logits("teacher_logits", teacher_logits)',
  ),
  (
    "comparison",
    "common tokens: rounding keeps a weight of 1 out",
    "candidates = rows[weight >= minimum_weight - _ROUNDING]",
    "candidates = rows[weight > minimum_weight + _ROUNDING]",
  ),
  (
    "sign",
    "common tokens: the smallest weight wins",
    "np.lexsort((candidates, -weight[candidates]))",
    "np.lexsort((candidates, weight[candidates]))",
  ),
  (
    "normaliser",
    "the projection ignores its weights",
    ".add(columns[rows] * weight, mode",
    ".add(columns[rows], mode",
  ),
  (
    "reduction",
    "the projection keeps one student token per teacher token",
    ".add(columns[rows] * weight, mode",
    ".set(columns[rows] * weight, mode",
  ),
  (
    "axis",
    "the projection reads its first place alone",
    "for place in range(ids.shape[1]):",
    "for place in range(1):",
  ),
  (
    "sign",
    "sorted distance: signed differences",
    "return jnp.sum(jnp.where(differ, jnp.abs(q - p), 0), axis=-1)",
    "return jnp.sum(jnp.where(differ, q - p, 0), axis=-1)",
  ),
  (
    "mask",
    "sorted distance: rounding chooses the sign at identical models",
    "return jnp.sum(jnp.where(differ, jnp.abs(q - p), 0), axis=-1)",
    "return jnp.sum(jnp.abs(q - p), axis=-1)",
  ),
  (
    "sign",
    "sorted upwards: padding is compared with the likeliest",
    "return jnp.sort(values, axis=-1, descending=True)",
    "return jnp.sort(values, axis=-1)",
  ),
  (
    "normaliser",
    "the projected student is not normalized",
    "jnp.where(reached, log_or_floor(projected) - log_total, log_p)",
    "jnp.where(reached, log_or_floor(projected) + 0 * log_total, log_p)",
  ),
  (
    "double where",
    "the logarithm of no mass",
    "log_total = jnp.log(jnp.where(total > 0, total, 1))",
    "log_total = jnp.log(total)",
  ),
  (
    "off by one",
    "entries that are not kept share the last place",
    "jnp.full(size, options.teacher_top_k, ids.dtype)",
    "jnp.full(size, options.teacher_top_k - 1, ids.dtype)",
  ),
  (
    "sign",
    "the projected student is multiplied by its mass",
    "jnp.where(reached, log_or_floor(projected) - log_total, log_p)",
    "jnp.where(reached, log_or_floor(projected) + log_total, log_p)",
  ),
  (
    "normaliser",
    "entries that the student cannot express count",
    "log_p = log_probabilities(log_p, where=reached)",
    "del reached\n  reached = jnp.ones(log_p.shape[-1], bool)",
  ),
  (
    "swap",
    "common pairs: forward KL of the student",
    "common = log_divergences.forward_kl(log_q[:, student_ids], log_p[:, teacher_ids])",
    "common = log_divergences.forward_kl(log_p[:, teacher_ids], log_q[:, student_ids])",
  ),
  (
    "sign",
    "uncommon entries are subtracted",
    "return common + sorted_distance(q, p, largest",
    "return common - sorted_distance(q, p, largest",
  ),
  (
    "mask",
    "spans that do not count choose the entries",
    "best = jnp.max(log_p, axis=0, where=valid[:, None], initial=-jnp.inf)",
    "best = jnp.max(log_p, axis=0)",
  ),
]

_X_TOKEN = [
  (
    "temperature",
    "the compensation is left out",
    "value = value * guidance.factor",
    "value = value * 1",
  ),
  (
    "normaliser",
    "the curriculum's weight is left out",
    "value = value * guidance.weight",
    "value = value * 1",
  ),
  (
    "sign",
    "the labels' likelihood is punished",
    "row.student.total(-label_value(",
    "row.student.total(label_value(",
  ),
  (
    "normaliser",
    "cross-entropy without its weight",
    "loss = value + ce_weight * nll",
    "loss = value + nll",
  ),
  (
    "mask",
    "spans that do not count have a loss",
    "return jnp.where(row.valid, loss, 0), {",
    "return loss, {",
  ),
  (
    "swap",
    "the entropy is the student's",
    "entropy = entropy_of(log_p)",
    "entropy = entropy_of(log_q)",
  ),
]

MUTATIONS = (
  *of_file(
    "losses/spans.py", ["losses/spans_test.py", "losses/cross_tokenizer_test.py"], _SPANS
  ),
  *of_file(
    "losses/cross_tokenizer.py",
    ["losses/cross_tokenizer_test.py", "losses/universal_logit_distance_test.py"],
    _CROSS,
  ),
  *of_file("methods/x_token.py", ["losses/x_token_test.py"], _X_TOKEN),
)

EQUIVALENTS: tuple[Equivalent, ...] = ()
