"""docs/running.md: its commands pass the launchers' own checks, its keys and files exist."""

from __future__ import annotations

import re

import pytest

from configs import default
from tests.launch.stand_ins import ROOT, run

GUIDE = (ROOT / "docs" / "running.md").read_text()


def commands() -> list[str]:
  """The lines of the guide's shell blocks, continued lines joined."""
  text = "\n".join(re.findall(r"^```bash\n(.*?)^```", GUIDE, flags=re.M | re.S))
  joined = re.sub(r" *\\\n *", " ", text)
  return [line for line in joined.splitlines() if line and not line.startswith("#")]


def dry(command: str) -> str:
  """The same command as a dry run."""
  command = re.sub(r"^launch/tpu_pod.sh \w+|^launch/gke.sh", r"\g<0> --dry_run", command)
  return re.sub(r"^sbatch .*?launch/slurm.sbatch", "DRY_RUN=1 bash launch/slurm.sbatch", command)


LAUNCHES = [line for line in commands() if re.match(r"launch/(tpu_pod|gke)\.sh|sbatch ", line)]


@pytest.mark.parametrize("command", LAUNCHES)
def test_launchers_take_the_flags_of_the_guide(command, stubs):
  variables = re.findall(r"^export (\w+)=(\S+)", "\n".join(commands()), flags=re.M)
  out, _ = run(stubs, "bash", "-euc", dry(command), **dict(variables))
  assert out
  assert not (stubs / "calls").exists()


def test_the_guide_covers_every_command():
  text = "\n".join(LAUNCHES)
  for command in ("create", "setup", "run", "status", "logs", "profile", "stop", "delete"):
    assert f"launch/tpu_pod.sh {command} " in text
  assert "launch/gke.sh" in text
  assert "launch/slurm.sbatch" in text


def test_keys_and_files_of_the_guide_exist():
  config = default.get_config()
  keys = set(re.findall(r"--config\.([a-z_.]+)=", GUIDE))
  assert keys
  for key in keys:
    value = config
    for part in key.split("."):
      value = value[part]
  files = set(re.findall(r"(?:configs|launch|egad_jax)/[\w/]+\.(?:py|sh|yaml|sbatch)", GUIDE))
  assert files
  for file in files:
    assert (ROOT / file).exists(), file
  for link in re.findall(r"\]\((?!http)([^)#]+)", GUIDE):
    assert (ROOT / "docs" / link).exists(), link
