"""The run's report: a self-contained report.html made from the files of a workdir.

It needs no model and no loss, only the files of the run, so it can be made again at any time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import numpy as np
from etils import epath
from markupsafe import Markup

from egad_jax.durability import identity
from egad_jax.errors import InputError
from egad_jax.files.storage import write_text
from egad_jax.reporting import plots
from egad_jax.reporting.passage import palettes, passage_views, plain, tooltip, visible
from egad_jax.reporting.svg import Record, finite

MODELS = ("student_before", "student_after", "teacher")
_REMEDY = "Run launch/run.py with this --workdir to the end, which writes it again."


class Records(NamedTuple):
  """The content of a workdir's JSON files.

  Attributes:
    config: content of config.json.
    metrics: lines of metrics.jsonl.
    evaluations: lines of evaluations.jsonl.
    summary: content of summary.json.
    samples: content of samples.json; None if there is no such file.
    passage: content of passage.json; None if there is no such file.
  """

  config: dict[str, Any]
  metrics: list[Record]
  evaluations: list[Record]
  summary: dict[str, Any]
  samples: list[Record] | None
  passage: dict[str, Any] | None


def write_report(workdir: epath.PathLike) -> epath.Path:
  """Writes report.html into a workdir, from the other files there; the file is replaced whole.

  Args:
    workdir: directory of a run, with config.json, metrics.jsonl, evaluations.jsonl, summary.json
      and, if the run made them, samples.json and passage.json.

  Returns:
    The path of the report.

  Raises:
    InputError: a required file is missing, or a file is not JSON of the expected type.
  """
  directory = epath.Path(workdir)
  page = render(read_records(directory))
  path = directory / "report.html"
  # Decoded text may hold lone surrogates, which UTF-8 cannot carry.
  write_text(path, page.encode("utf-8", "replace").decode())
  return path


def read_records(directory: epath.Path) -> Records:
  """Reads the records of a run from its workdir.

  Raises:
    InputError: a required file is missing, or a file is not JSON of the expected type.
  """
  return Records(
    config=_read_json(directory / "config.json", dict),
    metrics=_read_lines(directory / "metrics.jsonl"),
    evaluations=_read_lines(directory / "evaluations.jsonl"),
    summary=_read_json(directory / "summary.json", dict),
    samples=_read_json(directory / "samples.json", list, required=False),
    passage=_read_json(directory / "passage.json", dict, required=False),
  )


def render(records: Records) -> str:
  """Returns the report as one HTML document that loads no other resource."""
  last = records.evaluations[-1] if records.evaluations else {}
  tokens = (records.passage or {}).get("tokens") or []
  return (
    environment()
    .get_template("report.html.j2")
    .render(
      summary=records.summary,
      title=title(records),
      models=[records.summary.get(key) or {} for key in MODELS],
      cards=headline(records.summary),
      changes=changes(records.summary),
      held_out_tokens=last.get("tokens"),
      training=plots.training_panels(records.metrics, records.evaluations),
      mechanisms=plots.entropy_panels(records.metrics, records.evaluations),
      samples=records.samples,
      passage=records.passage,
      tokens=tokens,
      tooltips=[tooltip(token) for token in tokens],
      views=passage_views(tokens),
      palettes=palettes(),
      throughput=_median(records.metrics, "tokens_per_second"),
      duration=duration(records.summary.get("seconds")),
      config=list(flatten(records.config)),
    )
  )


def environment() -> jinja2.Environment:
  """The templates of this package, with filters that escape and format what files hold."""
  made = jinja2.Environment(
    loader=jinja2.PackageLoader("egad_jax.reporting", "."),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  made.filters |= {
    "number": number,
    "visible": visible,
    "plain": plain,
    "magnitude": magnitude,
  }
  return made


def changes(summary: Mapping[str, Any]) -> list[str]:
  """Returns a line for each input, config key or library that changed during the run."""
  return [identity.describe(identity.Change(**change)) for change in summary.get("changes") or ()]


def title(records: Records) -> str:
  """Names teacher, student, data and method: "A.gguf into 13 layers by egad, on python_docs"."""
  config = records.config
  teacher, student, data = (config.get(key) or {} for key in ("teacher", "student", "data"))
  name = lambda source: str(source or "?").rstrip("/").rpartition("/")[2]
  layers = len(student.get("layer_indices") or ()) or student.get("layers")
  if student.get("init") == "source":
    into = name(student.get("source"))
  else:
    made = "random" if student.get("init") == "random" else "of its"
    into = f"{layers} {made} layers" if layers else f"as many {made} layers"
  texts = data.get("source")
  on = ", ".join(map(name, texts)) if isinstance(texts, list | tuple) else name(texts)
  return f"{name(teacher.get('source'))} into {into} by {records.summary.get('method')}, on {on}"


def headline(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns the cards at the top of the report: one per measure.

  Args:
    summary: content of summary.json.

  Returns:
    Dictionaries of "key", "name", "before", "after", "teacher" and "closed". "closed" is the share
    of the gap between student and teacher that training closed: 1 if the student reached the
    teacher, negative if it moved away, None where undefined. Perplexity's is computed from its
    logarithm, the cross-entropy.
  """
  before, after, teacher = (summary.get(key) or {} for key in MODELS)
  cards = []
  for key, name in (
    ("forward_kl", "Forward KL, nats"),
    ("perplexity", "Perplexity"),
    ("bits_per_byte", "Bits per byte"),
    ("agreement", "Agreement"),
  ):
    values = [model.get(key) for model in (before, after, teacher)]
    card = dict(zip(("before", "after", "teacher"), values, strict=True))
    cards.append(card | {"key": key, "name": name, "closed": _gap_closed(key, finite(values))})
  return cards


