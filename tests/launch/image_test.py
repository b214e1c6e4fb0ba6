"""launch/Dockerfile: linted, its instructions read, its installation run with a false pip."""

from __future__ import annotations

import json
import pathlib
import re
import sys

import pytest

from tests.launch.stand_ins import ROOT, executable, lines, run

DOCKERFILE = ROOT / "launch" / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
  text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.M).replace("\\\n", "")
  return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line]


def test_hadolint_finds_nothing(stubs):
  run(stubs, pathlib.Path(sys.executable).with_name("hadolint"), DOCKERFILE)


def test_the_image_starts_the_trainer_without_a_shell_and_without_root():
  found = dict(instructions())
  python, script = json.loads(found["ENTRYPOINT"])
  assert python == "python"
  assert (ROOT / pathlib.Path(script).relative_to(found["WORKDIR"])).exists()
  json.loads(found["CMD"])
  order = [name for name, _ in instructions()]
  assert int(found["USER"]) > 0
  assert order.index("USER") > max(i for i, name in enumerate(order) if name == "RUN")
  bases = [value for name, value in instructions() if name == "ARG" and value.startswith("BASE=")]
  assert len(bases) == 1
  assert ":" in bases[0]
  assert "latest" not in bases[0]


def test_what_the_image_copies_is_there_and_not_ignored():
  ignored, *kept = [line for line in lines(ROOT / ".dockerignore") if not line.startswith("#")]
  assert ignored == "*"
  copied = [word for name, value in instructions() if name == "COPY" for word in value.split()[:-1]]
  assert copied
  for pattern in copied:
    assert list(ROOT.glob(pattern)), pattern
    assert any(pathlib.PurePath(pattern).match(line.removeprefix("!")) for line in kept), pattern


@pytest.mark.parametrize(
  ("extra", "files"),
  [
    ("tpu", "--requirement requirements.txt --requirement requirements-tpu.txt"),
    ("gpu", "--requirement requirements.txt --requirement requirements-gpu.txt"),
    ("cpu", "--requirement requirements.txt"),
    ("npu", None),
  ],
)
def test_the_image_installs_the_extra(extra, files, stubs):
  executable(stubs / "bin" / "pip", '#!/bin/sh\necho "$*" >> "$STUBS/pip"\n')
  step = next(value for name, value in instructions() if name == "RUN")
  _, err = run(stubs, "sh", "-c", step, EXTRA=extra, code=0 if files else 2)
  if files:
    assert lines(stubs / "pip") == [f"install --no-cache-dir {files}"]
  else:
    assert "EXTRA must be tpu, gpu or cpu, got npu" in err
    assert not (stubs / "pip").exists()
