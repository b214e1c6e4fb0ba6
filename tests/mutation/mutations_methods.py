"""Mutations of the TAID, SE-KD, EA-KD and AEKT."""

from __future__ import annotations

from tests.mutation.mutant import Equivalent, of_file

_TAID = [
  (
    "swap",
    "the target starts at the teacher",
    "log_u = (1 - share) * log_q + share * log_p",
    "log_u = share * log_q + (1 - share) * log_p",
  ),
  (
    "stop-gradient",
    "gradient flows through the target",
    "return jax.lax.stop_gradient(jnp.where(ruled_out, LOG_ZERO, log_u))",
    "return jnp.where(ruled_out, LOG_ZERO, log_u)",
  ),
  (
    "normaliser",
    "the target is not normalized",
    "log_u = jax.nn.log_softmax(jnp.where(ruled_out, -jnp.inf, log_u), axis=-1)",
    "log_u = jnp.where(ruled_out, -jnp.inf, log_u)",
  ),
  (
    "mask",
    "entries that both rule out come back",
    "log_u = jax.nn.log_softmax(jnp.where(ruled_out, -jnp.inf, log_u), axis=-1)",
    "log_u = jax.nn.log_softmax(log_u, axis=-1)",
  ),
  (
    "temperature",
    "T for T^2",
    "value = temperature**2 * forward_kl(",
    "value = temperature * forward_kl(",
  ),
  (
    "swap",
    "reverse KL",
    "forward_kl(log_q, _log_target(pair, log_q, log_p, share))",
    "forward_kl(_log_target(pair, log_q, log_p, share), log_q)",
  ),
  (
    "sign",
    "the relative increase",
    "decrease = (previous - loss) / jnp.maximum(previous, SMALLEST_LOSS)",
    "decrease = (loss - previous) / jnp.maximum(previous, SMALLEST_LOSS)",
  ),
  (
    "normaliser",
    "the absolute decrease",
    "decrease = (previous - loss) / jnp.maximum(previous, SMALLEST_LOSS)",
    "decrease = previous - loss",
  ),
  (
    "clip",
    "a first loss of 0 counts as a rise by 1e15",
    "decrease = (previous - loss) / jnp.maximum(previous, SMALLEST_LOSS)",
    "decrease = (previous - loss) / (previous + 1e-15)",
  ),
  (
    "swap",
    "momentum and its complement",
    "momentum = interpolation.momentum * state.momentum + (1 - interpolation.momentum) * decrease",
    "momentum = (1 - interpolation.momentum) * state.momentum + interpolation.momentum * decrease",
  ),
  (
    "normaliser",
    "the rise does not slow down near 1",
    "jax.nn.sigmoid(momentum) * (1 - state.share)",
    "jax.nn.sigmoid(momentum)",
  ),
  (
    "sign",
    "rises faster while the loss rises",
    "jax.nn.sigmoid(momentum) * (1 - state.share)",
    "jax.nn.sigmoid(-momentum) * (1 - state.share)",
  ),
  (
    "off by one",
    "the linear schedule ends at start + end",
    "linear = interpolation.start + (interpolation.end - interpolation.start) * elapsed",
    "linear = interpolation.start + interpolation.end * elapsed",
  ),
  (
    "clip",
    "the linear schedule is no floor",
    "share = jnp.maximum(linear, state.share + jnp.where(first, 0, rise))",
    "share = 0 * linear + state.share + jnp.where(first, 0, rise)",
  ),
  (
    "mask",
    "the first loss moves the share",
    "share = jnp.maximum(linear, state.share + jnp.where(first, 0, rise))",
    "share = jnp.maximum(linear, state.share + rise)",
  ),
  (
    "clip",
    "the share exceeds its end",
    "share = jnp.minimum(share, interpolation.end).astype(jnp.float32)",
    "share = share.astype(jnp.float32)",
  ),
  (
    "stop-gradient",
    "gradient flows through the schedule",
    "loss = jax.lax.stop_gradient(jnp.asarray(loss, jnp.float32))",
    "loss = jnp.asarray(loss, jnp.float32)",
  ),
  (
    "mask",
    "an empty batch moves the schedule",
    "counts = jnp.any(mask) & jnp.isfinite(loss)",
    "counts = jnp.isfinite(loss)",
  ),
  (
    "mask",
    "a loss that is not finite moves the schedule",
    "counts = jnp.any(mask) & jnp.isfinite(loss)",
    "counts = jnp.any(mask)",
  ),
  (
    "mask",
    "the schedule reads tokens outside the mask",
    'loss = masked_mean(stats["distillation_loss"], mask)',
    'loss = jnp.mean(stats["distillation_loss"])',
  ),
]

