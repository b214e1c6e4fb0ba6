#!/usr/bin/env bash
# Runs a command again and again until it ends with a code that another attempt would not change:
# 0 done, 2 bad input, 3 does not fit. Its own exit code is that of the last attempt.
#
#   launch/restart.sh [--max_restarts=100] [--backoff_seconds=10] -- COMMAND…
#
#   --max_restarts     restarts without an attempt of ten minutes between them, then it gives up
#   --backoff_seconds  pause before the first of them; each next one is twice as long, at most 320
#
# Signals: TERM and INT to this script mean that there is no next attempt, and wait for the present
# one to end. They are not passed on, because whoever ends a session or a machine signals every
# process in it, and a trainer that gets a second signal stops without saving. To stop both:
# kill -TERM PID; pkill -TERM -P PID.
set -euo pipefail

readonly LONGEST_PAUSE=320 LONG_ATTEMPT=600 # Seconds.
max_restarts=100
backoff_seconds=10

fail() {
  echo "restart.sh: $1" >&2
  exit 2
}

say() {
  echo "$(date +%H:%M:%S) restart.sh: $1" >&2
}

whole_number() {
  [[ $2 =~ ^[0-9]{1,9}$ ]] || fail "$1 must be a whole number, got '$2'."
}

if [[ ${1:-} == --help ]]; then
  sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p;}' "$0"
  exit 0
fi
while [[ $# -gt 0 ]]; do
  case $1 in
    --max_restarts=*) max_restarts=${1#*=} ;;
    --backoff_seconds=*) backoff_seconds=${1#*=} ;;
    --) break ;;
    *) fail "unknown argument '$1'; it takes --max_restarts=N, --backoff_seconds=N, then -- COMMAND." ;;
  esac
  shift
done
whole_number --max_restarts "$max_restarts"
whole_number --backoff_seconds "$backoff_seconds"
[[ $# -gt 1 ]] || fail "no command given; it comes after --."
shift

stopping=''
trap 'stopping=1' TERM INT
# So that a signal to all processes of a session, which asks the trainer for a profile, does no harm.
trap ':' USR1

restarts=0
pause=$backoff_seconds
while true; do
  started=$SECONDS
  code=0
  # In the foreground: the shell sees a signal only when the command has ended.
  "$@" || code=$?
  case $code in
    0 | 2 | 3)
      say "ended with exit code $code."
      exit "$code"
      ;;
  esac
  if ((SECONDS - started >= LONG_ATTEMPT)); then
    restarts=0
    pause=$backoff_seconds
  fi
  if [[ -n $stopping ]]; then
    say "stopped with exit code $code."
    exit "$code"
  fi
  if ((restarts >= max_restarts)); then
    say "gave up after $restarts restarts with exit code $code."
    exit "$code"
  fi
  restarts=$((restarts + 1))
  say "exit code $code; restart $restarts of $max_restarts in $pause s."
  sleep "$pause" || true
  if [[ -n $stopping ]]; then
    say "stopped with exit code $code."
    exit "$code"
  fi
  pause=$((pause * 2 < LONGEST_PAUSE ? pause * 2 : LONGEST_PAUSE))
done
