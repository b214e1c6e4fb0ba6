"""The loop of launch/restart.sh, which says what it does.

Signals are blocked and waited for, so that none can come at a wrong moment: while a command is
started or has just ended, or between two attempts. It runs on any Python 3.8 and imports nothing
of this project, whose environment may be what is broken.
"""

from __future__ import annotations

import errno
import os
import re
import select
import signal
import sys
import time
from typing import NoReturn

_LONGEST_PAUSE, _LONG_ATTEMPT = 320, 600  # Seconds.
# Done, bad input, does not fit, cannot be run, not found.
_FINAL = (0, 2, 3, 126, 127)
_CANNOT_START = {
  errno.ENOENT: 127,
  errno.ENOTDIR: 127,
  errno.EACCES: 126,
  errno.EPERM: 126,
  errno.ENOEXEC: 126,
  errno.ELOOP: 126,
  errno.E2BIG: 126,
  errno.ENAMETOOLONG: 126,
}
_STOPS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
# SIGUSR1 asks the trainer for a profile. Sent to all processes of a session, it does no harm here.
_AWAITED = _STOPS | {signal.SIGCHLD, signal.SIGUSR1}
_STDERR = 2


def _write(text: str) -> None:
  # Who reads this may have gone or stand still; neither may keep the command from running.
  try:
    if select.select([], [_STDERR], [], 0)[1]:
      os.write(_STDERR, text.encode(errors="replace"))
  except (OSError, ValueError):
    pass


def _say(text: str) -> None:
  _write(f"{time.strftime('%H:%M:%S')} restart.sh: {text}\n")


def _fail(text: str) -> NoReturn:
  _write(f"restart.sh: {text}\n")
  sys.exit(2)


def _parse(arguments: list[str]) -> tuple[int, int, list[str]]:
  """(restarts at most, seconds of the first pause, command)."""
  numbers = {"--max_restarts": "100", "--backoff_seconds": "10"}
  while arguments and arguments[0] != "--":
    flag, _, value = arguments[0].partition("=")
    if flag not in numbers or "=" not in arguments[0]:
      _fail(
        f"unknown argument '{arguments[0]}'; it takes --max_restarts=N, --backoff_seconds=N, then "
        "-- COMMAND."
      )
    numbers[flag] = value
    arguments = arguments[1:]
  for flag, value in numbers.items():
    if not re.fullmatch("[0-9]{1,9}", value):
      _fail(f"{flag} must be a whole number, got '{value}'.")
  if len(arguments) < 2:
    _fail("no command given; it comes after --.")
  return int(numbers["--max_restarts"]), int(numbers["--backoff_seconds"]), arguments[1:]


class _Attempts:
  """Runs a command, and knows whether it was asked to stop."""

  def __init__(self, command: list[str]) -> None:
    self._command = command
    self.stopping = False
    # What was ignored when this process started would never be seen. SIGHUP is left to nohup.
    for number in (signal.SIGINT, signal.SIGCHLD):
      signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)

  def run(self) -> int:
    """One attempt, from its start to its end: the exit code, as a shell reports it."""
    try:
      child = os.posix_spawnp(
        self._command[0],
        self._command,
        os.environ,
        setsigmask=(),
        # Python ignores the last two, as commands do not expect.
        setsigdef=(signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ),
      )
    except OSError as error:
      _say(f"{self._command[0]}: {error.strerror}")
      # Other errors, such as too little memory, may be gone at the next attempt.
      return _CANNOT_START.get(error.errno or 0, 1)
    # A signal that came before the child existed has reached this process alone. Sending it once
    # more does no harm.
    for number in signal.sigpending() & _STOPS:
      os.kill(child, number)
    while True:
      ended, status = os.waitpid(child, os.WNOHANG)
      if ended:
        # A signal to the whole group reaches this process before it hears of the child's end, or
        # soon after.
        self.pause(0)
        return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
      self.stopping |= signal.sigwait(_AWAITED) in _STOPS

  def pause(self, seconds: float) -> None:
    """Waits, less long if it is asked to stop; looks at all that has come even for 0 seconds."""
    end = time.monotonic() + seconds
    while not self.stopping:
      found = signal.sigtimedwait(_AWAITED, max(end - time.monotonic(), 0))
      if found is None:
        return
      self.stopping = found.si_signo in _STOPS


def main() -> int:
  """Runs the command until another attempt would not help."""
  max_restarts, backoff, command = _parse(sys.argv[1:])
  attempts = _Attempts(command)
  restarts, seconds = 0, backoff
  while True:
    started = time.monotonic()
    code = attempts.run()
    if code in _FINAL:
      _say(f"ended with exit code {code}.")
      return code
    if time.monotonic() - started >= _LONG_ATTEMPT:
      restarts, seconds = 0, backoff
    if not attempts.stopping and restarts >= max_restarts:
      _say(f"gave up after {restarts} restarts with exit code {code}.")
      return code
    if not attempts.stopping:
      restarts += 1
      _say(f"exit code {code}; restart {restarts} of {max_restarts} in {seconds} s.")
      attempts.pause(seconds)
    if attempts.stopping:
      _say(f"stopped with exit code {code}.")
      return code
    seconds = min(2 * seconds, _LONGEST_PAUSE)


if __name__ == "__main__":
  sys.exit(main())
