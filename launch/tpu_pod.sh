#!/usr/bin/env bash
# Trains on Cloud TPU slices, from your own machine.
#
#   launch/tpu_pod.sh COMMAND --name=NAME --zone=ZONE [FLAGS] [-- FLAGS OF launch/run.py]
#
#   create   requests the slices and waits until they are there
#            --accelerator_type=v5litepod-16  of one slice
#            --runtime_version=v2-alpha-tpuv5-lite
#            --slices=1  --spot  --service_account=EMAIL
#   setup    installs the committed state of this repository on every worker
#            --staging=gs://BUCKET/DIR  where the archive of the code is put on its way
#            --inputs=gs://BUCKET/DIR   copied to ~/inputs of every worker: teacher, data
#   run      starts training on every worker and returns; each worker restarts what fails
#            --max_restarts=100  --backoff_seconds=10  see launch/restart.sh
#   status   the state of the request and the last lines of every worker's log
#   logs     the log of the first worker; --follow goes on
#   profile  asks the run for a profile (SIGUSR1)
#   stop     SIGTERM to the run on every worker, waits until it has saved
#   delete   gives the slices back
#
# For all: --project=PROJECT; --dry_run prints the commands and runs none of them.
# Exit codes: 2 wrong flags, 1 the slices cannot be had, else that of gcloud.
set -euo pipefail

readonly COMMANDS='create setup run status logs profile stop delete'
readonly POLL_SECONDS=${POLL_SECONDS:-30}
# On a worker, in the home directory.
readonly CODE=egad_jax LOG=run.log PID=run.pid

fail() {
  echo "tpu_pod.sh: $1" >&2
  exit 2
}

# A word as a shell would have to read it.
quoted() {
  local quote="'" escaped="'\\''"
  case $1 in
    '' | *[!A-Za-z0-9_./:=,@%+-]*) printf "'%s'" "${1//$quote/$escaped}" ;;
    *) printf '%s' "$1" ;;
  esac
}

quoted_words() {
  local word separator=''
  for word in "$@"; do
    printf '%s' "$separator"
    quoted "$word"
    separator=' '
  done
}

# Runs a command, or prints it.
run() {
  if [[ -n $dry_run ]]; then
    quoted_words "$@"
    echo
  else
    "$@"
  fi
}

need() {
  local flag
  for flag in "$@"; do
    [[ -n ${!flag} ]] || fail "$command needs --$flag=…"
  done
}

tpus() {
  local action=$1
  shift
  local where=(--zone="$zone")
  [[ -z $project ]] || where+=(--project="$project")
  run gcloud compute tpus queued-resources "$action" "$name" "${where[@]}" "$@"
}

on_workers() { # WORKER NODE COMMAND
  tpus ssh --worker="$1" --node="$2" --command="$3"
}

state() {
  tpus describe --format='value(state.state)'
}

create() {
  need accelerator_type runtime_version
  [[ $accelerator_type != *7x* ]] ||
    fail "the Cloud TPU API, which this script uses, has no TPU7x; use launch/gke.sh."
  [[ $slices =~ ^[1-9][0-9]*$ ]] || fail "--slices must be a positive number, got '$slices'."
  local request=(--accelerator-type="$accelerator_type" --runtime-version="$runtime_version")
  if ((slices > 1)); then
    request+=(--node-count="$slices" --node-prefix="$name")
  else
    request+=(--node-id="$name")
  fi
  [[ -z $spot ]] || request+=(--spot)
  [[ -z $service_account ]] || request+=(--service-account="$service_account")
  tpus create "${request[@]}"
  if [[ -n $dry_run ]]; then
    echo "# every $POLL_SECONDS s, until it says ACTIVE:"
    state
    return
  fi
  local now before=''
  while true; do
    now=$(state)
    [[ $now == "$before" ]] || echo "$(date +%H:%M:%S) $name: $now" >&2
    before=$now
    case $now in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED)
        echo "tpu_pod.sh: the request is $now; see status, then delete it and create it again." >&2
        exit 1
        ;;
    esac
    sleep "$POLL_SECONDS"
  done
}

