"""The contenders of `benchmarks.head` written in JAX, all with the same arguments.

Two losses are compared, both sums over the tokens in the mask: plain distillation, T^2 KL(teacher
|| student) at a fixed T + ce_weight CE, which every rival can compute, and EGAD's, with curriculum
and per-token temperature. Rivals are written anew from their descriptions, or are their
own packages (`benchmarks.head_rivals`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from egad_jax import methods
from egad_jax.head import dense_head, distillation_head
from egad_jax.head.chunks import default_chunk_size
from egad_jax.head.inputs import TokenLoss
from egad_jax.head.logits import logits_from
from egad_jax.head.tpu import Kernels, kernel_chunk_size


class Inputs(NamedTuple):
  """What a head gets.

  Attributes:
    student_hidden: [tokens, Ds].
    student_unembedding: [vocab, Ds].
    teacher_hidden: [tokens, Dt].
    teacher_unembedding: [vocab, Dt].
    labels: int [tokens].
    mask: bool [tokens].
    context: of EGAD; nobody else reads it.
  """

  student_hidden: Any
  student_unembedding: Any
  teacher_hidden: Any
  teacher_unembedding: Any
  labels: Any
  mask: Any
  context: Any


class Settings(NamedTuple):
  """What the loss and the loops of all contenders have in common.

  Attributes:
    temperature: of plain distillation.
    ce_weight: of the cross-entropy with the labels.
    chunk: tokens in a lean chunk, and in a chunk of the checkpointed scan.
    kernels: of the device, for our heads; None: by XLA alone.
  """

  temperature: float = 2.0
  ce_weight: float = 0.1
  chunk: int = 1024
  kernels: Kernels | None = None


Loss = Callable[[Inputs], jax.Array]


class Contender(NamedTuple):
  """One way to compute a head.

  Attributes:
    title: of its row.
    loss: "egad" or "kd".
    make: (settings) -> (inputs) -> the summed loss, scalar, to be differentiated by JAX.
    trips: (tokens, vocab, settings) -> how often its loop runs if only the run knows; 1: no loop.
  """

  title: str
  loss: str
  make: Callable[[Settings], Loss]
  trips: Callable[[int, int, Settings], int] = lambda tokens, vocab, settings: 1


Gradients = tuple[jax.Array, tuple[jax.Array, jax.Array]]


def with_gradients(contender: Contender, settings: Settings) -> Callable[[Inputs], Gradients]:
  """(inputs) -> (loss, (gradient of student_hidden, of student_unembedding)), in their dtypes."""
  loss = contender.make(settings)

  def compute(inputs: Inputs) -> Gradients:
    objective = lambda hidden, unembedding: loss(
      inputs._replace(student_hidden=hidden, student_unembedding=unembedding)
    )
    return jax.value_and_grad(objective, argnums=(0, 1))(*inputs[:2])

  return compute


def token_loss_of(loss: str, settings: Settings) -> TokenLoss:
  """The `token_loss` of plain distillation, or of EGAD without the feature branch."""
  if loss == "egad":
    return methods.make_egad(branch=None, ce_weight=settings.ce_weight).loss.function
  kd = methods.make_vanilla_kd(temperature=settings.temperature, ce_weight=settings.ce_weight)
  return kd.loss.function


def _with_head(loss: str, head: Callable[..., Any], settings: Settings) -> Loss:
  made = head(token_loss_of(loss, settings))
  return lambda inputs: made(*inputs[:6], {}, inputs.context)[0]


def _ours(loss: str, settings: Settings, *, lean: bool = False) -> Loss:
  options: dict[str, Any] = {"kernels": settings.kernels}
  options["chunk_size"] = settings.chunk if lean else None
  return _with_head(loss, functools.partial(distillation_head, **options), settings)


def _by_xla(loss: str, settings: Settings) -> Loss:
  return _ours(loss, settings._replace(kernels=None), lean=True)


def distillation_sum(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  labels: jax.Array,
  mask: jax.Array,
  settings: Settings,
) -> jax.Array:
  """Plain distillation from logits [n, vocab] as one would write it; independent of `losses`."""
  temperature = settings.temperature
  log_p = jax.nn.log_softmax(teacher_logits / temperature)
  log_q = jax.nn.log_softmax(student_logits / temperature)
  kl = temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)
  # By comparison: a gather would make a dense rival keep one more array of [n, vocab].
  is_label = labels[:, None] == jnp.arange(student_logits.shape[-1])[None, :]
  at_label = jnp.sum(jnp.where(is_label, student_logits, 0), -1)
  cross_entropy = jax.nn.logsumexp(student_logits, axis=-1) - at_label
  return jnp.sum(jnp.where(mask, kl + settings.ce_weight * cross_entropy, 0))


def _both_logits(inputs: Inputs) -> tuple[jax.Array, jax.Array]:
  student = logits_from(inputs.student_hidden, inputs.student_unembedding)
  teacher = logits_from(inputs.teacher_hidden, inputs.teacher_unembedding)
  return student, jax.lax.stop_gradient(teacher)


def _dense(settings: Settings) -> Loss:
  return lambda inputs: distillation_sum(
    *_both_logits(inputs), inputs.labels, inputs.mask, settings
  )


def _dense_narrow(settings: Settings) -> Loss:
  """Logits rounded to bfloat16, as a model that returns its own dtype leaves them."""

  def loss(inputs: Inputs) -> jax.Array:
    # XLA may drop a conversion there and back; this it keeps.
    rounded = (jax.lax.reduce_precision(logits, 8, 7) for logits in _both_logits(inputs))
    narrow = (logits.astype(jnp.bfloat16) for logits in rounded)
    student, teacher = (logits.astype(jnp.float32) for logits in narrow)
    return distillation_sum(student, teacher, inputs.labels, inputs.mask, settings)

  return loss


def _checkpointed_scan(settings: Settings) -> Loss:
  """EasyDeL's way: a scan over chunks whose body the backward pass computes again."""

  def loss(inputs: Inputs) -> jax.Array:
    tokens = inputs.labels.shape[0]
    chunk = min(settings.chunk, tokens)
    if tokens % chunk:
      raise ValueError(f"the checkpointed scan needs {chunk} to divide the {tokens} tokens.")

    @jax.checkpoint
    def body(total, rows):
      student_hidden, teacher_hidden, labels, mask = rows
      part = inputs._replace(student_hidden=student_hidden, teacher_hidden=teacher_hidden)
      return total + distillation_sum(*_both_logits(part), labels, mask, settings), None

    rows = (inputs.student_hidden, inputs.teacher_hidden, inputs.labels, inputs.mask)
    rows = jax.tree.map(lambda x: x.reshape(tokens // chunk, chunk, *x.shape[1:]), rows)
    return jax.lax.scan(body, jnp.zeros((), jnp.float32), rows)[0]

  return loss


def tunix_formula(
  student: jax.Array, teacher: jax.Array, labels: jax.Array, *, temperature: float, alpha: float
) -> jax.Array:
  """What Tunix's `LogitStrategy` returns: means over all places, alpha KL T^2 + (1 - alpha) CE.

  Args:
    student: float32 [n, vocab].
    teacher: float32 [n, vocab].
    labels: one-hot float32 [n, vocab].
    temperature: scalar.
    alpha: in [0, 1].
  """
  import optax

  soft = jax.nn.softmax(teacher / temperature)
  kl = optax.kl_divergence(jax.nn.log_softmax(student / temperature), soft)
  cross_entropy = optax.softmax_cross_entropy(student, labels)
  return alpha * temperature**2 * jnp.mean(kl) + (1 - alpha) * jnp.mean(cross_entropy)


def _tunix(settings: Settings, *, strategy: Callable[..., Any] | None) -> Loss:
  """Tunix's loss brought to the common scale: it averages over all places, whatever the mask."""
  alpha = 1 / (1 + settings.ce_weight)

  def loss(inputs: Inputs) -> jax.Array:
    student, teacher = _both_logits(inputs)
    labels = jax.nn.one_hot(inputs.labels, student.shape[-1])
    if strategy is None:
      mean = tunix_formula(student, teacher, labels, temperature=settings.temperature, alpha=alpha)
    else:
      made = strategy(*(None,) * 3, temperature=settings.temperature, alpha=alpha)
      mean = made.compute_loss(student, teacher, labels)[0]
    return mean * inputs.labels.shape[0] / alpha

  return loss


def _tunix_contender() -> Contender:
  try:
    from tunix.distillation.strategies import logit
  except ImportError:
    return Contender(
      "Tunix LogitStrategy (its formula)", "kd", functools.partial(_tunix, strategy=None)
    )
  make = functools.partial(_tunix, strategy=logit.LogitStrategy)
  return Contender("Tunix LogitStrategy", "kd", make)


def _default_trips(tokens: int, vocab: int, settings: Settings) -> int:
  if settings.kernels is None:
    return -(-tokens // default_chunk_size(tokens, vocab))
  return -(-tokens // kernel_chunk_size(settings.kernels, None, tokens, vocab))


def _lean_trips(tokens: int, vocab: int, settings: Settings) -> int:
  del vocab
  return -(-tokens // min(settings.chunk, tokens))


def contenders() -> dict[str, Contender]:
  """Key of `--contenders` -> contender; the first is what the others are compared with."""
  ours = functools.partial
  return {
    "egad": Contender("egad_jax, EGAD", "egad", ours(_ours, "egad"), _default_trips),
    "egad_lean": Contender(
      "egad_jax, EGAD, lean chunk", "egad", ours(_ours, "egad", lean=True), _lean_trips
    ),
    "egad_xla": Contender(
      "egad_jax, EGAD, lean chunk, no kernels", "egad", ours(_by_xla, "egad"), _lean_trips
    ),
    "kd": Contender("egad_jax, plain KD", "kd", ours(_ours, "kd"), _default_trips),
    "dense_egad": Contender(
      "all logits at once, EGAD", "egad", ours(_with_head, "egad", dense_head)
    ),
    "dense": Contender("all logits at once, plain KD", "kd", _dense),
    "dense_bf16": Contender("all logits at once, in bfloat16, plain KD", "kd", _dense_narrow),
    "scan": Contender("checkpointed scan (EasyDeL's way)", "kd", _checkpointed_scan),
    "tunix": _tunix_contender(),
  }
