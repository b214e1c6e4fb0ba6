"""The rows of `tests.faults.operators`: to add one, add a `Row`."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
  """A fault, what leads to it, and how it must end.

  Attributes:
    fault: in words.
    script: of bash, in the repository's root. $TRAIN is a short run in $S/run, $FLAGS its flags,
      $GENERATE a generation by the finished run in $S/done, $PY the Python of both, and $S a
      directory of the row's own.
    codes: that it may end with.
    says: words that it must print.
    before: what came of it before it was mended.
    command: for people, where the script is longer than its idea.
  """

  fault: str
  script: str
  codes: tuple[int, ...]
  says: tuple[str, ...] = ()
  before: str = ""
  command: str = ""


_TRACEBACK = "traceback, code 1"

ROWS = (
  # Streams
  Row("stdout and stderr closed", "$TRAIN >&- 2>&- && test -e $S/run/report.html", (0,)),
  Row(
    "a reader that leaves",
    "set -o pipefail; $TRAIN 2>&1 | head -n 1; test -e $S/run/report.html",
    (0,),
    before=_TRACEBACK,
    command="$TRAIN 2>&1 | head -n 1",
  ),
  Row(
    "a reader that never reads: the pipe is full",
    "mkfifo $S/pipe; exec 3<>$S/pipe; "
    "$PY -c 'import os; os.set_blocking(3, False); [os.write(3, b\"x\") for _ in range(65536)]'; "
    "$PY -c 'import os; os.set_blocking(3, True)'; "
    "$TRAIN >&3 2>&3 && test -e $S/run/report.html",
    (0,),
    before="hangs for ever, by its code",
    command="$TRAIN >&3 2>&3 # into a pipe that is full",
  ),
  Row(
    "SIGTERM when nobody reads",
    "$TRAIN --config.steps=100000 > >(read -r line) 2>&1 & "
    "until test -e $S/run/checkpoints/10; do sleep 0.2; done; kill -TERM $!; wait $!",
    (75,),
    before="goes on for ever",
    command="$TRAIN 2>&1 | head -n 1 & kill -TERM PID",
  ),
  Row("stderr on a full disk", "$TRAIN 2>/dev/full && test -e $S/run/report.html", (0,)),
  Row("training with stdout on a full disk", "$TRAIN >/dev/full", (0,), before=_TRACEBACK),
  Row(
    "generate.py into a reader that leaves",
    "set -o pipefail; $GENERATE --max_new_tokens=8 | true",
    (141,),
    before=_TRACEBACK,
  ),
  Row(
    "generate.py with stdout on a full disk",
    "$GENERATE --max_new_tokens=8 >/dev/full",
    (1,),
    ("standard output: No space left on device",),
    before=_TRACEBACK,
  ),
  Row(
    "generate.py without a stdout",
    "$GENERATE --max_new_tokens=8 >&-",
    (1,),
    ("standard output: Bad file descriptor",),
    before=_TRACEBACK,
  ),
  # Files that are none
  Row(
    "tokenizer.json is a pipe",
    "rm -rf $S/m; cp -r $S/done/export $S/m; rm $S/m/tokenizer.json; mkfifo $S/m/tokenizer.json; "
    "$PY launch/generate.py --model=$S/m --prompt=x",
    (2,),
    ("tokenizer.json must be a file; it is a pipe",),
    before="hangs for ever",
    command="generate.py --model=DIR",
  ),
  Row(
    "model.safetensors is a link to a device",
    "rm -rf $S/m; cp -r $S/done/export $S/m; ln -sf /dev/zero $S/m/model.safetensors; "
    "$PY launch/generate.py --model=$S/m --prompt=x",
    (2,),
    ("model.safetensors must be a file; it is a device",),
    before="code 2: it has neither",
    command="generate.py --model=DIR",
  ),
  Row(
    "config.json is a directory",
    "rm -rf $S/m; cp -r $S/done/export $S/m; rm $S/m/config.json; mkdir $S/m/config.json; "
    "$PY launch/generate.py --model=$S/m --prompt=x",
    (2,),
    ("config.json must be a file; it is a directory",),
    before="code 2: no such file",
    command="generate.py --model=DIR",
  ),
  Row(
    "a GGUF file is a pipe",
    "mkfifo $S/x.gguf; $PY launch/generate.py --model=$S/x.gguf --prompt=x",
    (2,),
    ("x.gguf must be a file; it is a pipe",),
    before="code 2: no such GGUF file",
  ),
  Row("the data are a device", "$TRAIN --config.data.source=/dev/zero", (2,), ("a device",)),
  Row(
    "summary.json of the workdir is a pipe",
    "mkdir $S/run; mkfifo $S/run/summary.json; $TRAIN",
    (2,),
    before="hangs for ever",
  ),
  # What a user can mend
  Row(
    "a platform that is not there",
    "JAX_PLATFORMS=cuda $TRAIN",
    (2,),
    ("JAX_PLATFORMS='cuda' cannot be used here",),
    before=_TRACEBACK,
  ),
  Row(
    "a platform misspelt",
    "JAX_PLATFORMS=cpuu $TRAIN",
    (2,),
    ("not in the list of known backends",),
    before=_TRACEBACK,
  ),
  Row(
    "an unknown flag in XLA_FLAGS",
    "XLA_FLAGS=--xla_nonsense=1 $TRAIN",
    (2,),
    ("Unknown flag in XLA_FLAGS: --xla_nonsense=1",),
    before="code 1 from XLA",
  ),
  Row(
    "a bad value in a JAX variable",
    "JAX_ENABLE_X64=maybe $TRAIN",
    (2,),
    ("JAX_ENABLE_X64",),
    before=_TRACEBACK,
  ),
  Row(
    "a bad number in a SLURM variable",
    "SLURM_STEP_NODELIST=a SLURM_NTASKS=2 SLURM_PROCID=0 SLURM_LOCALID=x SLURM_JOB_ID=y $TRAIN",
    (2,),
    ("launcher's variables",),
    before=_TRACEBACK,
  ),
  Row(
    "a port that is taken",
    'exec 3< <(exec $PY -c \'import socket, time; s = socket.socket(); s.bind(("", 45671)); '
    "s.listen(); print(flush=True); time.sleep(60)'); read -r -u 3; "
    "$TRAIN --coordinator_address=127.0.0.1:45671 --num_processes=2 --process_id=0; code=$?; "
    "kill $!; exit $code",
    (1,),
    ("port 45671 of --coordinator_address is taken",),
    before="traceback, code 1, or a crash",
    command="$TRAIN --coordinator_address=127.0.0.1:45671 --num_processes=2 --process_id=0",
  ),
  Row(
    "gs:// without its package",
    "$TRAIN --workdir=gs://bucket/run",
    (2,),
    ("needs the Python package gcsfs",),
    before=_TRACEBACK,
  ),
  Row(
    "data in s3:// without its package",
    "$TRAIN '--config.data.source=s3://bucket/*.jsonl'",
    (2,),
    ("needs the Python package s3fs",),
    before=_TRACEBACK,
  ),
  Row(
    "another Python, without the packages",
    "PYTHONPATH= /usr/bin/env -i /usr/bin/python3 launch/run.py $FLAGS --workdir=$S/run",
    (2,),
    ("Use .venv/bin/python",),
    before=_TRACEBACK,
    command="/usr/bin/python3 launch/run.py …",
  ),
  Row("a seed that is too large", "$TRAIN --config.seed=4294967296", (2,), before=_TRACEBACK),
  Row(
    "a teacher that may not be read",
    "cp -r $S/done/export $S/m; chmod 0 $S/m; mkdir -m 777 $S/run; "
    "setpriv --reuid=65534 --clear-groups $TRAIN --config.teacher.source=$S/m "
    "--config.data.cache=$S/run/data",
    (2,),
    ("Permission denied",),
    before="traceback, code 1, by its code",
  ),
  Row(
    "no home directory",
    "env -u HOME $PY launch/run.py $FLAGS --config.compilation_cache='~/nowhere/programs' "
    "--workdir=$S/run --config.steps=2",
    (0, 2),
  ),
  Row(
    "few open files allowed",
    "ulimit -n 24; $TRAIN",
    (0, 1),
  ),
  # Signals
  Row(
    "Ctrl-C when SIGINT was ignored at the start",
    "trap '' INT; setsid --wait launch/restart.sh -- "
    "sh -c 'trap \"exit 75\" INT; kill -INT 0; exit 75'",
    (75,),
    ("stopped with exit code 75",),
    before="restarted",
    command="launch/restart.sh -- $TRAIN & kill -INT -PID",
  ),
  Row(
    "restart.sh of a command that is not there",
    "launch/restart.sh -- ./absent",
    (127,),
    before="100 restarts",
  ),
  Row(
    "SIGUSR1 before the run is ready for it",
    "$TRAIN & sleep 2; kill -USR1 $!; wait $!",
    (0,),
    before="ends the run: code 138",
  ),
  Row(
    "the terminal hangs up",
    "$TRAIN --config.steps=100000 2>$S/err & until test -e $S/run/checkpoints/10; do sleep 0.2; "
    "done; kill -HUP $!; wait $!; code=$?; tail -n 1 $S/err >&2; exit $code",
    (75,),
    ("saved step",),
    before="ends without saving: code 129",
    command="$TRAIN & kill -HUP PID",
  ),
  Row(
    "Ctrl-Z for longer than the watchdog waits",
    "set -m; $TRAIN --config.steps=2000 --config.watchdog.step_seconds=4 2>$S/err & "
    "until test -e $S/run/checkpoints/10; do sleep 0.2; done; kill -TSTP $!; sleep 8; "
    "kill -CONT $!; sleep 1; kill -TERM $!; fg %1 >/dev/null; code=$?; tail -n 1 $S/err >&2; "
    "exit $code",
    (75,),
    ("saved step",),
    before="the watchdog ends it, by its code",
    command="$TRAIN & kill -TSTP PID; sleep 8; kill -CONT PID",
  ),
  Row(
    "generate.py and Ctrl-C",
    "$PY -c 'import os, signal, subprocess, sys, time; "
    "signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "p = subprocess.Popen(sys.argv[1:]); time.sleep(2); p.send_signal(signal.SIGINT); "
    "sys.exit(128 - p.wait())' $GENERATE --max_new_tokens=500",
    (130,),
    before="traceback",
    command="$GENERATE & kill -INT PID",
  ),
  # Disks
  Row(
    "tensorboard/ of the workdir is a link to a device",
    "cp -r $S/done $S/run; rm -rf $S/run/tensorboard; "
    "ln -s /dev/full $S/run/tensorboard; "
    "$TRAIN --config.trackers=tensorboard --config.steps=60 --force",
    (2,),
    ("tensorboard",),
    before="hangs for ever when ten numbers wait",
    command="ln -s /dev/full $S/run/tensorboard; $TRAIN",
  ),
)
