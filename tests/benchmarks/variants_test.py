"""Which settings each variant of the step's benchmark has."""

from __future__ import annotations

import pytest

from benchmarks.variants import variants
from configs import default, quickstart
from egad_jax import from_config
from egad_jax.errors import InputError


def settings(config):
  return (
    config.method,
    config.curriculum.kind,
    config.temperature.kind,
    config.branch.tokens if config.branch.weight else None,
  )


@pytest.mark.parametrize("base", [default, quickstart])
def test_variants_do_not_depend_on_the_mechanisms_of_the_config(base):
  found = {label: settings(config) for label, config in variants(base.get_config(), [])}
  assert found["egad, as the presets have it"] == ("egad", "uniform", "fixed", "all")
  assert found["egad, all three mechanisms"] == ("egad", "linear", "adaptive", "hard")
  assert found["egad, curriculum alone"] == ("egad", "linear", "fixed", None)
  assert found["egad, temperature alone"] == ("egad", "uniform", "adaptive", None)
  assert found["egad, branch alone"] == ("egad", "uniform", "fixed", "hard")
  # The paper's, whose temperature follows the difficulty.
  assert found["adakd"][2] == "adaptive"


def test_options_stay_with_what_reads_them():
  config = default.get_config()
  config.teacher.source = "random:tiny"
  config.method = "adakd"
  config.method_options.adakd.ratio_step = 0.1
  config.loss.divergence = "jensen_shannon"
  config.loss.divergence_options.jensen_shannon.beta = 0.1
  for label, changed in variants(config, ["adakd", "taid"]):
    from_config.validate(changed)
    assert changed.method_options.adakd.ratio_step == (0.1 if label == "adakd" else 0.05)
    beta = changed.loss.divergence_options.jensen_shannon.beta
    assert beta == (0.5 if label == "taid" else 0.1)


def test_the_baseline_comes_first_and_unknown_names_are_refused():
  config = default.get_config()
  assert [label for label, _ in variants(config, ["preset"])] == [
    "vanilla_kd",
    "egad, as the presets have it",
  ]
  with pytest.raises(InputError, match=r"--methods: no egda; there are vanilla_kd, curriculum"):
    list(variants(config, ["egda"]))
