"""Rows of `tests.faults.operators` about directories, configs, models and one run being one run."""

from __future__ import annotations

from tests.faults.operator_rows import Row

# A model of the row's own, that of the finished run.
_MODEL = "cp -r $S/done/export $S/m; "
_READ = "$PY launch/generate.py --model=$S/m --prompt=One --max_new_tokens=4"
_GENERATE = "generate.py --model=DIR"


def _first_key(file: str, entry: str) -> str:
  """Puts an entry in front of all others of a JSON object."""
  return f"sed -i '0,/{{/s//{{{entry}, /' $S/m/{file}; "


ROWS = (
  # Directories
  Row(
    "an output directory with other people's files",
    "mkdir -p $S/models/mine; echo x >$S/models/mine/notes; "
    "$PY launch/export.py --checkpoint=$S/done --output=$S/models; code=$?; "
    "test -e $S/models/mine/notes && exit $code",
    (2,),
    ("it holds mine",),
    before="code 0, the files deleted",
    command="export.py --checkpoint=$S/done --output=$S/models",
  ),
  Row(
    "the workdir as the output",
    "$PY launch/export.py --checkpoint=$S/done --output=$S/done",
    (2,),
    before="code 0, the run deleted with all its checkpoints",
  ),
  Row(
    "a model's directory as the workdir",
    _MODEL + "rm $S/m/egad_jax.json; $PY launch/run.py $FLAGS --workdir=$S/m",
    (2,),
    ("is no workdir of egad_jax, but holds config.json",),
    before="code 2, with the two configs compared key by key",
    command="run.py --workdir=MODEL",
  ),
  Row(
    "somebody's report.html in the workdir",
    "mkdir $S/run; echo mine >$S/run/report.html; $TRAIN; code=$?; "
    "grep -qx mine $S/run/report.html && exit $code",
    (2,),
    ("report.html",),
    before="code 0, replaced",
    command="$TRAIN",
  ),
  Row(
    "brackets in the workdir's path",
    '$PY launch/run.py $FLAGS --workdir="$S/run[1]" && '
    '$PY launch/export.py --checkpoint="$S/run[1]" --output=$S/out',
    (0,),
    before="no checkpoint can be read: the second command ends with 2",
  ),
  Row(
    "~ behind the = of a flag",
    "HOME=$S $PY launch/run.py $FLAGS '--workdir=~/w' && test -e $S/w/report.html",
    (0,),
    before="code 0, in a directory called ~",
  ),
  # One run
  Row(
    "config.json of a workdir is lost",
    "cp -r $S/done $S/run; rm $S/run/config.json; $TRAIN --config.seed=3",
    (2,),
    ("has checkpoints but no config.json",),
    before="goes on with whatever config is given",
    command="rm $S/run/config.json; $TRAIN",
  ),
  Row(
    "fewer steps than were made, by force",
    "cp -r $S/done $S/run; $TRAIN --config.steps=10 --force",
    (2,),
    ("must not be below",),
    before="goes on behind its own end",
    command="$TRAIN --config.steps=10 --force",
  ),
  Row(
    "a finished run with another learning rate, by force",
    "cp -r $S/done $S/run; $TRAIN --config.optimizer.learning_rate=1e-4 --force",
    (2,),
    ("holds a finished run",),
    before="code 0, says that it goes on, and does nothing",
    command="$TRAIN --config.optimizer.learning_rate=1e-4 --force",
  ),
  # Configs and data
  Row(
    "an exception inside get_config()",
    "printf 'def get_config():\\n  return 1 / 0\\n' >$S/mine.py; "
    "$PY launch/run.py --config=$S/mine.py --workdir=$S/run",
    (2,),
    ("mine.py, line 2: ZeroDivisionError",),
    before="traceback, code 1",
    command="run.py --config=mine.py",
  ),
  Row(
    "a misspelt key",
    "$TRAIN --config.stepz=3",
    (2,),
    ("steps",),
    before="code 2, without a hint",
  ),
  Row(
    "a preset that is not there",
    "$PY launch/run.py --config=configs/tinny.py --workdir=$S/run",
    (2,),
    ("tiny",),
    before="code 2: Configuration is not available",
  ),
  Row(
    "a batch larger than the data",
    "$TRAIN --config.batch_size=100000",
    (2,),
    ("is larger than the data",),
    before="trains, with the same rows twice in a batch",
  ),
  Row(
    "a number where a text should be",
    """printf '{"text": 5}\\n' >$S/a.jsonl; $TRAIN --config.data.source=$S/a.jsonl""",
    (2,),
    ("put quotes around it",),
    before="""code 2: no string under "text" (found keys ['text'])""",
    command="$TRAIN --config.data.source=a.jsonl",
  ),
  Row(
    "--print_config of a config that no run would take",
    "$TRAIN --config.batch_size=0 --print_config",
    (2,),
    before="code 0",
  ),
  # Files of models
  Row(
    "a stale index beside a whole model.safetensors",
    _MODEL + """echo '{"weight_map": {}}' >$S/m/model.safetensors.index.json; """ + _READ,
    (2,),
    ("holds two sets of weights",),
    before="code 0, the text of the old shards",
    command=_GENERATE,
  ),
  Row(
    "a key twice in config.json",
    _MODEL + _first_key("config.json", '"rope_theta": 1.0') + _READ,
    (2,),
    ("is there twice",),
    before="code 0, the last one won",
    command=_GENERATE,
  ),
  Row(
    "a window that the model does not have here",
    _MODEL + _first_key("config.json", '"sliding_window": 8') + _READ,
    (2,),
    ("sliding_window",),
    before="code 0, the text of a model without a window",
    command=_GENERATE,
  ),
  Row(
    "a key of config.json that is not known",
    _MODEL + _first_key("config.json", '"a_new_key": 8') + _READ,
    (0,),
    ("a_new_key",),
    before="code 0, no word",
    command=_GENERATE,
  ),
  Row(
    "a key of tokenizer.json that is not known",
    _MODEL + _first_key("tokenizer.json", '"a_new_key": 8') + _READ,
    (2,),
    ("a_new_key",),
    before="code 0, no word",
    command=_GENERATE,
  ),
  Row(
    "a workdir as the model",
    "$PY launch/generate.py --model=$S/done --prompt=One --max_new_tokens=4",
    (0,),
    before="code 2, about files of a tokenizer that are missing",
  ),
)
