"""Traces of a tiny loop: by config, by signal, and when something is in the way."""

from __future__ import annotations

import os
import signal
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from egad_jax.training.profiling import SIGNAL, Profiler, Window


@jax.jit
def program(state):
  return jnp.sin(state @ state), state.sum()


START = np.eye(8, dtype=np.float32)


def run_loop(profiler, steps, state=START, requests=()):
  for step in steps:
    if step in requests:
      os.kill(os.getpid(), SIGNAL)
    state, total = profiler.call(step, program, state)
  return np.asarray(state), float(total)


def traced_steps(directory):
  """{name of the trace: the step numbers that its annotations name}."""
  found = {}
  for path in directory.glob("*"):
    (file,) = path.glob("plugins/profile/*/*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(os.fspath(file))
    events = (e for plane in data.planes for line in plane.lines for e in line.events)
    with warnings.catch_warnings():
      # Python 3.13 deprecates what jaxlib's iterator of the stats is; as an error it would end the
      # process.
      warnings.simplefilter("ignore", DeprecationWarning)
      steps = {dict(e.stats)["step_num"] for e in events if e.name == "train"}
    found[path.name] = sorted(map(int, steps))
  return found


@pytest.fixture
def directory(tmp_path):
  return epath.Path(tmp_path) / "profile"


def test_the_window_of_the_config_is_traced_and_changes_no_bit(directory):
  with Profiler(directory, Window(3, 2)) as profiler:
    result = run_loop(profiler, range(1, 8))
  assert traced_steps(directory) == {"3": [3, 4]}
  with Profiler(directory, Window(0, 2)) as profiler:
    state, total = run_loop(profiler, range(1, 8))
  assert (np.array_equal(state, result[0]), total) == (True, result[1])
  assert traced_steps(directory) == {"3": [3, 4]}


def test_a_signal_traces_the_next_steps_each_time(directory):
  with Profiler(directory, Window(0, 2)) as profiler:
    # The one at step 11 comes during a trace; the next begins where that ends.
    run_loop(profiler, range(1, 15), requests=(2, 10, 11))
  assert traced_steps(directory) == {"2": [2, 3], "10": [10, 11], "12": [12, 13]}


def test_a_trace_holds_its_last_step_whole(directory, monkeypatch):
  @jax.jit
  def takes_long(x):
    return jax.lax.fori_loop(0, 200, lambda _, x: jnp.tanh(x @ x), x)

  outputs, ready, stop = [], [], jax.profiler.stop_trace
  x = takes_long(jnp.eye(256))

  def step():
    outputs.append(takes_long(x))
    assert not outputs[-1].is_ready(), "the step is too short to tell"
    return outputs[-1]

  def stop_trace():
    ready.extend(output.is_ready() for output in outputs)
    stop()

  monkeypatch.setattr(jax.profiler, "stop_trace", stop_trace)
  with Profiler(directory, Window(1, 2)) as profiler:
    for number in (1, 2):
      profiler.call(number, step)
  assert ready == [True, True]


def test_the_end_of_a_run_ends_its_trace(directory):
  with Profiler(directory, Window(2, 5)) as profiler:
    run_loop(profiler, range(1, 4))
  assert traced_steps(directory) == {"2": [2, 3]}
  with Profiler(directory, Window(0, 1)) as profiler:
    run_loop(profiler, [9], requests=[9])
  assert traced_steps(directory) == {"2": [2, 3], "9": [9]}


def test_a_trace_reaches_an_object_store(bucket):
  with Profiler(bucket / "profile", Window(2, 1)) as profiler:
    run_loop(profiler, range(1, 4))
  (run,) = (bucket / "profile" / "2" / "plugins" / "profile").iterdir()
  (file,) = (path for path in run.iterdir() if path.name.endswith(".xplane.pb"))
  data = jax.profiler.ProfileData.from_serialized_xspace(file.read_bytes())
  assert "train" in {e.name for plane in data.planes for line in plane.lines for e in line.events}


def test_other_processes_are_traced_on_the_signal_only(directory):
  with Profiler(directory, Window(1, 1), process=2) as profiler:
    run_loop(profiler, range(1, 6), requests=[4])
  assert traced_steps(directory) == {"4-process-2": [4]}


def test_another_handler_is_called_too_and_comes_back(directory):
  heard = []
  ours = lambda number, frame: heard.append(number)
  before = signal.signal(SIGNAL, ours)
  try:
    with Profiler(directory, Window(0, 1)) as profiler:
      run_loop(profiler, [1], requests=[1])
      assert heard == [SIGNAL]
    assert signal.getsignal(SIGNAL) is ours
  finally:
    signal.signal(SIGNAL, before)
  assert traced_steps(directory) == {"1": [1]}


def test_a_thread_profiles_without_the_signal(directory):
  before, errors = signal.getsignal(SIGNAL), []

  def train():
    try:
      with Profiler(directory, Window(1, 1)) as profiler:
        assert signal.getsignal(SIGNAL) is before
        run_loop(profiler, [1])
    except BaseException as error:
      errors.append(error)

  thread = threading.Thread(target=train)
  thread.start()
  thread.join()
  assert not errors
  assert traced_steps(directory) == {"1": [1]}


def test_training_goes_on_when_a_trace_cannot_be_made(directory, tmp_path, caplog):
  another = jax.profiler.trace(os.fspath(tmp_path / "another"))
  with another, Profiler(directory, Window(1, 2)) as profiler:
    run_loop(profiler, range(1, 4))
  assert "step 1 is not profiled" in caplog.text
  assert not directory.exists()


def test_a_failed_step_leaves_no_trace_open(directory):
  def fails(state):
    raise FloatingPointError("not finite")

  with pytest.raises(FloatingPointError), Profiler(directory, Window(1, 5)) as profiler:
    profiler.call(1, fails, START)
  with Profiler(directory, Window(2, 1)) as profiler:
    run_loop(profiler, [2])
  assert traced_steps(directory) == {"1": [1], "2": [2]}