setup() {
  need staging
  local archive=${staging%/}/egad_jax.tar.gz
  if [[ -n $dry_run ]]; then
    echo "git archive --format=tar.gz HEAD | $(quoted_words gcloud storage cp - "$archive")"
  else
    [[ -z $(git status --porcelain) ]] || echo 'tpu_pod.sh: what is not committed stays here.' >&2
    git archive --format=tar.gz HEAD | gcloud storage cp - "$archive"
  fi
  # The image of a TPU VM may have an older Python than this package needs: uv brings one.
  local steps
  steps="set -euo pipefail
mkdir -p $CODE
gcloud storage cat $(quoted "$archive") | tar -xz -C $CODE
cd $CODE
python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --allow-existing --python 3.13 .venv
python3 -m uv pip install --quiet --python .venv/bin/python --editable '.[tpu]'"
  if [[ -n $inputs ]]; then
    steps+="
mkdir -p ~/inputs
gcloud storage rsync --recursive $(quoted "$inputs") ~/inputs"
  fi
  on_workers all all "$steps"
}

start() {
  [[ ${#run_flags[@]} -gt 0 ]] || fail 'run needs the flags of launch/run.py after --.'
  local words
  words=$(quoted_words launch/restart.sh --max_restarts="$max_restarts" \
    --backoff_seconds="$backoff_seconds" -- .venv/bin/python launch/run.py "${run_flags[@]}")
  # A session of its own, so that it outlives this one. JAX_PLATFORMS: without its TPU a worker
  # fails, instead of training on its CPU.
  on_workers all all "cd $CODE || { echo 'setup comes first' >&2; exit 1; }
if pid=\$(cat $PID 2>/dev/null) && kill -0 \"\$pid\" 2>/dev/null; then
  echo \"a run is going on here, process \$pid; stop ends it\" >&2
  exit 2
fi
JAX_PLATFORMS=tpu,cpu setsid nohup $words >>$LOG 2>&1 </dev/null &
echo \$! >$PID"
}

stop() {
  # One signal to restart.sh and one to the trainer: a second would stop it before it has saved.
  on_workers all all "cd $CODE || exit 0
pid=\$(cat $PID 2>/dev/null) || exit 0
kill -TERM \"\$pid\" 2>/dev/null || exit 0
pkill -TERM -P \"\$pid\"
while kill -0 \"\$pid\" 2>/dev/null; do sleep 0.2; done
tail -n 1 $LOG"
}

if [[ ${1:-} == --help ]]; then
  sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p;}' "$0"
  exit 0
fi
command=${1:-}
[[ " $COMMANDS " == *" $command "* && -n $command ]] ||
  fail "the first argument must be one of: $COMMANDS; got '$command'."
shift

name='' zone='' project='' dry_run=''
accelerator_type='' runtime_version='' slices=1 spot='' service_account=''
staging='' inputs='' max_restarts=100 backoff_seconds=10 follow=''
run_flags=()
allowed='name zone project'
case $command in
  create) allowed+=' accelerator_type runtime_version slices service_account' ;;
  setup) allowed+=' staging inputs' ;;
  run) allowed+=' max_restarts backoff_seconds' ;;
esac
while [[ $# -gt 0 ]]; do
  case $1 in
    --dry_run) dry_run=1 ;;
    --spot)
      [[ $command == create ]] || fail "--spot is a flag of create, not of $command."
      spot=1
      ;;
    --follow)
      [[ $command == logs ]] || fail "--follow is a flag of logs, not of $command."
      follow=' -F'
      ;;
    --)
      [[ $command == run ]] || fail "only run passes flags on; $command got $*"
      shift
      run_flags=("$@")
      break
      ;;
    --*=*)
      flag=${1%%=*}
      flag=${flag#--}
      [[ " $allowed " == *" $flag "* ]] ||
        fail "$command has no flag --$flag; it has --dry_run and, with a value, ${allowed// /, }."
      printf -v "$flag" '%s' "${1#*=}"
      ;;
    *) fail "$command: unexpected '$1'; flags are --name=value, those of launch/run.py come after --." ;;
  esac
  shift
done
need name zone
[[ $name =~ ^[a-z][a-z0-9-]*$ ]] ||
  fail "--name must be lower-case letters, digits and -, a letter first; got '$name'."
for flag in max_restarts backoff_seconds; do
  [[ ${!flag} =~ ^[0-9]{1,9}$ ]] || fail "--$flag must be a whole number, got '${!flag}'."
done
[[ -n $dry_run ]] || type gcloud >/dev/null 2>&1 ||
  fail 'gcloud is not installed (https://cloud.google.com/sdk); --dry_run works without it.'

case $command in
  create) create ;;
  setup) setup ;;
  run) start ;;
  status)
    state
    on_workers all all "tail -n 3 $CODE/$LOG"
    ;;
  logs) on_workers 0 0 "tail -n 100$follow $CODE/$LOG" ;;
  profile) on_workers all all "pkill -USR1 -P \"\$(cat $CODE/$PID)\"" ;;
  stop) stop ;;
  delete) tpus delete --force --quiet ;;
esac