_ENTROPY_WEIGHTING = [
  (
    "swap",
    "SE-KD: the teacher's entropy says who is kept",
    "context.state.method.top_share(student_entropy_of(pair), fraction)",
    "context.state.method.top_share(pair.teacher_entropy, fraction)",
  ),
  (
    "normaliser",
    "SE-KD: kept tokens weigh 1, not 1 / fraction",
    "kept / fraction,",
    "kept,",
  ),
  (
    "swap",
    "SE-KD: the running distribution is the teacher's",
    'state.method.update(stats["student_entropy"], mask',
    'state.method.update(stats["teacher_entropy"], mask',
  ),
  (
    "normaliser",
    "SE-KD in batch: a sum over the kept tokens",
    "weight = kept * jnp.sum(mask) / jnp.maximum(jnp.sum(kept), 1)",
    "weight = kept * jnp.sum(mask)",
  ),
  (
    "normaliser",
    "SE-KD in batch: a mean over all tokens",
    "weight = kept * jnp.sum(mask) / jnp.maximum(jnp.sum(kept), 1)",
    "weight = kept * 1.0",
  ),
  (
    "mask",
    "EA-KD: the bound counts hidden entries",
    "entries = pair.log_q.shape[-1] if where is None else jnp.sum(jnp.asarray(where).astype(bool))",
    "entries = pair.log_q.shape[-1]",
  ),
  (
    "stop-gradient",
    "EA-KD: gradient flows through the student's entropy",
    'student = jax.lax.stop_gradient(promote("student_entropy", student_entropy))',
    'student = promote("student_entropy", student_entropy)',
  ),
  (
    "stop-gradient",
    "EA-KD: gradient flows through the teacher's entropy",
    'teacher = jax.lax.stop_gradient(promote("teacher_entropy", teacher_entropy))',
    'teacher = promote("teacher_entropy", teacher_entropy)',
  ),
  (
    "double where",
    "EA-KD: 0 / 0 for one class",
    "share = jnp.where(bound > 0, student / jnp.where(bound > 0, bound, 1), 0)",
    "share = student / bound",
  ),
  (
    "normaliser",
    "EA-KD: without its 1/2",
    "return 0.5 * (teacher + teacher * share)",
    "return teacher + teacher * share",
  ),
  (
    "sign",
    "EA-KD: a sure student weighs more",
    "return 0.5 * (teacher + teacher * share)",
    "return 0.5 * (teacher - teacher * share)",
  ),
  (
    "swap",
    "EA-KD: the entropies change places",
    "return entropy_weights(entropy_of(log_q), entropy_of(log_p), bound=bound)",
    "return entropy_weights(entropy_of(log_p), entropy_of(log_q), bound=bound)",
  ),
  (
    "temperature",
    "EA-KD: entropies at T = 1",
    "log_q, log_p = at_temperature(pair, temperature)\n  return entropy_weights",
    "log_q, log_p = pair.log_q, pair.log_p\n  return entropy_weights",
  ),
  (
    "temperature",
    "T for T^2",
    "(temperature**2 * weight)",
    "(temperature * weight)",
  ),
]

_EXPLICIT = [
  (
    "swap",
    "the ratio q / p",
    "(label_value(log_p, labels) - label_value(log_q, labels))",
    "(label_value(log_q, labels) - label_value(log_p, labels))",
  ),
  (
    "stop-gradient",
    "gradient flows through the ratio",
    "jax.lax.stop_gradient(jnp.exp(jnp.clip(log_ratio, -limit, limit)))",
    "jnp.exp(jnp.clip(log_ratio, -limit, limit))",
  ),
  (
    "clip",
    "the ratio is not clipped",
    "jnp.exp(jnp.clip(log_ratio, -limit, limit))",
    "jnp.exp(log_ratio)",
  ),
  (
    "clip",
    "the ratio is not clipped below",
    "jnp.exp(jnp.clip(log_ratio, -limit, limit))",
    "jnp.exp(jnp.minimum(log_ratio, limit))",
  ),
  (
    "options",
    "gamma is ignored",
    "log_ratio = options.gamma * (",
    "log_ratio = 1.0 * (",
  ),
  (
    "normaliser",
    "the explicit term has no weight of its own",
    "weight = options.weight * jax",
    "weight = 1.0 * jax",
  ),
  (
    "mask",
    "coupled: all entries count, the label too",
    "jnp.sum(jnp.exp(log_p), axis=-1, where=~is_label(log_p, labels))",
    "jnp.sum(jnp.exp(log_p), axis=-1)",
  ),
  (
    "swap",
    "coupled: 1 - q_y for 1 - p_y",
    "jnp.sum(jnp.exp(log_p), axis=-1, where=~is_label(log_p, labels))",
    "jnp.sum(jnp.exp(log_q), axis=-1, where=~is_label(log_p, labels))",
  ),
  (
    "swap",
    "the student's most probable token is the target",
    "labels = jnp.argmax(log_p, axis=-1)",
    "labels = jnp.argmax(log_q, axis=-1)",
  ),
  (
    "sign",
    "the explicit term is subtracted",
    "value = implicit + weight * target_class_kl(log_q, log_p, labels)",
    "value = implicit - weight * target_class_kl(log_q, log_p, labels)",
  ),
  (
    "swap",
    "the explicit term's student and teacher change places",
    "value = implicit + weight * target_class_kl(log_q, log_p, labels)",
    "value = implicit + weight * target_class_kl(log_p, log_q, labels)",
  ),
  (
    "temperature",
    "T for T^2",
    "return temperature**2 * value, weight",
    "return temperature * value, weight",
  ),
  (
    "axis",
    "the serial map is transposed",
    'return student_hidden @ params["serial"].astype(student_hidden.dtype)',
    'return student_hidden @ params["serial"].T.astype(student_hidden.dtype)',
  ),
  (
    "sign",
    "the labels' head maximizes its cross-entropy",
    'return {"cross_entropy": -label_value(log_q, labels), "student',
    'return {"cross_entropy": label_value(log_q, labels), "student',
  ),
]

MUTATIONS = (
  *of_file(
    ("losses/taid.py", "methods/taid.py"),
    ["losses/taid_test.py"],
    _TAID,
  ),
  *of_file(
    ("losses/entropy_weighting.py", "methods/entropy_weighting.py"),
    ["losses/entropy_weighting_test.py"],
    _ENTROPY_WEIGHTING,
  ),
  *of_file(
    ("losses/explicit_knowledge.py", "methods/explicit_knowledge.py"),
    ["losses/explicit_knowledge_test.py"],
    _EXPLICIT,
  ),
)

EQUIVALENTS = (
  Equivalent(
    "losses/entropy_weighting.py",
    "drop the stop-gradient of SE-KD's student entropy",
    "the share that is kept is detached again, and in-batch it is a bool",
  ),
)
