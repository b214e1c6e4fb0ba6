"""Tests of the report, its figures and its passage, against an invented workdir."""

from __future__ import annotations

import html.parser
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from egad_jax import errors
from egad_jax.reporting import passage, plots, report
from tests.training import fake_run
from tests.training.fake_run import HOSTILE, rewrite, write_workdir


class Page(html.parser.HTMLParser):
  """What a reader's browser makes of the report."""

  VOID = frozenset({"meta", "br", "img", "link", "hr"})

  def __init__(self, path: Path) -> None:
    super().__init__(convert_charrefs=True)
    self.tags: list[tuple[str, dict[str, str | None]]] = []
    self.open: list[str] = []
    self.text = ""
    self.values: list[str] = []
    self.drawn: dict[str, int] = {}  # aria-label of each <svg> -> number of paths in it.
    self.feed(path.read_text(encoding="utf-8"))
    assert self.open == []

  def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
    attributes = dict(attrs)
    self.tags.append((tag, attributes))
    if tag not in self.VOID:
      self.open.append(tag)
    if tag == "svg":
      self.label = attributes["aria-label"] or ""
      self.drawn[self.label] = 0
    if tag == "path" and "svg" in self.open:
      self.drawn[self.label] += 1
    if tag == "data":
      self.values.append(attributes["value"] or "")

  def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
    self.handle_starttag(tag, attrs)
    self.handle_endtag(tag)

  def handle_endtag(self, tag: str) -> None:
    if tag not in self.VOID:
      assert self.open.pop() == tag

  def handle_data(self, data: str) -> None:
    if "style" not in self.open:
      self.text += data

  def ids(self) -> list[str]:
    return [attributes["id"] or "" for _, attributes in self.tags if "id" in attributes]

  def svg_of(self, panel: str) -> bool:
    return any(name.startswith(f"{panel}-") for name in self.ids())


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, dict[str, Any], Path]:
  directory = tmp_path_factory.mktemp("run")
  content = write_workdir(directory)
  return Page(Path(report.write_report(directory))), content, directory


PANELS = (
  "loss",
  "held-out-kl",
  "held-out-cross-entropy",
  "optimizer",
  "entropy-histogram",
  "kl-along-entropy",
  "weight-along-entropy",
  "temperature-along-entropy",
  "curriculum-over-steps",
  "temperature-over-steps",
)


def test_report_has_its_sections_and_every_figure_is_drawn(full):
  page, _, directory = full
  assert {"results", "training", "mechanisms", "passage", "samples", "run"} <= set(page.ids())
  assert all(page.svg_of(panel) for panel in PANELS)
  assert len(page.drawn) == len(PANELS)
  assert min(page.drawn.values()) > 3
  assert len(set(page.ids())) == len(page.ids())
  assert sorted(path.name for path in directory.iterdir() if "report" in path.name) == [
    "report.html"
  ]


def test_report_loads_nothing_and_runs_nothing(full):
  page, _, directory = full
  loaders = {
    "script",
    "link",
    "img",
    "iframe",
    "object",
    "embed",
    "image",
    "audio",
    "video",
    "base",
  }
  assert loaders.isdisjoint(tag for tag, _ in page.tags)
  for _, attributes in page.tags:
    assert not any(name.startswith("on") for name in attributes)
    assert "src" not in attributes
    for name in ("href", "xlink:href"):
      assert (attributes.get(name) or "#").startswith("#")
    assert "url(" not in (attributes.get("style") or "").replace("url(#", "")
  # The address that the hostile text holds is the only one, and it is text.
  source = (directory / "report.html").read_text(encoding="utf-8")
  assert set(re.findall(r"https?://[^\s&<\"]*", source)) == {"http://evil.example/x.png"}


def test_text_of_tokens_prompts_samples_and_config_is_escaped(full):
  page, content, directory = full
  source = (directory / "report.html").read_text(encoding="utf-8")
  assert "<script" not in source
  assert "<img" not in source
  # Three passage views, a prompt, a continuation, a foreign key; the config shows it as JSON.
  assert page.text.count(HOSTILE) == 6
  assert json.dumps(content["config.json"]["data"]["source"]) in page.text
  assert page.text.count("[U+0000][U+202E]") == 3
  assert "\x00" not in source
  assert "\u202e" not in source


