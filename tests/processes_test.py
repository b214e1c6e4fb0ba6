"""How the processes of a run are found in flags and environments."""

from __future__ import annotations

import json
import socket

import jax
import pytest

from egad_jax import processes
from egad_jax.errors import InputError

SLURM = {
  **{"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2"},
  **{"SLURM_PROCID": "1", "SLURM_LOCALID": "0"},
}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}
OPEN_MPI_4 = OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911"}
EXPLICIT = {
  **{"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
}


@pytest.fixture
def initialized(monkeypatch):
  """The positional arguments of every call of jax.distributed.initialize."""
  calls = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **_: calls.append(a))
  monkeypatch.setattr(processes.glob, "glob", lambda pattern: [])
  return calls


@pytest.mark.parametrize(
  ("given", "environment", "calls"),
  [
    ((), {}, []),
    (("host:1", 2, 0), {}, [("host:1", 2, 0)]),
    (("host:1", 1, 0), {}, []),
    ((None, 1, 0), {}, []),
    ((), EXPLICIT, [("host:1", 2, 1)]),
    (("other:2", 3, 2), EXPLICIT, [("other:2", 3, 2)]),
    # JAX reads the rest of these itself.
    ((), SLURM, [()]),
    ((), SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, []),
    ((), OPEN_MPI_4, [()]),
    # Open MPI 5 does not say where process 0 is.
    (("host:1", None, None), OPEN_MPI, [("host:1", 4, 3)]),
    # A shell inside an allocation is no step of it.
    ((), {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, []),
  ],
)
def test_joins_what_flags_or_the_environment_say(initialized, given, environment, calls):
  processes.join(*given, environment=environment)
  assert initialized == calls


def test_a_tpu_host_asks_jax_unless_another_platform_is_set(initialized, monkeypatch):
  monkeypatch.setattr(processes.glob, "glob", lambda pattern: ["/dev/accel0"])
  monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: True)
  processes.join(environment={"JAX_PLATFORMS": "cpu"})
  assert initialized == []
  processes.join(environment={})
  assert initialized == [()]


@pytest.mark.parametrize(
  ("given", "environment", "message"),
  [
    (("host:1", 2, None), {}, "--process_id must be given too"),
    ((None, 2, 0), {}, "--coordinator_address must be given too"),
    ((), OPEN_MPI, "--coordinator_address must be given too"),
    (("host:1", 2, 2), {}, "from 0 to --num_processes - 1; got 2 of 2"),
    (("host", 2, 0), {}, "must be HOST:PORT, with a port from 1 to 65535; got 'host'"),
    ((), EXPLICIT | {"JAX_NUM_PROCESSES": "two"}, "must be integers; got 'two'"),
  ],
)
def test_half_of_it_is_refused(initialized, given, environment, message):
  with pytest.raises(InputError, match=message):
    processes.join(*given, environment=environment)
  assert initialized == []


def test_one_process_needs_nobody():
  assert processes.is_first()
  assert processes.on_all_processes(lambda: 3, first_alone=True) == 3
  assert processes.any_process(True)
  assert not processes.any_process(False)
  assert processes.fetch({"a": jax.numpy.arange(2)})["a"].tolist() == [0, 1]


@pytest.mark.parametrize("port", ["0", "65536", "many", "-1", ""])
def test_ports_that_there_are_not(initialized, port):
  with pytest.raises(InputError, match="a port from 1 to 65535"):
    processes.join(f"host:{port}", 2, 1, environment={})


def test_a_port_that_is_taken_may_be_free_later(initialized):
  with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    address = f"127.0.0.1:{taken.getsockname()[1]}"
    processes.join(address, 2, 1, environment={})  # Process 1 listens at none.
    with pytest.raises(processes.JoinError, match="is taken on this machine"):
      processes.join(address, 2, 0, environment={})
  assert initialized == [(address, 2, 1)]


@pytest.mark.parametrize(
  ("error", "raised", "message"),
  [
    (ValueError("invalid literal for int(): 'y'"), InputError, "the launcher's variables: invalid"),
    (KeyError("SLURM_LOCALID"), InputError, "SLURM_LOCALID"),
    (RuntimeError("DEADLINE_EXCEEDED:\n no"), processes.JoinError, "host:1: DEADLINE_EXCEEDED: no"),
  ],
)
def test_what_jax_makes_of_the_environment_is_told_in_a_line(monkeypatch, error, raised, message):
  def fail(*args, **options):
    raise error

  monkeypatch.setattr(jax.distributed, "initialize", fail)
  with pytest.raises(raised, match=message):
    processes.join("host:1", 2, 1, environment={})


@pytest.fixture
def three(monkeypatch):
  """Makes this process one of three; the others have what the test puts into the list."""
  others: list[bytes] = []
  monkeypatch.setattr(processes, "is_multiprocess", lambda: True)
  monkeypatch.setattr(processes, "_gather", lambda data: [data, *others])
  return others


SAME = {"config.steps": 10, "config.eval.prompts": ["a", "b"], "code": "1f", "data": "é"}


def test_processes_with_the_same_values_go_on(three):
  three += [json.dumps(SAME, sort_keys=True).encode()] * 2
  processes.require_equal(SAME)
  # A tuple is a list in a config, too.
  processes.require_equal(SAME | {"config.eval.prompts": ("a", "b")})


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"config.steps": 20}, r"config\.steps .*10 for process 0 and 20 for process 2"),
    ({"code": "2e"}, r"code .*'1f' for process 0 and '2e' for process 2"),
    ({"config.eval.prompts": ["a"]}, r"config\.eval\.prompts .*\['a', 'b'\].*\['a'\]"),
    ({"config.new": None}, r"config\.new .*missing for process 0 and None for process 2"),
  ],
)
def test_a_process_that_differs_is_named_with_both_values(three, change, message):
  three += [json.dumps(SAME).encode(), json.dumps(SAME | change).encode()]
  with pytest.raises(InputError, match=message):
    processes.require_equal(SAME)


def test_one_process_is_like_itself():
  processes.require_equal({"anything": object()})
