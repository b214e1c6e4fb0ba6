"""Every config key once, with its unit and meaning. Presets import this and change values.

Command: python launch/run.py --config=configs/default.py --workdir=runs/mine \
           --config.teacher.source=DIR --config.data.source=FILES
"""

from __future__ import annotations

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
  """The defaults: of EGAD what did not lose to plain distillation; sizes for one TPU host.

  The three mechanisms as the abstract has them: `configs/egad_abstract.py`.
  """
  config = ml_collections.ConfigDict()
  # egad, vanilla_kd, adakd, aekt, ea_kd, se_kd, taid, trg or x_token: see docs/methods.md, also for
  # which of the groups below each reads.
  config.method = "egad"
  config.method_options = ""  # The method's own, "name=value,name=value"; "": the defaults.
  config.seed = 0  # Of initial values and data order.
  config.steps = 1000  # Updates in the whole run.
  config.batch_size = 32  # Rows per update, over all devices and micro-batches.
  config.seq_len = 1024  # Tokens per row.
  # Of packed rows: auto, splash (TPU kernel), cudnn (GPU kernel) or xla. auto: the kernel of the
  # mesh's devices where it serves the model, else xla.
  config.attention = "auto"
  config.accumulation = 1  # Micro-batches per update; divides batch_size.
  config.log_every = 10  # Steps between lines of metrics.jsonl.
  config.tensorboard = True  # Also write TensorBoard events.
  # Directory of the persistent compilation cache; "" for none.
  config.compilation_cache = "~/.cache/egad_jax/compilation"

  config.teacher = teacher = ml_collections.ConfigDict()
  # FILE.gguf, a Hugging Face directory, python:PACKAGE/FILE.gguf (a file inside an installed
  # package), or random:ARCHITECTURE (a name of models/architectures.py).
  teacher.source = ""  # Required.
  # What the source must have, a name of models/architectures.py; plans read no files. "": any.
  teacher.architecture = ""
  teacher.dtype = "bfloat16"  # Of its parameters and compute: bfloat16 or float32.
  # Where the matrices of its layers lie: device, or host (copied to the devices layer by layer).
  teacher.placement = "device"
  # Devices of its own, the last so many; the student's mesh is of the others. 0: none, they share.
  teacher.mesh = ml_collections.ConfigDict()
  teacher.mesh.devices = 0
  teacher.mesh.data = 1  # With devices of its own: as those of mesh, below.
  teacher.mesh.fsdp = -1
  teacher.mesh.tensor = 1

  config.student = student = ml_collections.ConfigDict()
  student.init = "layers"  # layers (of the teacher), random, or source (a checkpoint of its own).
  student.layers = 0  # Number of layers; 0: as many as the teacher.
  student.layer_indices = ()  # init=layers: which of the teacher's, from 0; (): evenly spaced.
  student.source = ""  # init=source: like teacher.source, with the teacher's vocabulary.
  # init=random: whose sizes it takes, a name of models/architectures.py; "": the teacher's.
  # init=source: what the source must have, as of the teacher.
  student.architecture = ""
  # init=random: sizes; 0 takes the architecture's.
  student.dim = 0
  student.num_heads = 0
  student.num_kv_heads = 0
  student.mlp_dim = 0
  # x_token: "": the student's source's, or the teacher's. A directory or .gguf file, or train:N.
  student.tokenizer = ""
  student.dtype = "bfloat16"  # Of its compute; master parameters are float32.
  student.remat = "full"  # What the backward pass recomputes: none, dots (keep matmuls) or full.

  config.data = data = ml_collections.ConfigDict()
  # python_docs (built in), a .txt, .md or .jsonl file, a directory of them, or, if nothing of that
  # name exists, a glob.
  data.source = "python_docs"
  # Local directory of prepared corpora and packed rows; "": data/ in the workdir, or, if that is in
  # an object store, ~/.cache/egad_jax/data.
  data.cache = ""
  # Of the teacher. "": its source's. A directory or .gguf file, or train:N: N entries trained on
  # the corpus.
  data.tokenizer = ""
  data.held_out_fraction = 0.02  # Of the documents, chosen by a hash of their text.
  data.max_bad_records = 0  # Invalid UTF-8 or JSON lines that are skipped before giving up.

  config.loss = loss = ml_collections.ConfigDict()
  loss.divergence = "forward_kl"  # A name of losses.DIVERGENCES.
  loss.divergence_options = ""  # Its own, "name=value,name=value"; "": the defaults.
  loss.ce_weight = 0.0  # Weight of the cross-entropy on the labels.
  loss.chunk_size = 0  # Tokens whose logits exist at once; 0: from a budget of memory.
  # auto: on a TPU, hand-written kernels make the forward KL of vanilla_kd and egad where they can
  # (see docs/performance.md); xla: never.
  loss.kernels = "auto"

  # Mechanism 1 (the abstract's): focus moves from low- to high-entropy tokens. How: ours. Off: it
  # cost 0.7 % of forward KL where it was measured (README, "What was measured").
  config.curriculum = curriculum = ml_collections.ConfigDict()
  curriculum.kind = "uniform"  # uniform (off), linear, window, competence or exponential.
  # Progress phi at the first step: 0 is all focus on low entropy, 1 on high.
  curriculum.start = 0.25
  curriculum.end = 0.75  # phi at the last step.
  # phi = start + (end - start) * x ** power; x rises evenly from 0 (first step) to 1 (last step).
  curriculum.power = 1.0
  curriculum.width = 0.5  # window: share of the tokens inside it.
  curriculum.competence = 0.1  # competence: share of the tokens used at phi = 0.
  curriculum.strength = 2.0  # exponential: log ratio of the extreme weights at phi = 1.

  # Mechanism 2 (the abstract's): a temperature for each token. Form and direction: ours. Off: it
  # cost 2.7 to 5.4 % of forward KL, by direction, where it was measured.
  config.temperature = temperature = ml_collections.ConfigDict()
  # fixed (off: base for all tokens), adaptive, or mean (control: the adaptive form's mean, for all
  # tokens). adakd needs adaptive or mean.
  temperature.kind = "fixed"
  temperature.base = 1.0  # Temperature of all tokens; if adaptive, of a token of median entropy.
  temperature.strength = 0.5  # Extremes are base * exp(+-strength).
  temperature.direction = "confident_hot"  # confident_hot or uncertain_hot.
  temperature.position = "cdf"  # Place on the entropy axis: cdf or median_ratio.
  temperature.minimum = 0.1  # Clip.
  temperature.maximum = 10.0  # Clip.
  temperature.compensation = "per_token"  # Of T: per_token (T^2), linear (T), none, mean_norm.

  # Mechanism 3 (the abstract's): hard tokens learn from features too. Which and how: ours. On all
  # tokens it gained 0.7 % of forward KL where it was measured, on the hard half 0.3 %.
  config.branch = branch = ml_collections.ConfigDict()
  branch.weight = 1.0  # Of the feature loss; 0: off.
  branch.hard_fraction = 0.5  # Share of the tokens that is hard: the highest entropies.
  branch.threshold = config_dict.placeholder(float)  # Or: hard above this entropy, in nats.
  # 0: hard or easy; above: a gate sigmoid((position - (1 - hard_fraction)) / softness) between.
  branch.softness = 0.0
  branch.tokens = "all"  # Which tokens learn from features: all, hard, or (control) easy.
  branch.hard_logits = True  # Hard tokens learn from logits as well.
  # last, uniform:N (N evenly spaced pairs), or STUDENT:TEACHER pairs like "6:12,13:30".
  branch.layers = "last"
  branch.loss = "cosine"  # cosine, normalized_mse, or pair_distances (without a projector).

  config.distribution = distribution = ml_collections.ConfigDict()
  distribution.half_life = 1_000_000  # Of the running entropy distribution, in target tokens.
  distribution.fill_batches = 2  # Train batches that fill it before step 0.

  config.optimizer = optimizer = ml_collections.ConfigDict()  # AdamW.
  optimizer.learning_rate = 1e-4  # Peak.
  # Steps of linear rise, the last of which has the peak; at most all steps but one. 0: none.
  optimizer.warmup_steps = 50
  optimizer.schedule = "cosine"  # Then: cosine, linear or constant.
  optimizer.final_fraction = 0.1  # Learning rate of the last step over the peak; not if constant.
  optimizer.weight_decay = 0.01  # Decoupled, not on norm scales.
  optimizer.beta1 = 0.9
  optimizer.beta2 = 0.95
  optimizer.epsilon = 1e-8
  optimizer.clip_norm = 1.0  # Global gradient norm; 0: no clipping.

  # A step whose loss or gradient is not finite, or spikes, is skipped: its update is withheld.
  config.guard = guard = ml_collections.ConfigDict()
  # A spike is a loss or gradient norm above mean + spike_sigmas * std of the accepted steps, 6 for
  # example. 0: no finite step is one, since gradients are clipped anyway, and a method that moves
  # to harder tokens raises both for good, which no later step would then be let through.
  guard.spike_sigmas = 0.0
  guard.half_life = 100.0  # Of that mean and std, in accepted steps.
  # Skipped steps in a row at which the run stops, with the batch saved; 1: at the first. Batches
  # are shuffled, so that bad ones in a row mean that it is not the batches.
  guard.max_skipped = 5

  # Devices along each axis; -1: the devices left over. replica * data * fsdp divides the rows of a
  # micro-batch, tensor divides seq_len.
  config.mesh = mesh = ml_collections.ConfigDict()
  mesh.replica = 1  # Copies across slow links.
  mesh.data = 1  # Copies.
  mesh.fsdp = -1  # Parameters split, gathered layer by layer.
  mesh.tensor = 1  # Matmuls split.

  config.checkpoint = checkpoint = ml_collections.ConfigDict()
  checkpoint.every_steps = 200  # 0: only by time and at the end.
  checkpoint.every_seconds = 600.0  # 0: only by steps and at the end.
  checkpoint.keep = 2  # Latest checkpoints that stay.
  checkpoint.keep_best = True  # And the one with the lowest held-out forward KL.

  config.eval = evaluation = ml_collections.ConfigDict()
  evaluation.every_steps = 200  # 0: only before and after training.
  evaluation.rows = 64  # Held-out rows, at most.
  evaluation.batch_size = 0  # Rows at once; 0: as a micro-batch.
  evaluation.prompts = (  # Continued by teacher and student, before and after.
    "A list comprehension in Python is",
    "The capital of France is",
  )
  evaluation.sample_tokens = 48  # Tokens per continuation; 0: no samples.

  # A process that makes no progress for so many seconds ends, with its stacks; 0: never.
  config.watchdog = watchdog = ml_collections.ConfigDict()
  watchdog.step_seconds = 600.0  # Of a step, or waiting for its batch.
  watchdog.other_seconds = 3600.0  # Of a compilation, evaluation or save, the beginning or the end.

  # Traces for XProf or TensorBoard in profile/ of the workdir; SIGUSR1 makes one at any time.
  config.profile = profile = ml_collections.ConfigDict()
  profile.start_step = 0  # First step of a trace, from 1; 0: only on the signal.
  profile.steps = 5  # Steps of a trace.

  # Options of the compiler as "name=value,name=value"; the same when planning.
  config.compiler_options = ""
  return config.lock()