def test_values_shown_are_the_files_values(full):
  page, content, _ = full
  summary = content["summary.json"]
  shown = {float(value) for value in page.values}
  for model in ("student_before", "student_after", "teacher"):
    for key in report_keys():
      assert summary[model][key] in shown, (model, key)
  assert content["evaluations.jsonl"][-1]["tokens"] in shown
  assert {summary["steps"], summary["tokens"], summary["seed"]} <= shown
  assert "5\u00a0min\u00a012\u00a0s" in page.text
  assert set(summary["goodput"].values()) - {0.0} <= shown
  assert "83.2 %" in page.text
  assert "; ".join(summary["unread"]) in page.text
  for key, value in report.flatten(content["config.json"]):
    assert key in page.text
    assert value in page.text


def report_keys() -> tuple[str, ...]:
  return (
    "forward_kl",
    "cross_entropy",
    "perplexity",
    "bits_per_byte",
    "agreement",
    "parameters",
  )


def test_passage_reads_as_the_text_in_each_view(full):
  _, content, directory = full
  source = (directory / "report.html").read_text(encoding="utf-8")
  bodies = re.findall(r'<div class="passage"[^>]*>(.*?)</div>', source, re.DOTALL)
  assert len(bodies) == 3
  tokens = content["passage.json"]["tokens"]
  for body in bodies:
    spans = re.findall(r"<span[^>]*>(.*?)</span>", body, re.DOTALL)
    assert len(spans) == len(tokens)
  assert bodies[2].count('class="b1"') == sum(token["hard"] for token in tokens)
  assert bodies[0].count('class="e') == len(tokens) - 1  # The first entropy is null.
  assert f"entropy {tokens[1]['entropy']:.4g} nats" in source


def test_headline_share_of_gap():
  models = [{"perplexity": 100.0, "forward_kl": 4.0, "agreement": None}]
  models += [{"perplexity": 10.0, "forward_kl": 5.0, "agreement": 0.5}]
  models += [{"perplexity": 1.0, "forward_kl": 0.0, "agreement": 1.0}]
  names = ("student_before", "student_after", "teacher")
  cards = {c["key"]: c["closed"] for c in report.headline(dict(zip(names, models, strict=True)))}
  assert cards["perplexity"] == pytest.approx(0.5)
  assert cards["forward_kl"] == pytest.approx(-0.25)
  assert cards["agreement"] is None
  assert cards["bits_per_byte"] is None


def test_mechanisms_that_are_off_are_said_to_be_off(tmp_path):
  content = write_workdir(tmp_path)
  for line in content["evaluations.jsonl"]:
    bins = line["entropy_bins"]
    bins["weight"] = [None] * 32
    bins["temperature"] = [None if value is None else 2.0 for value in bins["temperature"]]
    bins["hard"] = [None if value is None else 0.0 for value in bins["hard"]]
  for line in content["metrics.jsonl"]:
    line |= {f"temperature_{key}": 2.0 for key in ("min", "mean", "max")}
    line |= {"feature_loss": None, "curriculum_progress": None, "weight_mean": None}
  for token in content["passage.json"]["tokens"]:
    token |= {"weight": None, "temperature": 2.0, "hard": 0}
  for name in ("evaluations.jsonl", "metrics.jsonl", "passage.json"):
    rewrite(tmp_path, name, content[name])
  page = Page(Path(report.write_report(tmp_path)))
  for panel in PANELS[6:]:
    assert not page.svg_of(panel)
  assert all(page.svg_of(panel) for panel in PANELS[:6])
  assert "No weights were recorded." in page.text
  assert "Every token has temperature 2: nothing adapts it." in page.text
  assert page.text.count("No token is treated as hard: the method does not tell tokens apart.") == 2
  assert "There is no feature loss in this run." in page.text


def test_uniform_weights_are_not_drawn():
  lines = fake_run.evaluations(3, 30)
  for line in lines:
    bins = line["entropy_bins"]
    bins["weight"] = [None if value is None else 1.0 for value in bins["weight"]]
  panels = {panel.name: panel for panel in plots.entropy_panels(fake_run.metrics(3), lines)}
  assert panels["weight-along-entropy"].svg is None
  caption = panels["weight-along-entropy"].caption
  assert caption == "Every token has weight 1: nothing weights tokens."
  assert panels["temperature-along-entropy"].svg is not None


def test_one_evaluation_no_samples_no_passage(tmp_path):
  write_workdir(tmp_path, num_evaluations=1, steps=1)
  (tmp_path / "samples.json").unlink()
  (tmp_path / "passage.json").unlink()
  page = Page(Path(report.write_report(tmp_path)))
  assert "no samples.json" in page.text
  assert "no passage.json" in page.text
  assert "One evaluation only" in page.text
  assert page.svg_of("weight-along-entropy")
  assert min(page.drawn.values()) > 3


