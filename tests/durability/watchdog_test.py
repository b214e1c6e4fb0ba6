"""Processes that hang, each in its own way, and what the watchdog makes of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

LIMIT = 1.0

BEGIN = """
  import ctypes, sys, threading, time
  from egad_jax.durability.watchdog import Limits, Watchdog

  def watch(limits, section):
    watchdog = Watchdog(limits, process=3)
    time.sleep(0.2)  # Its thread waits by the limit of "init" now.
    watchdog.enter(section)
    print("watched", flush=True)
    return watchdog
"""

SLEEPS = """
  def sleeps_for_ever():
    time.sleep(1000)

  watch(Limits(1.0, 30.0), "data")
  sleeps_for_ever()
"""

CALLBACK = """
  import jax, jax.numpy as jnp

  def callback_for_ever(x):
    time.sleep(1000)
    return x

  def waits_for_the_device():
    like = jax.ShapeDtypeStruct((), jnp.float32)
    step = jax.jit(lambda x: jax.pure_callback(callback_for_ever, like, x))
    jax.block_until_ready(step(jnp.float32(1)))

  jax.devices()
  watch(Limits(1.0, 0.0), "step")
  waits_for_the_device()
"""

# PyDLL keeps the GIL, so no Python thread gets to run.
HOLDS_THE_GIL = """
  def holds_the_gil():
    ctypes.PyDLL(None).sleep(1000)

  watch(Limits(0.0, 1.0), "saving")
  holds_the_gil()
"""


def run(script):
  """(exit code, seconds from "watched" to the end, stderr)."""
  process = subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(BEGIN) + textwrap.dedent(script)],
    env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    assert process.stdout is not None
    assert process.stdout.readline() == "watched\n", process.communicate()[1]
    started = time.monotonic()
    _, stderr = process.communicate(timeout=60)
    return process.returncode, time.monotonic() - started, stderr
  finally:
    process.kill()


@pytest.mark.parametrize(
  ("script", "section", "places"),
  [
    (SLEEPS, "data", ["sleeps_for_ever"]),
    (CALLBACK, "step", ["callback_for_ever", "waits_for_the_device"]),
  ],
)
def test_a_hanging_process_ends_and_says_where(script, section, places):
  code, seconds, stderr = run(script)
  assert code == 1, stderr
  assert LIMIT <= seconds + 0.1 < LIMIT + 2
  assert f"process 3 hangs: no progress in section '{section}' for 1 s" in stderr
  assert stderr.count("hangs") == 1
  for place in places:
    assert f"in {place}" in stderr


def test_a_process_that_holds_the_gil_ends_too():
  code, seconds, stderr = run(HOLDS_THE_GIL)
  assert code == 1, stderr
  assert LIMIT <= seconds + 0.1 < LIMIT + 2
  assert "in holds_the_gil" in stderr


@pytest.mark.slow
def test_progress_and_longer_limits_keep_a_process_alive():
  """Over limits in all, but never in one section; then closed, and beyond any limit."""
  code, _, stderr = run("""
    watchdog = watch(Limits(1.0, 8.0), "step")
    for _ in range(9):
      time.sleep(0.25)
      watchdog.enter("data")
      watchdog.enter("step")
    watchdog.enter("evaluation")
    time.sleep(2.2)
    watchdog.enter("step")
    time.sleep(0.2)
    watchdog.close()
    time.sleep(2)
    sys.exit(7)
  """)
  assert (code, stderr) == (7, "")


def test_a_section_without_a_limit_may_take_for_ever_and_the_next_may_not():
  code, seconds, stderr = run("""
    watchdog = watch(Limits(1.0, 0.0), "step")
    watchdog.enter("compile")
    time.sleep(2.3)
    watchdog.enter("step")
    time.sleep(1000)
  """)
  assert code == 1
  assert 3.3 <= seconds + 0.1 < 5.4
  assert "'step' for 1 s" in stderr


def test_off_means_off():
  code, _, stderr = run("""
    watchdog = watch(Limits(0.0, 0.0), "step")
    assert threading.active_count() == 1
    time.sleep(1)
    watchdog.close()
  """)
  assert (code, stderr) == (0, "")


def test_a_process_that_was_stopped_has_not_hung():
  process = subprocess.Popen(
    [
      sys.executable,
      "-c",
      textwrap.dedent(BEGIN)
      + textwrap.dedent("""
        from egad_jax.durability.preemption import Preemption
        preemption = Preemption()
        preemption.watch()
        watchdog = watch(Limits(1.0, 0.0), "step")
        preemption.while_stopped = watchdog.suspended
        print("ready", flush=True)
        time.sleep(0.5)
        watchdog.enter("step")
        time.sleep(0.5)
        watchdog.close()
        sys.exit(7)
      """),
    ],
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout is not None
  with process.stdout:
    assert [process.stdout.readline() for _ in range(2)] == ["watched\n", "ready\n"]
    process.send_signal(signal.SIGTSTP)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    time.sleep(2.5)  # Over the limit, and over that of the timer in C.
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=20) == 7


def test_a_process_that_prepares_may_compute_for_long_and_not_wait():
  code, seconds, stderr = run("""
    watchdog = watch(Limits(9.0, 1.0), "init")
    def compute_then_wait():
      until = time.monotonic() + 3
      while time.monotonic() < until:
        sum(range(1000))
      time.sleep(1000)
    watchdog.prepare(compute_then_wait, alone=True)()
  """)
  assert code == 1
  assert 4 <= seconds + 0.1 < 7
  assert "no progress in section 'preparation' for 1 s" in stderr


def test_a_process_that_waits_for_the_others_is_not_watched_and_then_is():
  code, seconds, stderr = run("""
    watchdog = watch(Limits(9.0, 1.0), "init")
    watchdog.prepare(lambda: None, alone=False)()
    time.sleep(2.5)
    watchdog.enter("init")
    time.sleep(1000)
  """)
  assert code == 1
  assert 3.5 <= seconds + 0.1 < 6
  assert "'init' for 1 s" in stderr
