"""Mutations of distillation across tokenizers: spans, projection, X-Token."""

from __future__ import annotations

from tests.mutation.mutant import Equivalent, of_file

_SPANS = [
  (
    "off by one",
    "chain rule: the last position of a span",
    "first = jax.ops.segment_min(positions, self.span",
    "first = jax.ops.segment_max(positions, self.span",
  ),
  (
    "normaliser",
    "a sum over the positions of a span",
    "mean = total / jnp.maximum(counts, 1)[:, None]",
    "mean = total / jnp.ones_like(counts)[:, None]",
  ),
  (
    "normaliser",
    "the mean of log-probabilities is not normalized",
    'return jax.nn.log_softmax(mean, axis=-1) if average == "logprob" else log_or_floor(mean)',
    'return mean if average == "logprob" else log_or_floor(mean)',
  ),
  (
    "swap",
    "the mean of log-probabilities for that of probabilities",
    'return log_p if average == "logprob" else jnp.exp(log_p)',
    "return log_p",
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
    "return jnp.where(positive, jnp.log(jnp.maximum(probabilities, smallest)), LOG_ZERO)",
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

_NLL = [
  (
    "sign",
    "the labels' likelihood is punished",
    "return self.total(-label_value(",
    "return self.total(label_value(",
  ),
]

_PROJECTION = [
  (
    "normaliser",
    "gathered entries ignore their weights",
    "result = result + rows * jnp.asarray(weight, operand.dtype)[:, None]",
    "result = result + rows",
  ),
  (
    "normaliser",
    "scattered entries ignore their weights",
    "rows = rows * jnp.asarray(table.weights, operand.dtype)[:, None]",
    "rows = rows + 0 * jnp.asarray(table.weights, operand.dtype)[:, None]",
  ),
  (
    "reduction",
    "entries of a crowded row are left out",
    "if table.rows.size:",
    "if False:",
  ),
  (
    "swap",
    "the gradient is that of the product",
    "lambda _, g: (_product(backward, g),)",
    "lambda _, g: (_product(forward, g),)",
  ),
  (
    "normaliser",
    "the projection of a traced matrix ignores its weights",
    ".add(q * weight, mode",
    ".add(q, mode",
  ),
]

_BLOCKS = [
  (
    "off by one",
    "a block takes one pair too many",
    "dtype=jnp.int32) - 1 for side in sides]",
    "dtype=jnp.int32) for side in sides]",
  ),
  (
    "mask",
    "blocks cross rows",
    "stop = jnp.minimum(jnp.minimum(*fits), end_of_row)",
    "stop = jnp.minimum(jnp.minimum(*fits), num_pairs)",
  ),
  (
    "mask",
    "a block's slots hold pairs of the next block",
    "return jnp.where(numbers < stop[:, None], known, nowhere)",
    "return jnp.where(numbers < num_tokens, known, nowhere)",
  ),
  (
    "mask",
    "a long pair is in a block too",
    "return starts[:-1], jnp.where(is_long, starts[:-1], starts[1:])",
    "return starts[:-1], starts[1:]",
  ),
  (
    "normaliser",
    "the gradient of a mean is that of the sum",
    "weights = members / counts[..., None]",
    "weights = members / 1",
  ),
  (
    "temperature",
    "the gradient of a mean at T = 1",
    "return probabilities * (of_tokens - inner) * inverse, None, None",
    "return probabilities * (of_tokens - inner), None, None",
  ),
]

_PAIRED = [
  (
    "reduction",
    "the last chunk's loss replaces the others",
    "return total + terms.loss, stats, hidden_gradient",
    "return terms.loss, stats, hidden_gradient",
  ),
]

_TERMS = [
  (
    "reduction",
    "long pairs are left out",
    "return self.seq > self.size",
    "return self.seq < 0",
  ),
  (
    "swap",
    "all rows compare the entries of the first",
    "kept = choice.kept.at[pairs[:, 0] // self.seq].get",
    "kept = choice.kept.at[0 * pairs[:, 0]].get",
  ),
  (
    "mask",
    "pairs that are not valid have a loss",
    "return jnp.sum(jnp.where(pairs.valid, value, 0)), stats",
    "return jnp.sum(value), stats",
  ),
  (
    "options",
    "the student gets the teacher's labels",
    "student_nll=student.nll(labels),",
    "student_nll=student.nll(teacher_labels),",
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
    "jnp.where(compared, log_or_floor(projected) - log_total, log_p)",
    "jnp.where(compared, log_or_floor(projected) + 0 * log_total, log_p)",
  ),
  (
    "double where",
    "the logarithm of no mass",
    "log_total = jnp.log(jnp.where(total > 0, total, 1))",
    "log_total = jnp.log(total)",
  ),
  (
    "mask",
    "entries that are not kept are compared",
    "compared = jnp.broadcast_to(compared, kept.shape) & kept",
    "compared = jnp.broadcast_to(compared, kept.shape)",
  ),
  (
    "sign",
    "the projected student is multiplied by its mass",
    "jnp.where(compared, log_or_floor(projected) - log_total, log_p)",
    "jnp.where(compared, log_or_floor(projected) + log_total, log_p)",
  ),
  (
    "normaliser",
    "entries that the student cannot express count",
    "compared = jnp.broadcast_to(compared, log_p.shape)",
    "compared = jnp.ones(log_p.shape, bool)",
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
    "return jnp.max(log_p, axis=0, where=valid[:, None], initial=-jnp.inf)",
    "return jnp.max(log_p, axis=0)",
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
    "normaliser",
    "cross-entropy without its weight",
    "loss = value + ce_weight * nll",
    "loss = value + nll",
  ),
  (
    "swap",
    "the entropy is that of the tempered teacher",
    'stats = {\n      "teacher_entropy": entropy_of(plain),',
    'stats = {\n      "teacher_entropy": entropy_of(log_p(2.0)),',
  ),
  (
    "stop-gradient",
    "the student is compared at T = 1",
    "warm = pairs.log_q(guidance.temperature), pairs.log_p",
    "warm = pairs.log_q(1.0), pairs.log_p",
  ),
]

_HEAD_TESTS = ["head/paired_test.py"]

MUTATIONS = (
  *of_file("losses/spans.py", ["losses/spans_test.py", "losses/cross_tokenizer_test.py"], _SPANS),
  *of_file("losses/spans.py", ["losses/x_token_test.py"], _NLL),
  *of_file(
    "losses/cross_tokenizer.py",
    ["losses/cross_tokenizer_test.py", "losses/universal_logit_distance_test.py"],
    _CROSS,
  ),
  *of_file("losses/sparse_projection.py", ["losses/sparse_projection_test.py"], _PROJECTION),
  *of_file("methods/x_token.py", ["losses/x_token_test.py"], _X_TOKEN),
  *of_file("head/span_blocks.py", _HEAD_TESTS, _BLOCKS),
  *of_file("head/paired.py", _HEAD_TESTS, _PAIRED),
  *of_file("head/span_terms.py", _HEAD_TESTS, _TERMS),
)

EQUIVALENTS: tuple[Equivalent, ...] = ()
