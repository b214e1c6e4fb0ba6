"""Every config key with its default, meaning and unit. Presets import this and change values.

Command: python launch/run.py --config=configs/default.py --workdir=runs/mine \
           --config.teacher.source=DIR --config.data.source=FILES
"""

from __future__ import annotations

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
  """Returns the defaults, with sizes for one TPU host.

  EGAD's mechanisms are on where they did not lose to plain distillation. For all three as the
  abstract describes them, see `configs/egad_abstract.py`.
  """
  config = ml_collections.ConfigDict()
  # Distillation method: egad, vanilla_kd, adakd, aekt, ea_kd, se_kd, taid, trg or x_token.
  # docs/methods.md describes each and lists which of the groups below it reads.
  config.method = "egad"
  config.seed = 0  # Seed of the random initial values and of the data order; 0 is an ordinary seed.
  config.steps = 1000  # Steps in the whole run, skipped ones included.
  config.batch_size = 32  # Packed rows per step, over all devices and micro-batches.
  config.seq_len = 1024  # Tokens per packed row.
  # Attention implementation: splash (TPU kernel), cudnn (GPU kernel), xla, or auto, which takes the
  # kernel for the mesh's devices where it supports the model and xla elsewhere.
  config.attention = "auto"
  config.accumulation = 1  # Micro-batches per step, whose gradients add up; divides batch_size.
  config.log_every = 10  # Steps between lines of metrics.jsonl; at least 1.
  # Where metrics go besides metrics.jsonl: names among tensorboard, wandb and mlflow; (): nowhere.
  config.trackers = ("tensorboard",)
  # Directory of JAX's persistent compilation cache; "": no cache.
  config.compilation_cache = "~/.cache/egad_jax/compilation"

  config.teacher = teacher = ml_collections.ConfigDict()
  # Weights of the teacher: hf:NAME or hf:NAME@REVISION (a model on the Hugging Face Hub, downloaded
  # once), a Hugging Face directory, FILE.gguf, python:PACKAGE/FILE.gguf (a file inside an installed
  # package), or random:ARCHITECTURE (a name in models/architectures.py). Required: "" is an error.
  teacher.source = ""
  # Architecture that the source must have, a name in models/architectures.py; "": any. A plan reads
  # no files and needs the name.
  teacher.architecture = ""
  teacher.dtype = "bfloat16"  # Dtype of its parameters and compute: bfloat16 or float32.
  # Memory that holds the weight matrices of its layers: device, or host, from which they are copied
  # to the devices layer by layer.
  teacher.placement = "device"
  teacher.mesh = ml_collections.ConfigDict()
  # Number of devices that the teacher has to itself, the last ones; the student's mesh is made of
  # the others. 0: teacher and student share all devices.
  teacher.mesh.devices = 0
  # Devices along each axis of the teacher's own mesh, as for mesh below; unused if devices is 0.
  teacher.mesh.data = 1
  teacher.mesh.fsdp = -1  # -1: the devices left over.
  teacher.mesh.tensor = 1

  config.student = student = ml_collections.ConfigDict()
  # Initial parameters: layers (copies of teacher layers), random, or source (its own checkpoint).
  student.init = "layers"
  # init=layers or random: number of layers. 0: as many as layer_indices, or, without those, as the
  # teacher (init=random: as student.architecture).
  student.layers = 0
  # init=layers: teacher layers to copy, counted from 0; (): student.layers evenly spaced ones.
  student.layer_indices = ()
  # init=source: the checkpoint, named like teacher.source; "" is an error then. Except with
  # x_token, its tokenizer must have the teacher's vocabulary.
  student.source = ""
  # A name in models/architectures.py. init=random: the architecture to take; "": the teacher's.
  # init=source: the architecture that the source must have; "": any.
  student.architecture = ""
  # init=random: sizes that differ from the architecture's; 0: the architecture's own.
  student.dim = 0  # Width of the hidden states.
  student.num_heads = 0  # Attention heads; must divide dim.
  student.num_kv_heads = 0  # Attention heads of keys and values.
  student.mlp_dim = 0  # Width inside the MLP.
  # Student's tokenizer, which only x_token allows to have another vocabulary than the teacher's:
  # hf:NAME, a directory, a .gguf file, or train:N (N entries, trained on the corpus). "": that of
  # student.source with init=source, else the teacher's.
  student.tokenizer = ""
  student.dtype = "bfloat16"  # Dtype of its compute; its parameters are trained in float32.
  # Activations that the backward pass recomputes: none, dots (all but matmul outputs) or full.
  student.remat = "full"

  config.data = data = ml_collections.ConfigDict()
  # Text or chats to train and evaluate on: python_docs (built in), a file (.txt, .md, .jsonl,
  # .json, .parquet, also with .gz or .zst behind), a directory of them, a glob,
  # hf:NAME[@REVISION] or tfds:NAME; see docs/data.md. Several: a tuple, or commas between them.
  # SOURCE*WEIGHT: each of its train documents occurs WEIGHT times in an epoch, below 1 that share
  # of them occurs.
  data.source = config_dict.FieldReference("python_docs", field_type=object)
  # Records: text, messages, prompt_completion or alpaca; auto: found out for each source, and said.
  data.format = "auto"
  # Keys of records by the names that formats have for them, "text=body,role=from"; "": those names.
  data.fields = ""
  # Source of held-out text, like data.source; "": a share of data.source.
  data.held_out_source = config_dict.FieldReference("", field_type=object)
  # Local directory for prepared corpora and packed rows; "": data/ in the workdir, or
  # ~/.cache/egad_jax/data if the workdir is in an object store.
  data.cache = ""
  # Teacher's tokenizer: hf:NAME, a directory, a .gguf file, or train:N (N entries, trained on the
  # corpus); "": that of teacher.source.
  data.tokenizer = ""
  # Share of the documents kept for evaluation, chosen by a hash of their text; between 0 and 1. Not
  # used with data.held_out_source.
  data.held_out_fraction = 0.02
  # Unusable records (invalid JSON, no such key, an unknown role, an empty completion) to leave
  # out before giving up; 0: the first one is an error.
  data.max_bad_records = 0
  data.min_tokens = 0  # Documents of fewer tokens are left out; 0: none is.
  data.max_tokens = 0  # Documents of more tokens are left out; 0: none is, long ones are cut.

  config.loss = loss = ml_collections.ConfigDict()
  loss.divergence = "forward_kl"  # Divergence to the teacher; a name in losses.DIVERGENCES.
  loss.ce_weight = 0.0  # Weight of the cross-entropy with the labels; 0: no such term.
  loss.chunk_size = 0  # Tokens whose logits exist at once; 0: chosen from a memory budget.
  # auto: on a TPU, hand-written kernels compute the forward KL of vanilla_kd, egad and trg where
  # they can (see docs/performance.md). xla: they never do.
  loss.kernels = "auto"
  # Options that only one divergence has. Only those of loss.divergence are read; a change of the
  # others is an error.
  loss.divergence_options = divergence_options = ml_collections.ConfigDict()
  divergence_options.jensen_shannon = ml_collections.ConfigDict()
  # Teacher's share of the mixture that both models are compared with; in [0, 1]. Near 0 it trains
  # like forward KL, near 1 like reverse KL, with a loss that shrinks to 0 at either end.
  divergence_options.jensen_shannon.beta = 0.5
  divergence_options.skew_forward_kl = ml_collections.ConfigDict()
  # The teacher p is compared with alpha p + (1 - alpha) q, q the student; in [0, 1]. 0: forward KL.
  divergence_options.skew_forward_kl.alpha = 0.1
  divergence_options.skew_reverse_kl = ml_collections.ConfigDict()
  # The student q is compared with (1 - alpha) p + alpha q, p the teacher; in [0, 1]. 0: reverse KL.
  divergence_options.skew_reverse_kl.alpha = 0.1
  divergence_options.alpha_beta = ml_collections.ConfigDict()
  # Powers of the teacher's (alpha) and the student's (beta) probabilities; each 0 or at least 0.01,
  # and not both 0. (1, 0): forward KL; (0, 1): reverse KL.
  divergence_options.alpha_beta.alpha = 0.2
  divergence_options.alpha_beta.beta = 0.7
  divergence_options.adaptive_kl = ml_collections.ConfigDict()
  # Probability of the teacher's head, its likeliest entries, whose differences weigh the forward KL
  # as those of the other entries weigh the reverse KL; in (0, 1]. 1: forward KL.
  divergence_options.adaptive_kl.head_mass = 0.5

  # Mechanism 1 of the abstract: focus moves from low- to high-entropy tokens. The abstract gives no
  # formula; this one is ours. Off by default: it cost 1 % of forward KL with one teacher, and 3 %
  # with another (docs/results.md).
  config.curriculum = curriculum = ml_collections.ConfigDict()
  # Form of the token weights: uniform (off), linear, window, competence or exponential.
  curriculum.kind = "uniform"
  # Progress phi at the first step, in [0, 1]; 0 puts all focus on low entropy, 1 on high.
  curriculum.start = 0.25
  curriculum.end = 0.75  # Progress phi at the last step, in [0, 1].
  # phi = start + (end - start) * x ** power; x rises evenly from 0 (first step) to 1 (last step).
  curriculum.power = 1.0
  curriculum.width = 0.5  # kind=window: share of the tokens inside the window, in (0, 1].
  # kind=competence: share of the tokens used at phi = 0, in (0, 1].
  curriculum.competence = 0.1
  # kind=exponential: log ratio of the extreme weights at phi = 1; 0: equal weights.
  curriculum.strength = 2.0

  # Mechanism 2 of the abstract: a temperature for each token. Form and direction are ours. Off by
  # default: it is a part of what `egad_abstract` loses. uncertain_hot with anneal = 0.6 gained 0.4
  # to 0.7 % of forward KL with one teacher, and cost 2 % with another (docs/results.md).
  config.temperature = temperature = ml_collections.ConfigDict()
  # fixed (off: base for all tokens), adaptive, or mean (a control: the mean of the adaptive
  # temperatures, for all tokens). adakd needs adaptive or mean.
  temperature.kind = "fixed"
  # Temperature of all tokens if fixed; if adaptive, of a token of median entropy. Positive.
  temperature.base = 1.0
  # Adaptive temperatures lie in base * exp(+-strength); 0: base for all tokens.
  temperature.strength = 0.5
  # Which tokens get the higher temperatures: confident_hot (those of low teacher entropy) or
  # uncertain_hot (those of high teacher entropy).
  temperature.direction = "confident_hot"
  # How a token's entropy becomes its position: cdf (rank in the running distribution) or
  # median_ratio (ratio to the median).
  temperature.position = "cdf"
  temperature.minimum = 0.1  # Lower clip of adaptive temperatures; positive.
  temperature.maximum = 10.0  # Upper clip of adaptive temperatures.
  # Factor on the divergence at temperature T: per_token (T^2), linear (T), none (1) or mean_norm
  # (T^2 over its mean). egad alone has also gradient_norm, which keeps the norm that a token's
  # gradient has at T = 1, and its control gradient_norm_only, which changes nothing but that norm;
  # they need a second softmax and do without the kernels.
  temperature.compensation = "per_token"
  # Share of the run, in (0, 1], after which all adaptive temperatures are 1, which they approach
  # step by step; 0: they stay as they are.
  temperature.anneal = 0.0

  # Mechanism 3 of the abstract: hard tokens learn from features too. Which tokens are hard and what
  # they learn is ours. These defaults are the best that is measured, for a student made of its
  # teacher's layers: 7 to 8 % less forward KL than plain distillation with a real teacher, in two
  # seeds, and 15 % less with a small one, in ten; on the hard half of the tokens 6 % and 9 %
  # (docs/results.md). No student of another width was measured. It needs projector = linear; the
  # presets take layers = last and weight = 1 with it.
  config.branch = branch = ml_collections.ConfigDict()
  branch.weight = 10.0  # Weight of the feature loss; 0: no feature branch.
  # Share of the tokens that is hard, those of highest teacher entropy; in (0, 1].
  branch.hard_fraction = 0.5
  # Teacher entropy in nats from which a token is hard, instead of hard_fraction; None: unused.
  branch.threshold = config_dict.placeholder(float)
  # Softness of the gate, in positions: sigmoid((position - (1 - hard_fraction)) / softness).
  # 0: a token is either hard or easy.
  branch.softness = 0.0
  branch.tokens = "all"  # Which tokens learn from features: all, hard, or (a control) easy.
  branch.hard_logits = True  # Whether hard tokens learn from logits as well.
  # Layers whose features are compared: last, all (each student layer with the teacher layer that it
  # stands for: with init=layers the one before the next layer kept, else evenly spaced ones),
  # uniform:N (N evenly spaced pairs), or STUDENT:TEACHER pairs like "6:12,13:30", counted from 1.
  branch.layers = "all"
  # Feature loss: cosine, normalized_mse, or pair_distances, which has no projector.
  branch.loss = "cosine"
  # Trained map of the student's features before they are compared: linear, or none for a student as
  # wide as its teacher.
  branch.projector = "none"

  # Running distribution of teacher entropy, in which a token's entropy has its position.
  config.distribution = distribution = ml_collections.ConfigDict()
  distribution.half_life = 1_000_000  # Target tokens after which an observation counts half.
  distribution.fill_batches = 2  # Train batches observed before the first step; 0: none.

  # Options that only one method has. Only those of config.method are read; a change of the others
  # is an error. docs/methods.md lists the further options, which only the makers in Python take.
  config.method_options = method_options = ml_collections.ConfigDict()
  method_options.adakd = adakd = ml_collections.ConfigDict()
  # Relative change of the share of distilled tokens when the loss changes; in [0, 1). 0: all tokens
  # are distilled.
  adakd.ratio_step = 0.05
  # Relative change of the running loss up to which that share stays; in [0, 1). 0: every change
  # moves it.
  adakd.tolerance = 0.05
  adakd.minimum_ratio = 0.1  # Least share of distilled tokens; in (0, 1].
  # Share of the run during which all tokens are distilled; in [0, 1]. 0: none.
  adakd.warmup = 0.05
  method_options.aekt = aekt = ml_collections.ConfigDict()
  aekt.weight = 1.0  # Weight of the explicit term, on the target token; 0: no such term.
  # Power of the models' ratio of confidence in that weight; at least 0. 0: the weight is constant.
  aekt.gamma = 1.0
  # Whether the teacher acts on a trained linear map of the student's hidden states, and the labels
  # on the hidden states themselves; needs loss.ce_weight > 0.
  aekt.serial = False
  method_options.ea_kd = ml_collections.ConfigDict()
  # Temperature at which the entropies in a token's weight are taken; positive.
  method_options.ea_kd.entropy_temperature = 3.0
  method_options.se_kd = ml_collections.ConfigDict()
  # Share of the tokens that is distilled, those of highest student entropy; in (0, 1].
  method_options.se_kd.fraction = 0.2
  method_options.taid = taid = ml_collections.ConfigDict()
  # Teacher's share of the target at the first step, which rises to 1; in [0, 1]. 0: the target is
  # then the student itself.
  taid.start = 0.4
  # Rise of that share per step while the loss falls, beyond the linear one; in [0, 1]. 0: linear.
  taid.rate = 5e-4
  method_options.trg = trg = ml_collections.ConfigDict()
  trg.nodes = 64  # Hard tokens of a row in its graph, at most; at least 1.
  trg.neighbours = 8  # Edges of a node, to those nearest in the teacher's features; at least 1.
  trg.local_weight = 1.0  # Weight of the term on a node's edges; 0: no such term.
  trg.contextual_weight = 1.0  # Weight of the contrastive term; 0: no such term and no projector.
  trg.inner_weight = 1.0  # Weight of the term on similarities inside a row; 0: no such term.
  method_options.x_token = x_token = ml_collections.ConfigDict()
  # Divergence between two vocabularies: p_kl (the student is projected), h_kl (KL on common tokens,
  # sorted distance on others) or uld (sorted distance).
  x_token.kind = "p_kl"
  # Teacher's likeliest entries per row that p_kl compares, and most others that h_kl sorts; 0: all.
  x_token.teacher_top_k = 8192

  config.optimizer = optimizer = ml_collections.ConfigDict()  # AdamW.
  optimizer.learning_rate = 1e-4  # Peak learning rate.
  # Steps of linear rise, the last of which has the peak; at most all steps but one. 0: no warm-up.
  optimizer.warmup_steps = 50
  optimizer.schedule = "cosine"  # Learning rate after the warm-up: cosine, linear or constant.
  # Learning rate of the last step as a fraction of the peak; unused if the schedule is constant.
  optimizer.final_fraction = 0.1
  optimizer.weight_decay = 0.01  # Decoupled weight decay, not on norm scales; 0: none.
  optimizer.beta1 = 0.9  # Decay of the first moment per step; 0: no momentum.
  optimizer.beta2 = 0.95  # Decay of the second moment per step.
  optimizer.epsilon = 1e-8  # Added to the root of the second moment.
  optimizer.clip_norm = 1.0  # Global norm that gradients are clipped to; 0: no clipping.

  # A step whose loss or gradient is not finite, or spikes, is skipped: its update is withheld.
  config.guard = guard = ml_collections.ConfigDict()
  # A spike is a loss or gradient norm above mean + spike_sigmas * std of the accepted steps, 6 for
  # example. 0: no finite step is a spike. That is the default because gradients are clipped anyway,
  # and because a method that moves to harder tokens raises both for good: every later step would
  # then be skipped.
  guard.spike_sigmas = 0.0
  # Accepted steps after which a step counts half in that mean and standard deviation.
  guard.half_life = 100.0
  # Skipped steps in a row at which the run saves the batch and stops; 1: at the first. Batches are
  # shuffled, so several bad ones in a row mean that the data is not the cause.
  guard.max_skipped = 5

  # Devices along each axis of the mesh; one of them may be -1: the devices left over.
  # replica * data * fsdp must divide the rows of a micro-batch, tensor must divide seq_len.
  config.mesh = mesh = ml_collections.ConfigDict()
  mesh.replica = 1  # Data parallelism across slow links, as between slices of TPUs.
  mesh.data = 1  # Data parallelism with a copy of the parameters on every device.
  mesh.fsdp = -1  # Data parallelism with the parameters split, and gathered layer by layer.
  mesh.tensor = 1  # Tensor parallelism: the matmuls of a layer are split.

  config.checkpoint = checkpoint = ml_collections.ConfigDict()
  checkpoint.every_steps = 200  # Steps between checkpoints; 0: only by time and at the end.
  checkpoint.every_seconds = 600.0  # Seconds between checkpoints; 0: only by steps and at the end.
  checkpoint.keep = 2  # Number of latest checkpoints to keep; at least 1.
  checkpoint.keep_best = True  # Whether to keep the one of lowest held-out forward KL besides.

  config.export = ml_collections.ConfigDict()
  # Dtype of the exported weights: float32, bfloat16, or float16, which refuses values beyond 65504.
  config.export.dtype = "float32"

  config.eval = evaluation = ml_collections.ConfigDict()
  evaluation.every_steps = 200  # Steps between evaluations; 0: only before and after training.
  evaluation.rows = 64  # Held-out rows to evaluate on, at most.
  evaluation.batch_size = 0  # Held-out rows per batch; 0: as many as in a micro-batch.
  # Texts that teacher and student continue, before and after training; (): no samples.
  evaluation.prompts = (
    "A list comprehension in Python is",
    "The capital of France is",
  )
  evaluation.sample_tokens = 48  # Tokens per continuation; 0: no samples.

  # A process without progress for this many seconds prints its stacks and ends; 0: never.
  config.watchdog = watchdog = ml_collections.ConfigDict()
  watchdog.step_seconds = 600.0  # Limit for one step, or for the wait for its batch.
  # Limit for a compilation, an evaluation, a save, the start or the end of the run.
  watchdog.other_seconds = 3600.0

  # Traces for XProf or TensorBoard in profile/ of the workdir. SIGUSR1 starts one at any time.
  config.profile = profile = ml_collections.ConfigDict()
  profile.start_step = 0  # First step to trace, counted from 1; 0: trace on the signal only.
  profile.steps = 5  # Steps in a trace.

  # XLA compiler options, "name=value,name=value", for runs and plans; "": none.
  config.compiler_options = ""
  return config.lock()