def test_many_lines_are_thinned_and_say_so(tmp_path):
  write_workdir(tmp_path, num_evaluations=40, steps=3000)
  path = Path(report.write_report(tmp_path))
  assert "12 of 40 evaluations are drawn." in Page(path).text
  assert "Each point is the mean of 5 logged steps." in Page(path).text
  assert path.stat().st_size < 1_000_000


def test_null_values_everywhere_still_make_a_report(tmp_path):
  content = write_workdir(tmp_path)
  metrics = [dict.fromkeys(line) | {"step": line["step"]} for line in content["metrics.jsonl"]]
  evaluations = [
    {"step": line["step"], "student": dict.fromkeys(line["student"]), "teacher": None}
    for line in content["evaluations.jsonl"]
  ]
  summary = dict.fromkeys(content["summary.json"])
  rewrite(tmp_path, "metrics.jsonl", metrics)
  rewrite(tmp_path, "evaluations.jsonl", evaluations)
  rewrite(tmp_path, "summary.json", summary)
  rewrite(tmp_path, "passage.json", {"step": 0, "tokens": [{"text": "a"}]})
  rewrite(tmp_path, "samples.json", [{"prompt": "a", "teacher": None, "before": None}])
  page = Page(Path(report.write_report(tmp_path)))
  assert page.drawn == {}
  assert "NaN" not in page.text
  assert page.text.count("n/a") > 20


@pytest.mark.short_form(1)
@pytest.mark.parametrize(
  ("skipped", "note"),
  [
    ((0, 3, 4, 29), "4 steps were skipped"),
    ((), ""),
    ((0,), "1 step was skipped: not finite, or a spike."),
    (range(30), "30 steps were skipped"),
  ],
)
def test_skipped_steps_are_gaps_and_counted(skipped, note, tmp_path):
  content = write_workdir(tmp_path)
  fake_run.skip(content["metrics.jsonl"], skipped)
  rewrite(tmp_path, "metrics.jsonl", content["metrics.jsonl"])
  page = Page(Path(report.write_report(tmp_path)))
  # Where all are skipped, there is no loss to draw; what does not depend on one still is.
  assert page.svg_of("loss") == (len(skipped) < 30)
  assert page.svg_of("optimizer")
  assert page.svg_of("temperature-over-steps")
  assert note in page.text
  assert ("skipped" in page.text) == bool(skipped)


def test_nan_in_records_leaves_gaps(tmp_path):
  content = write_workdir(tmp_path)
  content["metrics.jsonl"][3]["loss"] = math.nan
  content["metrics.jsonl"][4]["grad_norm"] = math.inf
  rewrite(tmp_path, "metrics.jsonl", content["metrics.jsonl"])
  assert Page(Path(report.write_report(tmp_path))).svg_of("loss")


