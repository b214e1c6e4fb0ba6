"""The results of a run: samples, a passage, the export, the summary and the report.

Each file is made from the state and the files written before it, so that the same command
completes a run that was killed here.
"""

from __future__ import annotations

import itertools
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from egad_jax import device_arrays, processes, progress
from egad_jax.data.batches import Batch, PairedBatch
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.durability import identity
from egad_jax.durability import workdir as files
from egad_jax.durability.jsonl_log import read_jsonl
from egad_jax.durability.workdir import Workdir
from egad_jax.files.storage import read_json
from egad_jax.models.export import export_student
from egad_jax.reporting.model_card import write_model_card
from egad_jax.reporting.report import write_report
from egad_jax.training.compiled_run import CompiledRun
from egad_jax.training.experiment import Experiment
from egad_jax.training.objective import loss_mask
from egad_jax.training.state import TrainState

REPORT = files.REPORT
PASSAGE_TOKENS = 160


def is_finished(workdir: Workdir, steps: int) -> bool:
  """Whether a run of this many steps, skipped ones included, has written all its results."""
  try:
    summary = workdir.read_json(files.SUMMARY)
    used = summary["steps"] + summary["skipped_steps"]
  except (ValueError, TypeError, KeyError):  # A missing or damaged summary is made again.
    return False
  return used == steps and (workdir / REPORT).exists() and (workdir / files.EXPORT).exists()


def samples_before(compiled: CompiledRun, workdir: Workdir, state: TrainState) -> None:
  """Writes samples.json with the continuations of the teacher and the untrained student."""
  experiment = compiled.experiment
  if not experiment.evaluation.sample_tokens or not experiment.evaluation.prompts:
    return
  teacher = compiled.continuations(None)
  before = compiled.continuations(state)
  samples = [
    {"prompt": prompt, "teacher": t, "before": b, "after": None}
    for prompt, t, b in zip(experiment.evaluation.prompts, teacher, before, strict=True)
  ]
  workdir.write_json(files.SAMPLES, samples)


def _samples_after(compiled: CompiledRun, workdir: Workdir, state: TrainState) -> Any:
  """Completes samples.json; a prompt added since the start has None for "before"."""
  experiment = compiled.experiment
  if not experiment.evaluation.sample_tokens or not experiment.evaluation.prompts:
    return None
  stored = {sample["prompt"]: sample for sample in workdir.read_json(files.SAMPLES) or []}
  new = [prompt for prompt in experiment.evaluation.prompts if prompt not in stored]
  after = compiled.continuations(state)
  if processes.any_process(bool(new)):
    # All prompts are continued again, not only the new ones: they form one batch.
    teacher = compiled.continuations(None)
  else:
    teacher = [stored[prompt]["teacher"] for prompt in experiment.evaluation.prompts]
  samples = [
    {"prompt": prompt, "teacher": t, "before": stored.get(prompt, {}).get("before"), "after": a}
    for prompt, t, a in zip(experiment.evaluation.prompts, teacher, after, strict=True)
  ]
  workdir.write_json(files.SAMPLES, samples)
  return samples


def _write_passage(compiled: CompiledRun, workdir: Workdir, state: TrainState) -> None:
  """Writes passage.json: the guidance of the first tokens of one held-out row."""
  batch = compiled.held_out()[0]
  stats = processes.fetch(compiled.statistics(state, batch))
  student, mask = processes.fetch((batch.student_side, loss_mask(batch)))
  row = int(np.argmax(mask.sum(axis=1)))
  # The index into the statistics of each label: its own, or that of its span.
  owner = np.arange(mask.shape[1])
  if isinstance(batch, PairedBatch):
    owner = processes.fetch(batch.student_spans)[row] - 1
  indices = np.flatnonzero(mask[row])[:PASSAGE_TOKENS]
  shown = np.isin(owner, indices)
  texts = label_texts(
    compiled.experiment.tokenizers.student,
    jax.tree.map(lambda field: field[row, : len(shown) - int(np.argmax(shown[::-1]))], student),
  )
  tokens = [
    {
      "text": "".join(itertools.compress(texts, owner[: len(texts)] == i)),
      "entropy": float(stats["teacher_entropy"][row, i]),
      "position": float(stats["position"][row, i]),
      "weight": float(stats["weight"][row, i]),
      "temperature": float(stats["temperature"][row, i]),
      "hard": bool(stats["hard"][row, i] > 0.5),
      "forward_kl": float(stats["forward_kl"][row, i]),
    }
    for i in indices
  ]
  workdir.write_json(files.PASSAGE, {"step": int(state.step), "tokens": tokens})


def label_texts(tokenizer: Tokenizer, row: Batch) -> list[str]:
  """The text of the label of each token in a row, decoded in the context of its segment.

  Args:
    tokenizer: the tokenizer of the row.
    row: a row, with fields [seq].

  Returns:
    A list of seq texts; "" in padding and where a segment has no further token.
  """
  texts = [""] * len(row.tokens)
  for segment in range(1, int(row.segment_ids.max()) + 1):
    indices = np.flatnonzero(row.segment_ids == segment)
    first, last = int(indices[0]), int(indices[-1])
    # Labels that do not count are 0 in `labels`, so the context comes from `tokens`.
    ids = [*row.tokens[first : last + 1].tolist(), int(row.labels[last])]
    if not row.mask[last]:
      ids.pop()
    texts[first : first + len(ids) - 1] = tokenizer.token_texts(ids)[1:]
  return texts


