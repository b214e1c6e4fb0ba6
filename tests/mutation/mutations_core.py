"""Mutations of what all losses stand on: masks, log-probabilities, entropy."""

from __future__ import annotations

from tests.mutation.mutant import Equivalent, of_file

_REDUCTIONS = [
  (
    "mask",
    "a sum ignores its mask",
    "return jnp.sum(values, where=check_mask(mask, values.shape))",
    "return jnp.sum(values)",
  ),
  (
    "axis",
    "sums the last axis alone",
    "return jnp.sum(values, where=check_mask(mask, values.shape))",
    "return jnp.sum(values, axis=-1, where=check_mask(mask, values.shape))",
  ),
  (
    "normaliser",
    "divides by all tokens instead of the masked ones",
    "count = jnp.sum(check_mask(mask, values.shape))",
    "count = jnp.size(check_mask(mask, values.shape))\n  count = jnp.asarray(count)",
  ),
  (
    "normaliser",
    "0 / 0 when nothing is masked in",
    "jnp.maximum(count, 1).astype",
    "count.astype",
  ),
  (
    "normaliser",
    "the sum instead of the mean",
    "return masked_sum(values, mask) / jnp.maximum(count, 1).astype(values.dtype)",
    "return masked_sum(values, mask)",
  ),
  (
    "stop-gradient",
    "gradient flows through a median",
    'values = jax.lax.stop_gradient(promote("values", values))',
    'values = promote("values", values)',
  ),
  (
    "mask",
    "the median is over all tokens",
    "ordered = jnp.sort(jnp.where(mask, values, jnp.inf).reshape(-1))",
    "ordered = jnp.sort(values.reshape(-1))",
  ),
  (
    "off by one",
    "the lower of two middles is the one before",
    "low = ordered[jnp.maximum(count - 1, 0) // 2]",
    "low = ordered[jnp.maximum(count - 2, 0) // 2]",
  ),
  (
    "off by one",
    "the median of an even count is its upper middle",
    "low = ordered[jnp.maximum(count - 1, 0) // 2]",
    "low = ordered[count // 2]",
  ),
  (
    "swap",
    "the mean of the middle two for the lower one",
    "return low if lower else (low + ordered[count // 2]) / 2",
    "return (low + ordered[count // 2]) / 2 if lower else low",
  ),
  (
    "normaliser",
    "the sum of the middle two for their mean",
    "return low if lower else (low + ordered[count // 2]) / 2",
    "return low if lower else low + ordered[count // 2]",
  ),
]

_PROBABILITIES = [
  (
    "promotion",
    "bfloat16 logits stay bfloat16",
    "return array.astype(jnp.promote_types(array.dtype, jnp.float32))",
    "return array",
  ),
  (
    "promotion",
    "float64 becomes float32",
    "return array.astype(jnp.promote_types(array.dtype, jnp.float32))",
    "return array.astype(jnp.float32)",
  ),
  (
    "stop-gradient",
    "gradient flows to the teacher's logits",
    "return student_logits, jax.lax.stop_gradient(teacher_logits)",
    "return student_logits, teacher_logits",
  ),
  (
    "stop-gradient",
    "the student's logits are detached instead of the teacher's",
    "return student_logits, jax.lax.stop_gradient(teacher_logits)",
    "return jax.lax.stop_gradient(student_logits), teacher_logits",
  ),
  (
    "swap",
    "student and teacher change places",
    "return student_logits, jax.lax.stop_gradient(teacher_logits)",
    "return jax.lax.stop_gradient(teacher_logits), student_logits",
  ),
  (
    "stop-gradient",
    "gradient flows through the temperature",
    "jax.lax.stop_gradient(jnp.asarray(temperature)).astype",
    "jnp.asarray(temperature).astype",
  ),
  (
    "sign",
    "multiplies by a constant temperature",
    "logits if temperature == 1 else logits / temperature",
    "logits if temperature == 1 else logits * temperature",
  ),
  (
    "temperature",
    "ignores a constant temperature",
    "logits if temperature == 1 else logits / temperature",
    "logits",
  ),
  (
    "temperature",
    "T^2 for T, one per token",
    "scaled = logits / (temperature[..., None] if temperature.ndim else temperature)",
    "scaled = logits / (temperature[..., None] if temperature.ndim else temperature) ** 2",
  ),
  (
    "axis",
    "softmax over the tokens",
    "jax.nn.log_softmax(scaled, axis=-1)",
    "jax.nn.log_softmax(scaled, axis=0)",
  ),
  (
    "mask",
    "-inf logits stay -inf",
    "return jnp.where(scaled == -jnp.inf, LOG_ZERO, log_p)",
    "return log_p",
  ),
  (
    "double where",
    "a clip instead of a selection at -inf logits",
    "return jnp.where(scaled == -jnp.inf, LOG_ZERO, log_p)",
    "return jnp.maximum(log_p, LOG_ZERO)",
  ),
  (
    "mask",
    "hidden columns are seen",
    "tuple(range(logits.ndim - 1))), logits, -jnp.inf)",
    "tuple(range(logits.ndim - 1))), logits, logits)",
  ),
  (
    "mask",
    "hides the real columns",
    "tuple(range(logits.ndim - 1))), logits, -jnp.inf)",
    "tuple(range(logits.ndim - 1))), -jnp.inf, logits)",
  ),
  (
    "mask",
    "hidden columns count 0 instead of nothing",
    "tuple(range(logits.ndim - 1))), logits, -jnp.inf)",
    "tuple(range(logits.ndim - 1))), logits, 0)",
  ),
  (
    "mask",
    "sums all log-probabilities instead of the label's",
    "jnp.where(is_label(values, labels), values, 0)",
    "jnp.where(is_label(values, labels), values, values)",
  ),
  (
    "off by one",
    "reads the entry after the label",
    "return ids == labels[..., None]",
    "return ids == labels[..., None] + 1",
  ),
  (
    "comparison",
    "all entries up to the label",
    "return ids == labels[..., None]",
    "return ids <= labels[..., None]",
  ),
  (
    "axis",
    "counts ids along the tokens",
    "values.shape, values.ndim - 1)",
    "values.shape, 0)",
  ),
]

