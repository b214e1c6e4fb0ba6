#!/usr/bin/env bash
# Runs a command again and again until it ends with a code that another attempt would not change:
# 0 done, 2 bad input, 3 does not fit, 126 and 127 no such command. Its own exit code is that of the
# last attempt; 128 + N if signal N ended it.
#
#   launch/restart.sh [--max_restarts=100] [--backoff_seconds=10] -- COMMAND…
#
#   --max_restarts     restarts without an attempt of ten minutes between them, then it gives up
#   --backoff_seconds  pause before the first of them; each next one is twice as long, at most 320
#
# Signals: TERM, INT and HUP to this script mean that there is no next attempt, and wait for the
# present one to end. They are not passed on, because whoever ends a session or a machine signals
# every process in it, and a trainer that gets a second signal stops without saving. To stop both:
# kill -TERM PID; pkill -TERM -P PID. Under nohup HUP means nothing.
set -euo pipefail

if [[ ${1:-} == --help ]]; then
  sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p;}' "$0"
  exit 0
fi
# A shell can miss a signal, and cannot heed one that was ignored when it started, as SIGINT is for
# whatever a script starts with &.
exec python3 -I -S "$(dirname "$0")/restart.py" "$@"
