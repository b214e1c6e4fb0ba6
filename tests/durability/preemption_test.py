"""Tests of early ends: real signals to real processes, the main thread busy in C or in Python."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from egad_jax.durability import preemption as module
from egad_jax.durability.preemption import Interrupted, Preempted, Preemption

# Says "ready", does what it is told, and says what the signal did to it.
_PROGRAM = """
import hashlib, signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # Under nohup it would stay ignored.
from egad_jax.durability.preemption import Preempted, Preemption
preemption = Preemption()
preemption.watch()
def blocked():
  print("ready", flush=True)
  hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8)  # A minute in C.
def loop():
  with preemption.between_steps():
    print("ready", flush=True)
    for step in range(600):
      if preemption.requested():
        print("saving", flush=True)
        time.sleep(float(sys.argv[2]))
        print("saved", flush=True)
        raise Preempted
      time.sleep(0.05)
try:
  {"blocked": blocked, "loop": loop}[sys.argv[1]]()
except Preempted:
  sys.exit(75)
"""


@contextlib.contextmanager
def started(what, seconds="0", stderr=subprocess.PIPE):
  with subprocess.Popen(
    [sys.executable, "-c", _PROGRAM, what, seconds],
    stdout=subprocess.PIPE,
    stderr=stderr,
    text=True,
  ) as process:
    try:
      assert process.stdout.readline() == "ready\n"
      yield process
    finally:
      process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_loop_ends_between_steps_having_saved(number):
  with started("loop") as process:
    process.send_signal(signal.SIGUSR1)  # Asks for a profile, which nothing here makes.
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (75, "saving\nsaved\n")
    assert f"{number.name}: ends after this step" in err


def test_before_the_first_step_the_process_ends_at_once_wherever_its_main_thread_is():
  with started("blocked") as process:
    time.sleep(0.2)
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 75
    assert time.monotonic() - sent < 3
    assert err == "SIGTERM: nothing new to save; run the command again to resume.\n"


@pytest.mark.parametrize("reader", ["gone", "stalled"])
def test_nobody_reads_what_it_says(reader):
  read, write = os.pipe()
  os.set_blocking(write, False)
  with contextlib.suppress(BlockingIOError):
    while reader == "stalled":
      os.write(write, bytes(2**16))
  os.set_blocking(write, True)
  if reader == "gone":
    os.close(read)
  with started("blocked", stderr=write) as process:
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 75
  os.close(write)


def test_a_second_signal_ends_the_process_at_once():
  with started("loop", "30") as process:
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "saving\n"
    process.send_signal(signal.SIGTERM)  # Within a second it is the same one.
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "SIGTERM again: ends at once; the last whole checkpoint stays." in err


def test_a_notice_between_the_last_step_and_the_end_is_not_lost():
  preemption = Preemption()

  def last_step():
    with preemption.between_steps():
      assert not preemption.requested()
      preemption._notice(signal.SIGTERM)

  with pytest.raises(Preempted):
    last_step()


def test_an_error_is_not_covered_by_a_notice():
  preemption = Preemption()

  def failing():
    with preemption.between_steps():
      preemption._notice(signal.SIGTERM)
      raise ZeroDivisionError

  with pytest.raises(ZeroDivisionError):
    failing()


def test_work_can_be_given_up():
  preemption = Preemption()
  preemption.check()
  preemption._noticed.set()
  with pytest.raises(Interrupted):
    preemption.check()


def test_what_nohup_has_turned_off_stays_so():
  before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT)}
  try:
    for number in before:
      signal.signal(number, signal.SIG_IGN)
    module._take_over(*before)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) != signal.SIG_IGN
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