_PROGRESS = [
  (
    "clip",
    "a progress beyond [0, 1] goes on",
    "return jnp.clip(jax.lax.stop_gradient(jnp.asarray(value, jnp.float32)), 0, 1)",
    "return jax.lax.stop_gradient(jnp.asarray(value, jnp.float32))",
  ),
  (
    "clip",
    "a progress below 0 goes on",
    "return jnp.clip(jax.lax.stop_gradient(jnp.asarray(value, jnp.float32)), 0, 1)",
    "return jnp.minimum(jax.lax.stop_gradient(jnp.asarray(value, jnp.float32)), 1)",
  ),
  (
    "stop-gradient",
    "gradient flows through the progress",
    "return jnp.clip(jax.lax.stop_gradient(jnp.asarray(value, jnp.float32)), 0, 1)",
    "return jnp.clip(jnp.asarray(value, jnp.float32), 0, 1)",
  ),
]

_ENTROPY = [
  (
    "sign",
    "minus the entropy",
    "return jnp.sum(-jnp.exp(log_p) * log_p, axis=-1)",
    "return jnp.sum(jnp.exp(log_p) * log_p, axis=-1)",
  ),
  (
    "axis",
    "sums over the tokens",
    "return jnp.sum(-jnp.exp(log_p) * log_p, axis=-1)",
    "return jnp.sum(-jnp.exp(log_p) * log_p, axis=0)",
  ),
  (
    "reduction",
    "mean for sum",
    "return jnp.sum(-jnp.exp(log_p) * log_p, axis=-1)",
    "return jnp.mean(-jnp.exp(log_p) * log_p, axis=-1)",
  ),
  (
    "mask",
    "the entropy sees hidden columns",
    'check_logits("logits", logits), where=where)',
    'check_logits("logits", logits))',
  ),
  (
    "stop-gradient",
    "gradient flows through a position in the batch",
    'entropy = jax.lax.stop_gradient(promote("entropy", entropy))',
    'entropy = promote("entropy", entropy)',
  ),
  (
    "mask",
    "positions outside the mask are not 1/2",
    "return jnp.where(mask, kinds[kind](entropy, mask), 0.5)",
    "return kinds[kind](entropy, mask)",
  ),
  (
    "swap",
    "median over H",
    "ratio = jnp.maximum(median, ENTROPY_FLOOR) / jnp.maximum(entropy, ENTROPY_FLOOR)",
    "ratio = jnp.maximum(entropy, ENTROPY_FLOOR) / jnp.maximum(median, ENTROPY_FLOOR)",
  ),
  (
    "temperature",
    "the ratio instead of its square",
    "return 1.0 / (1.0 + ratio**2)",
    "return 1.0 / (1.0 + ratio)",
  ),
  (
    "clip",
    "0 / 0 at two certain teachers",
    "ratio = jnp.maximum(median, ENTROPY_FLOOR) / jnp.maximum(entropy, ENTROPY_FLOOR)",
    "ratio = median / entropy",
  ),
  (
    "mask",
    "ranks among all tokens",
    "flat = jnp.where(mask, entropy, jnp.inf).reshape(-1)",
    "flat = entropy.reshape(-1)",
  ),
  (
    "sign",
    "tokens outside the mask rank first",
    "flat = jnp.where(mask, entropy, jnp.inf).reshape(-1)",
    "flat = jnp.where(mask, entropy, -jnp.inf).reshape(-1)",
  ),
  (
    "comparison",
    "ties get their lowest rank",
    'up_to = jnp.searchsorted(ordered, flat, side="right", method="sort")',
    'up_to = jnp.searchsorted(ordered, flat, side="left", method="sort") + 1',
  ),
  (
    "comparison",
    "ties get their highest rank",
    'below = jnp.searchsorted(ordered, flat, side="left", method="sort")',
    'below = jnp.searchsorted(ordered, flat, side="right", method="sort") - 1',
  ),
  (
    "off by one",
    "ranks from 1",
    "rank = (below + up_to - 1).astype(entropy.dtype) / 2",
    "rank = (below + up_to + 1).astype(entropy.dtype) / 2",
  ),
  ("off by one", "rank over n", "others = jnp.sum(mask) - 1", "others = jnp.sum(mask)"),
  (
    "normaliser",
    "rank over the tokens of the batch",
    "others = jnp.sum(mask) - 1",
    "others = jnp.asarray(mask.size - 1)",
  ),
  (
    "double where",
    "a lone token is at 0",
    "jnp.where(others > 0, rank / jnp.maximum(others, 1), 0.5)",
    "(rank / jnp.maximum(others, 1))",
  ),
  (
    "mask",
    "the minimum is over all tokens",
    "low = jnp.min(entropy, where=mask, initial=jnp.inf)",
    "low = jnp.min(entropy)",
  ),
  (
    "mask",
    "the maximum is over all tokens",
    "high = jnp.max(entropy, where=mask, initial=-jnp.inf)",
    "high = jnp.max(entropy)",
  ),
  ("sign", "distance from the maximum", "(entropy - low) / jnp", "(high - entropy) / jnp"),
  (
    "normaliser",
    "over the maximum instead of the spread",
    "spread = high - low",
    "spread = jnp.where(high > low, high, 0)",
  ),
  (
    "double where",
    "equal entropies are at 0",
    "return jnp.where(spread > 0, (entropy - low) / jnp.where(spread > 0, spread, 1), 0.5)",
    "return (entropy - low) / jnp.where(spread > 0, spread, 1)",
  ),
  (
    "mask",
    "the median is over all tokens",
    "median_ratio(entropy, masked_median(entropy, mask))",
    "median_ratio(entropy, masked_median(entropy, mask | True))",
  ),
  (
    "options",
    "the median of an even count is its lower middle",
    "median_ratio(entropy, masked_median(entropy, mask))",
    "median_ratio(entropy, masked_median(entropy, mask, lower=True))",
  ),
  (
    "normaliser",
    "twice the median",
    "median_ratio(entropy, masked_median(entropy, mask))",
    "median_ratio(entropy, 2 * masked_median(entropy, mask))",
  ),
]

MUTATIONS = (
  *of_file("losses/reductions.py", ["losses/reductions_test.py"], _REDUCTIONS),
  *of_file(
    "losses/probabilities.py",
    ["losses/probabilities_test.py", "losses/divergences_test.py"],
    _PROBABILITIES,
  ),
  *of_file("losses/probabilities.py", ["losses/curriculum_test.py"], _PROGRESS),
  *of_file("losses/entropy.py", ["losses/entropy_test.py"], _ENTROPY),
)

EQUIVALENTS = (
  Equivalent(
    "losses/reductions.py",
    "a product with the mask for the selection in `masked_sum`",
    "XLA makes a selection of a product with a converted bool (seen on CPU); the code does not rely"
    " on it",
  ),
  Equivalent(
    "losses/entropy.py",
    "drop the inner `jnp.where(spread > 0, spread, 1)` of min-max positions",
    "the entropies are detached, so the guard protects no gradient and the value is selected away",
  ),
  Equivalent(
    "losses/entropy.py",
    "drop `jnp.any(mask)` of median-ratio positions",
    "without masked tokens every position is outside the mask, where 1/2 is selected",
  ),
)