@pytest.mark.parametrize(
  "name", ["config.json", "metrics.jsonl", "evaluations.jsonl", "summary.json"]
)
def test_missing_required_file_is_named(tmp_path, name):
  write_workdir(tmp_path, num_evaluations=1, steps=2)
  (tmp_path / name).unlink()
  with pytest.raises(errors.InputError, match=rf"{name} is missing.*launch/run\.py"):
    report.write_report(tmp_path)
  assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("summary.json", '{"a": ', r"summary\.json must be JSON"),
    ("summary.json", "[]", r"summary\.json must hold a dict, got list"),
    ("samples.json", "{}", r"samples\.json must hold a list, got dict"),
    ("metrics.jsonl", '{"step": 1}\n{"st', r"metrics\.jsonl line 2 must be JSON"),
    ("evaluations.jsonl", "3\n", r"evaluations\.jsonl line 1 must be a JSON object"),
    ("passage.json", b"\xff", r"passage\.json must be UTF-8"),
  ],
)
def test_broken_file_is_named(tmp_path, name, text, message):
  write_workdir(tmp_path, num_evaluations=1, steps=2)
  (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(errors.InputError, match=message):
    report.write_report(tmp_path)


def test_report_is_deterministic_and_replaces_the_old_one(tmp_path):
  write_workdir(tmp_path, num_evaluations=2, steps=3)
  path = Path(report.write_report(str(tmp_path)))
  first = path.read_bytes()
  path.write_text("old")
  assert Path(report.write_report(tmp_path)).read_bytes() == first


def test_lone_surrogates_are_replaced(tmp_path):
  write_workdir(tmp_path, num_evaluations=1, steps=2)
  (tmp_path / "samples.json").write_text('[{"prompt": "\\ud83d", "before": "", "after": ""}]')
  assert "?" in Page(Path(report.write_report(tmp_path))).text


@pytest.mark.parametrize(
  ("value", "shown"),
  [
    (None, "n/a"),
    (2.30951, "2.310"),
    (0.012345, "0.01235"),
    (62944.3, "62,944"),
    (1e-5, "1e-05"),
    (1e300, "1.000e+300"),
  ],
)
def test_number(value, shown):
  assert re.sub("<[^>]*>", "", report.number(value)) == shown


@pytest.mark.parametrize(
  ("seconds", "shown"), [(8.13, "8.1 s"), (312.4, "5 min 12 s"), (7384.0, "2 h 3 min")]
)
def test_duration(seconds, shown):
  assert report.duration(seconds).replace("\u00a0", " ") == shown


def test_every_shade_has_readable_text():
  for palette in passage.palettes().values():
    for background, text in palette:
      light, dark = sorted(map(passage.luminance, (background, text)), reverse=True)
      assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_visible_marks_whitespace_and_keeps_the_text():
  assert passage.visible(" a\n") == " a<i>↵</i>\n"
  assert passage.visible(" ") == "<i>·</i>"
  assert passage.visible("  <b>\t") == "<i>··</i>&lt;b&gt;<i>→</i>\t"


def test_a_run_of_nothing_finite_has_a_report(tmp_path):
  """All that a student which overflowed leaves is null, and the teacher's numbers stand."""
  content = write_workdir(tmp_path, num_evaluations=3, steps=6)
  for line in content["evaluations.jsonl"]:
    line["student"] = dict.fromkeys(line["student"])
    for key in ("forward_kl", "weight", "temperature"):
      line["entropy_bins"][key] = [None] * len(line["entropy_bins"][key])
  for line in content["metrics.jsonl"]:
    line |= dict.fromkeys(key for key in line if key not in ("step", "tokens", "skipped"))
  summary = content["summary.json"]
  for model in ("student_before", "student_after"):
    summary[model] = dict.fromkeys(summary[model]) | {"parameters": 74351616}
  summary |= {"steps": 2, "skipped_steps": 4}
  summary["changes"] = [
    {"step": 3, "what": "data", "before": "ab", "after": "<b>", "forced": True},
    {"step": 4, "what": "config.seed", "before": 1, "after": None, "forced": True},
  ]
  for token in content["passage.json"]["tokens"]:
    token |= {"weight": None, "temperature": None, "position": None}
  for name, value in content.items():
    rewrite(tmp_path, name, value)
  page = report.write_report(tmp_path).read_text()
  assert "nan" not in page.lower().replace("nano", "")
  assert page.count("n/a") > 8
  assert "whose update was withheld" in page
  assert "the documents (config.data.source): ab until step 3, then &lt;b&gt;" in page
  assert "config.seed: 1 until step 4, then None" in page


def test_the_title_names_teacher_student_data_and_method_and_the_command_is_shown(tmp_path):
  write_workdir(tmp_path)
  records = report.read_records(epath.Path(tmp_path))
  config = {
    "teacher": {"source": "models/Big"},
    "student": {"init": "layers", "layers": 6},
    "data": {"source": "texts/*.jsonl"},
  }
  summary = {**records.summary, "command": "python launch/run.py --config=<tiny>"}
  page = report.render(records._replace(config=config, summary=summary))
  title = "Big into 6 of its layers by egad, on *.jsonl"
  assert f"<title>{title}</title>" in page
  assert f"<h1>{title}</h1>" in page
  assert "python launch/run.py --config=&lt;tiny&gt;" in page


def test_the_gap_bar_of_a_student_that_got_worse_says_so(tmp_path):
  write_workdir(tmp_path)
  records = report.read_records(epath.Path(tmp_path))
  summary = json.loads(json.dumps(records.summary))
  summary["student_after"]["forward_kl"] = 1.5 * summary["student_before"]["forward_kl"]
  page = report.render(records._replace(summary=summary))
  assert "the gap grew by 50.0 %" in page
  assert re.search(r'class="bar worse"[^>]*><b style="width: 50\.0', page)


def test_each_token_tells_the_student_s_kl():
  tokens = [{"text": "a", "forward_kl": 0.25}, {"text": "b", "forward_kl": 4.0}]
  views = {view.title: view for view in passage.passage_views(tokens)}
  view = views["KL of the student to the teacher"]
  # Square-root scale: a quarter of a nat is a quarter of the way to four.
  assert view.classes == ["k6", "k23"]
  assert passage.tooltip(tokens[0]) == "KL 0.25 nats"
