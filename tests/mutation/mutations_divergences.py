"""Mutations of the divergences."""

from __future__ import annotations

from tests.mutation.mutant import Equivalent, of_file

_FORWARD = "return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)"
_REVERSE = "return jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)"
_JENSEN = "return beta * forward_kl(log_m, log_p) + (1 - beta) * forward_kl(log_m, log_q)"
_VARIATION = "jnp.where(_apart(log_q, log_p), gap, 0)"
_HEAD = "mass_before = jnp.cumsum(-negative_p, axis=-1) + negative_p"
_MIX = (
  "return forward_share * forward_kl(log_q, log_p) + (1 - forward_share) * reverse_kl(log_q, log_p)"
)
_TOKEN_WISE = "return jnp.sum((w * jnp.exp(log_p) - (1 - w) * jnp.exp(log_q)) * log_ratio, axis=-1)"
_LOG_MIXTURE = "return jnp.logaddexp(math.log(share) + log_a, math.log1p(-share) + log_b)"
_OWN = "own = (alpha * jnp.exp(total * log_p) + beta * jnp.exp(total * log_q)) / total"

_ROWS = [
  ("sign", "minus forward KL", _FORWARD, _FORWARD.replace("jnp.exp", "-jnp.exp")),
  ("swap", "forward KL weighted by q", _FORWARD, _FORWARD.replace("exp(log_p)", "exp(log_q)")),
  ("axis", "forward KL sums over the tokens", _FORWARD, _FORWARD.replace("-1)", "0)")),
  ("reduction", "forward KL: mean for sum", _FORWARD, _FORWARD.replace("jnp.sum", "jnp.mean")),
  (
    "stop-gradient",
    "forward KL detaches the student",
    _FORWARD,
    _FORWARD.replace("- log_q", "- jax.lax.stop_gradient(log_q)"),
  ),
  ("sign", "minus reverse KL", _REVERSE, _REVERSE.replace("jnp.exp", "-jnp.exp")),
  ("swap", "reverse KL weighted by p", _REVERSE, _REVERSE.replace("exp(log_q)", "exp(log_p)")),
  ("axis", "reverse KL sums over the tokens", _REVERSE, _REVERSE.replace("-1)", "0)")),
  (
    "stop-gradient",
    "reverse KL detaches its weights",
    _REVERSE,
    _REVERSE.replace("jnp.exp(log_q)", "jax.lax.stop_gradient(jnp.exp(log_q))"),
  ),
  (
    "swap",
    "Jensen-Shannon: beta weighs the student in the mixture",
    "log_m = _log_mixture(log_p, log_q, beta)",
    "log_m = _log_mixture(log_q, log_p, beta)",
  ),
  (
    "swap",
    "Jensen-Shannon: beta weighs KL(q || m)",
    _JENSEN,
    "return (1 - beta) * forward_kl(log_m, log_p) + beta * forward_kl(log_m, log_q)",
  ),
  (
    "normaliser",
    "Jensen-Shannon: KL(q || m) without its weight",
    _JENSEN,
    _JENSEN.replace("(1 - beta) * ", ""),
  ),
  ("sign", "Jensen-Shannon: the two KLs subtract", _JENSEN, _JENSEN.replace(" + (1", " - (1")),
  (
    "swap",
    "Jensen-Shannon: KL(m || q)",
    _JENSEN,
    _JENSEN.replace("forward_kl(log_m, log_q)", "forward_kl(log_q, log_m)"),
  ),
  (
    "swap",
    "skew forward KL: alpha weighs the student",
    "return forward_kl(_log_mixture(log_p, log_q, alpha), log_p)",
    "return forward_kl(_log_mixture(log_q, log_p, alpha), log_p)",
  ),
  (
    "swap",
    "skew reverse KL: alpha weighs the teacher",
    "return forward_kl(_log_mixture(log_q, log_p, alpha), log_q)",
    "return forward_kl(_log_mixture(log_p, log_q, alpha), log_q)",
  ),
  (
    "stop-gradient",
    "skew reverse KL detaches the mixture",
    "return forward_kl(_log_mixture(log_q, log_p, alpha), log_q)",
    "return forward_kl(jax.lax.stop_gradient(_log_mixture(log_q, log_p, alpha)), log_q)",
  ),
  (
    "normaliser",
    "total variation without its 1/2",
    "return 0.5 * jnp.sum(jnp",
    "return jnp.sum(jnp",
  ),
  (
    "mask",
    "total variation: rounding chooses the sign at identical models",
    _VARIATION,
    "gap",
  ),
  (
    "sign",
    "total variation: signed differences",
    "gap = jnp.abs(jnp.exp(log_q) - jnp.exp(log_p))",
    "gap = jnp.exp(log_q) - jnp.exp(log_p)",
  ),
  (
    "comparison",
    "distances: small differences count, large ones do not",
    "jnp.abs(log_q - log_p) > rounding",
    "jnp.abs(log_q - log_p) < rounding",
  ),
  (
    "normaliser",
    "Hellinger without its 1/2",
    "square = 0.5 * jnp.sum(",
    "square = jnp.sum(",
  ),
  (
    "temperature",
    "Hellinger: absolute for squared differences",
    "jnp.where(_apart(log_q, log_p), gap**2, 0)",
    "jnp.where(_apart(log_q, log_p), jnp.abs(gap), 0)",
  ),
  (
    "normaliser",
    "Hellinger of probabilities, not of their roots",
    "gap = jnp.exp(0.5 * log_q) - jnp.exp(0.5 * log_p)",
    "gap = jnp.exp(log_q) - jnp.exp(log_p)",
  ),
  (
    "temperature",
    "squared Hellinger",
    "jnp.where(same, 0, jnp.sqrt(jnp.where(same, 1, square)))",
    "jnp.where(same, 0, square)",
  ),
  (
    "double where",
    "Hellinger: the slope of the root at 0",
    "jnp.where(same, 0, jnp.sqrt(jnp.where(same, 1, square)))",
    "jnp.sqrt(square)",
  ),
  (
    "off by one",
    "alpha-beta at beta 0: without the - 1",
    "terms = jnp.exp(alpha * log_p) * (log_ratio - 1) + jnp.exp(alpha * log_q)",
    "terms = jnp.exp(alpha * log_p) * log_ratio + jnp.exp(alpha * log_q)",
  ),
  (
    "normaliser",
    "alpha-beta at beta 0: alpha for alpha^2",
    "return jnp.sum(terms, axis=-1) / alpha**2",
    "return jnp.sum(terms, axis=-1) / alpha",
  ),
  (
    "swap",
    "alpha-beta at alpha 0: p and q",
    "terms = jnp.exp(beta * log_q) * (log_ratio - 1) + jnp.exp(beta * log_p)",
    "terms = jnp.exp(beta * log_p) * (log_ratio - 1) + jnp.exp(beta * log_q)",
  ),
  (
    "normaliser",
    "alpha-beta at alpha 0: beta for beta^2",
    "return jnp.sum(terms, axis=-1) / beta**2",
    "return jnp.sum(terms, axis=-1) / beta",
  ),
  (
    "swap",
    "alpha-beta: alpha weighs the student's own term",
    _OWN,
    _OWN.replace("total * log_p", "total * LOG").replace("log_q", "log_p").replace("LOG", "log_q"),
  ),
  (
    "normaliser",
    "alpha-beta: own terms not over alpha + beta",
    _OWN,
    _OWN.removesuffix(" / total"),
  ),
  (
    "swap",
    "alpha-beta: p^b q^a",
    "jnp.exp(alpha * log_p + beta * log_q)",
    "jnp.exp(alpha * log_q + beta * log_p)",
  ),
  (
    "normaliser",
    "alpha-beta: over alpha alone",
    "axis=-1) / (alpha * beta)",
    "axis=-1) / alpha",
  ),
  (
    "stop-gradient",
    "adaptive KL: gradient flows through the gaps",
    "gap = jax.lax.stop_gradient(jnp.abs(p - jnp.exp(log_q)))",
    "gap = jnp.abs(p - jnp.exp(log_q))",
  ),
  (
    "sign",
    "adaptive KL: signed gaps",
    "gap = jax.lax.stop_gradient(jnp.abs(p - jnp.exp(log_q)))",
    "gap = jax.lax.stop_gradient(p - jnp.exp(log_q))",
  ),
  (
    "sign",
    "adaptive KL: the head is the least likely entries",
    "jax.lax.sort((-p, gap)",
    "jax.lax.sort((p - 1, gap)",
  ),
  (
    "off by one",
    "adaptive KL: the entry that crosses the mass is in the tail",
    _HEAD,
    _HEAD.removesuffix(" + negative_p"),
  ),
  (
    "comparison",
    "adaptive KL: <= for <",
    "in_head = mass_before < head_mass",
    "in_head = mass_before <= head_mass",
  ),
  (
    "mask",
    "adaptive KL: the tail's gap includes the head's",
    "tail = jnp.sum(gap, axis=-1, where=~in_head)",
    "tail = jnp.sum(gap, axis=-1)",
  ),
  (
    "double where",
    "adaptive KL: 0 / 0 at identical models",
    "jnp.where(same, 0.5, head / jnp.where(same, 1, head + tail))",
    "head / (head + tail)",
  ),
  (
    "swap",
    "adaptive KL: the head gets reverse KL",
    _MIX,
    _MIX.replace("forward_kl", "KL")
    .replace("reverse_kl", "forward_kl")
    .replace("KL", "reverse_kl"),
  ),
  (
    "stop-gradient",
    "token-wise KL: gradient flows through w",
    "w = jax.lax.stop_gradient(jax.nn.sigmoid(log_ratio))",
    "w = jax.nn.sigmoid(log_ratio)",
  ),
  ("sign", "token-wise KL: q / (p + q)", "jax.nn.sigmoid(log_ratio)", "jax.nn.sigmoid(-log_ratio)"),
  ("sign", "token-wise KL: adds the terms", _TOKEN_WISE, _TOKEN_WISE.replace(" - (1", " + (1")),
  (
    "swap",
    "token-wise KL: log(q / p)",
    "log_ratio = log_p - log_q\n",
    "log_ratio = log_q - log_p\n",
  ),
  (
    "swap",
    "target class: weighted by q",
    "value = value + jnp.exp(log_p_part) * (log_p_part - log_q_part)",
    "value = value + jnp.exp(log_q_part) * (log_p_part - log_q_part)",
  ),
  (
    "sign",
    "target class: log(q / p)",
    "value = value + jnp.exp(log_p_part) * (log_p_part - log_q_part)",
    "value = value + jnp.exp(log_p_part) * (log_q_part - log_p_part)",
  ),
  (
    "normaliser",
    "non-target class: not renormalized",
    "jnp.where(at_label, LOG_ZERO, logs - _target_and_rest(logs, labels)[1][..., None])",
    "jnp.where(at_label, LOG_ZERO, logs)",
  ),
  (
    "mask",
    "non-target class: the label stays",
    "jnp.where(at_label, LOG_ZERO, logs - _target_and_rest(logs, labels)[1][..., None])",
    "logs - _target_and_rest(logs, labels)[1][..., None]",
  ),
  (
    "mask",
    "the rest includes the label",
    "axis=-1, where=~is_label(log_p, labels))",
    "axis=-1)",
  ),
  (
    "mask",
    "the rest is the label",
    "axis=-1, where=~is_label(log_p, labels))",
    "axis=-1, where=is_label(log_p, labels))",
  ),
  (
    "normaliser",
    "a mixture without the logarithm of its second share",
    _LOG_MIXTURE,
    _LOG_MIXTURE.replace("math.log1p(-share) + ", ""),
  ),
  (
    "sign",
    "a mixture with shares s and 1 + s",
    _LOG_MIXTURE,
    _LOG_MIXTURE.replace("log1p(-share)", "log1p(share)"),
  ),
  (
    "swap",
    "a mixture of share 0 is its first part",
    "if share == 0:\n    return log_b",
    "if share == 0:\n    return log_a",
  ),
  (
    "swap",
    "a mixture of share 1 is its second part",
    "if share == 1:\n    return log_a",
    "if share == 1:\n    return log_b",
  ),
]