def _gap_closed(key: str, values: np.ndarray) -> float | None:
  with np.errstate(divide="ignore", invalid="ignore"):
    before, after, teacher = np.log(values) if key == "perplexity" else values
    share = (before - after) / (before - teacher)
  return float(share) if np.isfinite(share) else None


def number(value: Any) -> Markup:
  """Returns `value` to four digits in a <data> element that keeps it exactly; "n/a" for null."""
  if value is None:
    return Markup("n/a")
  if isinstance(value, bool) or not isinstance(value, int | float):
    return plain(value)
  return Markup('<data value="{}">{}</data>').format(json.dumps(value), digits(value))


def digits(value: float) -> str:
  """Formats a float to four significant digits, and an integer in full; thousands are grouped."""
  size = abs(value)
  if isinstance(value, int) or not math.isfinite(value):
    return f"{value:,}"
  if size >= 1e7:
    return f"{value:.3e}"
  if size >= 1000:
    return f"{value:,.0f}"
  return f"{value:.4g}" if size < 0.001 else f"{value:.{3 - math.floor(math.log10(size))}f}"


def magnitude(value: float | None) -> str:
  """Returns a count in words with three significant digits, such as "74.4 million"."""
  if value is None:
    return "an unknown number of"
  for size, name in ((1e9, " billion"), (1e6, " million")):
    if value >= size:
      return f"{value / size:.3g}{name}"
  return f"{value:,}"


def duration(seconds: float | None) -> str:
  """Returns a wall time in words: "2 h 3 min", "5 min 12 s", "8.1 s"."""
  if seconds is None:
    return "n/a"
  if seconds < 60:
    return f"{seconds:.1f}\u00a0s"
  whole = round(seconds)
  hours, minutes = divmod(whole // 60, 60)
  text = f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"
  return text.replace(" ", "\u00a0")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
  """Yields (dotted key, value as JSON) of every leaf, in the tree's order."""
  for key, value in tree.items():
    if isinstance(value, Mapping) and value:
      yield from flatten(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", json.dumps(value, ensure_ascii=False)


def _median(metrics: Sequence[Record], key: str) -> float | None:
  values = finite([line.get(key) for line in metrics])
  return float(np.nanmedian(values)) if np.isfinite(values).any() else None


def _read_json(path: epath.Path, kind: type, *, required: bool = True) -> Any:
  text = _read(path, required=required)
  if text is None:
    return None
  try:
    value = json.loads(text)
  except ValueError as error:
    raise InputError(f"{path} must be JSON, but {error}. {_REMEDY}") from error
  if not isinstance(value, kind):
    raise InputError(f"{path} must hold a {kind.__name__}, got {type(value).__name__}. {_REMEDY}")
  return value


def _read_lines(path: epath.Path) -> list[Record]:
  records: list[Mapping[str, Any]] = []
  # Not splitlines: it also splits at U+2028, which JSON strings may hold.
  for position, line in enumerate((_read(path) or "").split("\n"), 1):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
    except ValueError as error:
      raise InputError(f"{path} line {position} must be JSON, but {error}. {_REMEDY}") from error
    if not isinstance(record, dict):
      raise InputError(f"{path} line {position} must be a JSON object. {_REMEDY}")
    records.append(record)
  return records


def _read(path: epath.Path, *, required: bool = True) -> str | None:
  try:
    return path.read_bytes().decode("utf-8")
  except (FileNotFoundError, NotADirectoryError) as error:
    if required:
      raise InputError(f"{path} is missing, and the report is made from it. {_REMEDY}") from error
    return None
  except UnicodeDecodeError as error:
    raise InputError(f"{path} must be UTF-8, but {error}. {_REMEDY}") from error
