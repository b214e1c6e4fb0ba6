"""The loop that restarts: which codes it repeats, and that no signal is missed, however started."""

from __future__ import annotations

import os
import signal
import subprocess
import threading

import pytest

from launch import restart
from tests.launch.stand_ins import (
  ROOT,
  STEADY_TRAINER,
  TRAINER,
  executable,
  lines,
  run,
  wait_for,
)

RESTART = ROOT / "launch" / "restart.sh"


@pytest.mark.parametrize(
  ("codes", "starts", "code"),
  [
    ((0,), 1, 0),
    ((75, 75, 0), 3, 0),
    ((134, 1, 0), 3, 0),
    ((2, 0), 1, 2),
    ((3, 0), 1, 3),
    ((126, 0), 1, 126),
    ((1, 127, 0), 2, 127),
    ((75, 2, 0), 2, 2),
    ((1, 1, 75, 1, 0), 4, 1),
  ],
)
def test_restarts_until_a_code_that_another_attempt_would_not_change(codes, starts, code, stubs):
  executable(stubs / "trainer", TRAINER)
  (stubs / "codes").write_text("".join(f"{c}\n" for c in codes))
  flags = ("--max_restarts=3", "--backoff_seconds=0", "--")
  _, err = run(stubs, RESTART, *flags, "./trainer", "a b", "'", code=code, cwd=stubs)
  assert len(lines(stubs / "starts")) == starts
  assert lines(stubs / "started") == ["", "a b", "'"] * starts
  assert ("gave up after 3 restarts" in err) == (code == 1)


@pytest.mark.parametrize(
  ("command", "code", "words"),
  [
    ("./absent", 127, "./absent: No such file or directory"),
    ("./plain", 126, "./plain: Permission denied"),
    ("./empty", 126, "./empty: Exec format error"),
    (".", 126, ".: Permission denied"),
  ],
)
def test_what_cannot_be_started_is_not_tried_again(command, code, words, stubs):
  (stubs / "plain").write_text("#!/bin/sh\n")
  executable(stubs / "empty", "")
  _, err = run(stubs, RESTART, "--backoff_seconds=0", "--", command, code=code, cwd=stubs)
  assert words in err
  assert f"ended with exit code {code}" in err


@pytest.fixture
def pauses(monkeypatch):
  """Instead of an attempt that fails at once and of a pause: the seconds of each pause."""
  seconds = []

  class Attempts:
    stopping = False

    def __init__(self, command):
      """Starts nothing."""

    def run(self):
      return 1

    def pause(self, length):
      seconds.append(length)

  monkeypatch.setattr(restart, "_Attempts", Attempts)
  return seconds


def test_pauses_double_up_to_a_limit(pauses, monkeypatch, capfd):
  monkeypatch.setattr("sys.argv", ["restart.py", "--max_restarts=7", "--", "trainer"])
  assert restart.main() == 1
  assert pauses == [10, 20, 40, 80, 160, 320, 320]
  assert "gave up after 7 restarts" in capfd.readouterr().err


def test_a_long_attempt_begins_the_count_anew(pauses, monkeypatch):
  clock = iter(range(0, 10**6, 599))
  monkeypatch.setattr(restart.time, "monotonic", lambda: next(clock))
  monkeypatch.setattr("sys.argv", ["restart.py", "--max_restarts=2", "--", "trainer"])
  assert restart.main() == 1
  assert pauses == [10, 20]
  clock, ends = iter(range(0, 10**6, 600)), iter((1, 1, 1, 1, 2))
  monkeypatch.setattr(restart._Attempts, "run", lambda self: next(ends))
  assert restart.main() == 2
  assert pauses == [10, 20, 10, 10, 10, 10]


def test_a_signal_to_the_loop_ends_it_after_the_attempt(stubs):
  executable(stubs / "trainer", '#!/bin/sh\necho . >> starts\nkill -TERM "$PPID"\nexit 75\n')
  _, err = run(stubs, RESTART, "--backoff_seconds=0", "--", "./trainer", code=75, cwd=stubs)
  assert len(lines(stubs / "starts")) == 1
  assert "stopped with exit code 75" in err


@pytest.mark.parametrize("ignored", [False, True], ids=["", "ignored at the start"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_whole_session_reaches_the_trainer_once(number, ignored, stubs):
  """Whatever a shell starts with & ignores SIGINT at first, and so do tests that it starts."""
  executable(stubs / "trainer", STEADY_TRAINER)
  before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGHUP)}
  signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.SIG_DFL)
  signal.signal(signal.SIGHUP, signal.SIG_DFL)
  with subprocess.Popen(
    [RESTART, "--", "./trainer"], cwd=stubs, start_new_session=True, stderr=subprocess.PIPE
  ) as process:
    for each, handler in before.items():
      signal.signal(each, handler)
    try:
      wait_for(".", stubs / "starts")
      os.killpg(process.pid, signal.SIGUSR1)
      wait_for("USR1", stubs / "signals")
      os.killpg(process.pid, number)
      assert process.wait(timeout=20) == 75
    finally:
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
  assert lines(stubs / "signals") == ["USR1", "TERM"]
  assert lines(stubs / "starts") == ["."]


@pytest.fixture
def unblocked():
  """Afterwards this thread blocks the signals that it blocked before, and none is waiting."""
  handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGCHLD)}
  before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
  yield
  while signal.sigtimedwait(restart._AWAITED, 0):
    pass
  signal.pthread_sigmask(signal.SIG_SETMASK, before)
  for number, handler in handlers.items():
    signal.signal(number, handler)


def test_a_signal_of_before_the_attempt_ends_it_and_is_no_pause(unblocked):
  attempts = restart._Attempts(["sleep", "60"])
  signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
  assert attempts.run() == 128 + signal.SIGTERM
  assert attempts.stopping


def test_a_signal_ends_a_pause(unblocked):
  attempts = restart._Attempts(["true"])
  signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
  signal.pthread_kill(threading.get_ident(), signal.SIGHUP)
  attempts.pause(10**6)
  assert attempts.stopping


def test_nobody_reads_what_it_says(stubs):
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  try:
    while True:
      os.write(writer, bytes(2**16))
  except BlockingIOError:
    os.set_blocking(writer, True)
  command = [RESTART, "--max_restarts=3", "--backoff_seconds=0", "--", "false"]
  stalled = subprocess.run(command, stderr=writer, timeout=20, check=False)
  os.close(reader)
  closed = subprocess.run(command, stderr=writer, timeout=20, check=False)
  os.close(writer)
  assert (stalled.returncode, closed.returncode) == (1, 1)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ((), "no command given"),
    (("--",), "no command given"),
    (("--max_restarts=x", "--", "true"), "--max_restarts must be a whole number, got 'x'"),
    (("--backoff_seconds=1.5", "--", "true"), "--backoff_seconds must be a whole number"),
    (("true",), "unknown argument 'true'"),
    (("--max_restarts", "3", "--", "true"), "unknown argument '--max_restarts'"),
  ],
)
def test_bad_arguments_of_restart(arguments, message, stubs):
  _, err = run(stubs, RESTART, *arguments, code=2)
  assert message in err
  assert len(err.splitlines()) == 1
