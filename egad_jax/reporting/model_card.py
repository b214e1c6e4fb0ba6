"""The model card of an exported student: its origin, measurements, use and licence."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import yaml

from egad_jax.models.license import License
from egad_jax.reporting.report import changes, digits, duration, flatten, magnitude

MAX_SAMPLES = 3
# Config keys that shape the student; the others say where and how fast the run was made.
_SHAPING = (
  "method",
  "seed",
  "steps",
  "batch_size",
  "seq_len",
  "accumulation",
  "student",
  "data",
  "loss",
  "curriculum",
  "temperature",
  "branch",
  "distribution",
  "optimizer",
)
_MEASURES = (
  ("forward_kl", "Forward KL to the teacher (nats per token)"),
  ("cross_entropy", "Cross-entropy (nats per token)"),
  ("perplexity", "Perplexity"),
  ("bits_per_byte", "Bits per byte"),
  ("agreement", "Same most likely token as the teacher"),
)
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_ADDRESS = re.compile(r"https?://\S+")
_LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def write_model_card(
  summary: Mapping[str, Any],
  config: Mapping[str, Any],
  *,
  teacher_name: str,
  teacher_license: License | None,
  samples: Sequence[Mapping[str, Any]] | None,
) -> str:
  """Returns the text of the model card, Markdown with YAML front matter.

  Args:
    summary: content of summary.json. Absent measurements are shown as "not measured"; null ones,
      which were not finite, as "n/a".
    config: content of config.json. Absolute paths are shown by their last part only, since a card
      is made to be published.
    teacher_name: the name under which a reader can find the teacher. It becomes `base_model` only
      in the form owner/name, which that field requires.
    teacher_license: the licence that the teacher's files state; None if they state none.
    samples: content of samples.json, of which the first `MAX_SAMPLES` are shown; None if the run
      made none.
  """
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("egad_jax.reporting", "."),
    # Markdown, not HTML: `_cell` and `_fence` keep foreign text from becoming markup.
    autoescape=False,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    undefined=jinja2.StrictUndefined,
  )
  environment.filters |= {"cell": _cell, "fence": _fence, "magnitude": magnitude}
  text = environment.get_template("model_card.md.j2").render(
    front_matter=_front_matter(teacher_name, teacher_license),
    summary=summary,
    models=[summary.get(key) or {} for key in ("student_before", "student_after", "teacher")],
    measures=_MEASURES,
    measured=_measured,
    duration=duration(summary.get("seconds")).replace("\u00a0", " "),
    teacher_name=teacher_name,
    license=teacher_license,
    license_text=None if teacher_license is None else teacher_license.name or teacher_license[0],
    settings=_settings(config),
    changes=changes(summary),
    samples=list(samples or [])[:MAX_SAMPLES],
  )
  # Decoded text may hold lone surrogates, which UTF-8 cannot carry.
  return text.encode("utf-8", "replace").decode("utf-8")


def _front_matter(teacher_name: str, teacher_license: License | None) -> str:
  fields: dict[str, Any] = {}
  if teacher_license is None:
    fields["license"] = "unknown"
  elif _LICENSE_ID.fullmatch(teacher_license.identifier.lower()):
    fields["license"] = teacher_license.identifier.lower()
    if teacher_license.name:
      fields["license_name"] = teacher_license.name
  else:
    fields |= {"license": "other", "license_name": teacher_license.name or teacher_license[0]}
  # A relative link into the teacher's directory would lead nowhere from the card.
  if teacher_license is not None and _ADDRESS.fullmatch(teacher_license.link or ""):
    fields["license_link"] = teacher_license.link
  if _HUB_ID.fullmatch(teacher_name):
    fields["base_model"] = teacher_name
  fields |= {
    "library_name": "transformers",
    "pipeline_tag": "text-generation",
    "tags": ["distillation", "egad_jax"],
  }
  return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True).strip()


def _settings(config: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Returns (dotted key, value) of the settings that shaped the student."""
  shaping = {key: config[key] for key in _SHAPING if key in config}
  return [(key, _public(value)) for key, value in flatten(shaping)]


def _public(value: str) -> str:
  """Cuts each absolute path or address in a JSON value down to its last part."""
  absolute = r'"(?:/|~|[A-Za-z]:\\|[a-z0-9]+://)[^"]*?([^/\\"]*)[/\\]*"'
  return re.sub(absolute, r'"\1"', value)


def _measured(key: str, model: Mapping[str, Any]) -> str:
  if key not in model:
    return "not measured"
  value = model[key]
  if value is None:
    return "n/a"
  return f"{100 * value:.1f} %" if key == "agreement" else digits(value)


def _cell(text: object) -> str:
  """Returns text as an inline code span that stays in one table cell."""
  line = re.sub(r"\s+", " ", str(text)).replace("|", "\\|")
  ticks = "`" * (_longest_run(line) + 1)
  # Markdown strips one space on each side, which lets the text start or end with a backtick.
  return f"{ticks} {line} {ticks}" if "`" in line else f"`{line}`"


def _fence(text: object) -> str:
  """Returns text as a fenced block that the text cannot close."""
  ticks = "`" * max(3, _longest_run(str(text)) + 1)
  return f"{ticks}text\n{text}\n{ticks}"


def _longest_run(text: str) -> int:
  return max((len(run) for run in re.findall("`+", text)), default=0)