_ON_LOGITS = [
  (
    "swap",
    "student and teacher change places",
    "log_probabilities(student_logits, temperature=temperature, where=where),\n"
    "    log_probabilities(teacher_logits, temperature=temperature, where=where),",
    "log_probabilities(teacher_logits, temperature=temperature, where=where),\n"
    "    log_probabilities(student_logits, temperature=temperature, where=where),",
  ),
  (
    "temperature",
    "the teacher stays at T = 1",
    "log_probabilities(teacher_logits, temperature=temperature, where=where)",
    "log_probabilities(teacher_logits, where=where)",
  ),
  (
    "temperature",
    "the student stays at T = 1",
    "log_probabilities(student_logits, temperature=temperature, where=where)",
    "log_probabilities(student_logits, where=where)",
  ),
  (
    "mask",
    "the teacher's hidden columns are seen",
    "log_probabilities(teacher_logits, temperature=temperature, where=where)",
    "log_probabilities(teacher_logits, temperature=temperature)",
  ),
  (
    "options",
    "a divergence on logits ignores its options",
    "formula(log_q, log_p, **options)",
    "formula(log_q, log_p)",
  ),
]

MUTATIONS = (
  *of_file(
    "losses/log_divergences.py",
    ["losses/log_divergences_test.py", "losses/divergences_test.py", "losses/invariants_test.py"],
    _ROWS,
  ),
  *of_file("losses/divergences.py", ["losses/divergences_test.py"], _ON_LOGITS),
)

EQUIVALENTS = (
  Equivalent(
    "losses/log_divergences.py",
    "Jensen-Shannon detaches the mixture",
    "the gradients through m of the two KLs cancel, since m = beta p + (1 - beta) q sums to 1",
  ),
)