def _summary(
  compiled: CompiledRun,
  workdir: Workdir,
  skipped: int,
  tokens: int,
  seconds: Mapping[str, float],
) -> dict[str, Any]:
  experiment = compiled.experiment
  evaluations = read_jsonl(workdir / files.EVALUATIONS)
  models = experiment.models
  student, teacher = models.student.num_parameters(), models.teacher.num_parameters()

  def measured(result: Mapping[str, Any], parameters: int) -> dict[str, Any]:
    names = ("cross_entropy", "perplexity", "bits_per_byte", "forward_kl", "agreement")
    return {name: result[name] for name in names} | {"parameters": parameters}

  return {
    "method": experiment.method_name,
    "steps": experiment.optimization.steps - skipped,
    "skipped_steps": skipped,
    "tokens": tokens,
    "seconds": sum(seconds.values()),
    "seed": experiment.seed,
    "teacher": measured(evaluations[-1]["teacher"], teacher),
    "student_before": measured(evaluations[0]["student"], student),
    "student_after": measured(evaluations[-1]["student"], student),
    "export": str(workdir / files.EXPORT),
    "goodput": dict(seconds),
    "unread": list(experiment.models.unread),
    "command": _command(),
    "changes": [change._asdict() for change in identity.read_changes(workdir.path)],
  }


def summary_of(experiment: Experiment, workdir: epath.Path, state: TrainState) -> dict[str, Any]:
  """The summary of a checkpoint: the run's own if it is of that very step, else the counts alone.

  What the run measured holds for its last step, so nothing is claimed about another one.

  Args:
    experiment: the experiment that the workdir's config describes.
    workdir: the run's directory.
    state: the checkpoint's state.
  """
  step, skipped = int(state.step), int(state.guard.skipped)
  summary = read_json(workdir / files.SUMMARY)
  if summary and summary["steps"] + summary["skipped_steps"] == step:
    return summary
  changes = [change._asdict() for change in identity.read_changes(workdir) if change.step < step]
  return {
    "method": experiment.method_name,
    "steps": step - skipped,
    "skipped_steps": skipped,
    "seed": experiment.seed,
    "changes": changes,
  }


def _command() -> str:
  """The command that started this process, quoted for a shell."""
  program = ["python", sys.argv[0]] if sys.argv[0].endswith(".py") else sys.argv[0].split()
  return shlex.join([*program, *sys.argv[1:]])


def export(
  experiment: Experiment,
  params: Any,
  directory: Any,
  *,
  summary: Any,
  config: Any,
  samples: Any,
  what: str = "--workdir",
) -> None:
  """Writes the student in Hugging Face layout, with its model card.

  Args:
    experiment: the experiment that trained it.
    params: the student's parameters, on the devices. All processes must call this together: they
      gather tensor by tensor, and process 0 writes.
    directory: the directory to write.
    summary: the summary for the model card, from `summary_of` or of a finished run; read by process
      0 alone.
    config: the run's config for the model card, as JSON values.
    samples: the contents of samples.json; None for none.
    what: the flag or key that names the directory, for messages.
  """
  models, card, writes = experiment.models, "", processes.is_first()
  if writes:
    card = write_model_card(
      summary,
      config,
      teacher_name=models.teacher_name,
      teacher_license=models.teacher_license,
      samples=samples,
    )
  export_student(
    directory,
    models.student.config,
    params,
    experiment.tokenizers.student,
    model_card=card,
    generation=models.student_generation,
    dtype=experiment.export_dtype,
    what=what,
    fetch=lambda array, at: device_arrays.get(array, at, processes.fetch),
    writes=writes,
  )


def finish(
  compiled: CompiledRun,
  workdir: Workdir,
  state: TrainState,
  *,
  tokens: int,
  seconds: Callable[[], Mapping[str, float]],
) -> dict[str, Any]:
  """Writes all results of a finished run and returns the summary.

  Args:
    compiled: the run's programs.
    workdir: the run's directory.
    state: the state after the last step.
    tokens: number of target tokens trained on, over all steps that were not skipped.
    seconds: returns the seconds of each section of `goodput` so far, over all starts.
  """
  samples = _samples_after(compiled, workdir, state)
  with progress.phase("measuring a passage"):
    _write_passage(compiled, workdir, state)

  # Somebody may have put other files into the directory during the run.
  processes.on_all_processes(workdir.require_ours)
  skipped = int(processes.fetch(state.guard.skipped))
  with progress.phase("exporting the student"):
    summary = _summary(compiled, workdir, skipped, tokens, seconds()) if workdir.writes else None
    export(
      compiled.experiment,
      compiled.student_params(state),
      workdir / files.EXPORT,
      summary=summary,
      config=workdir.read_json(files.CONFIG),
      samples=samples,
    )
  if summary is not None:
    workdir.write_json(files.SUMMARY, summary)
    with progress.phase("drawing the report"), workdir.writing(REPORT):
      write_report(workdir.path)
  processes.wait("results")
  return summary or workdir.read_json(files.SUMMARY)


def whereabouts(workdir: Workdir) -> str:
  """Text for people: the first sample, and where the report and the student are."""
  lines = []
  for sample in (workdir.read_json(files.SAMPLES) or [])[:1]:
    lines.append(f"\nPrompt:  {sample['prompt']}")
    for who in ("before", "after", "teacher"):
      if sample[who] is not None:
        # One line per text, with the space that it may begin with.
        text = re.sub(r"\s+", " ", sample[who])
        lines.append(f"{who.capitalize() + ':':8} {text}")
  lines.append(f"\nReport:  {workdir / REPORT}\nStudent: {workdir / files.EXPORT}")
  return "\n".join(lines)
