"""Readers that have gone, stand still or come back; full disks; descriptors that are closed."""

from __future__ import annotations

import contextlib
import errno
import os
import pty
import socket
import subprocess
import sys
import termios
import threading
import time

import pytest

from egad_jax import streams
from egad_jax.streams import Descriptor, StdoutError


@pytest.fixture
def pipe():
  """(reader, writer)."""
  ends = os.pipe()
  yield ends
  for end in ends:
    with contextlib.suppress(OSError):
      os.close(end)


def fill(writer):
  """Writes until there is no room."""
  os.set_blocking(writer, False)
  with contextlib.suppress(BlockingIOError):
    while True:
      os.write(writer, b"x")
  os.set_blocking(writer, True)


def test_results_wait_for_a_slow_reader(pipe):
  reader, writer = pipe
  taken = []

  def read():
    time.sleep(0.1)
    while data := os.read(reader, 2**16):
      taken.append(data)

  thread = threading.Thread(target=read)
  thread.start()
  os.set_blocking(writer, False)  # As another process may have made it.
  assert Descriptor(writer, patient=True).write(bytes(2**18)) == 2**18
  os.close(writer)
  thread.join()
  assert sum(map(len, taken)) == 2**18


def test_results_that_do_not_arrive_are_an_error(pipe):
  os.close(pipe[0])
  with pytest.raises(StdoutError) as found:
    Descriptor(pipe[1], patient=True).write(b"result")
  assert streams.reader_is_gone(found.value)
  with open("/dev/full", "wb") as full, pytest.raises(StdoutError) as found:
    Descriptor(full.fileno(), patient=True).write(b"result")
  assert found.value.errno == errno.ENOSPC
  assert not streams.reader_is_gone(found.value)


def test_messages_nobody_reads_are_lost_and_counted(pipe):
  reader, writer = pipe
  fill(writer)
  messages = Descriptor(writer, patient=False)
  started = time.monotonic()
  for _ in range(50):
    assert messages.write(b"message\n") == 8
  # Patience is spent once, not for every message.
  assert time.monotonic() - started < streams.PATIENCE + 1
  assert messages.lost == 400
  os.read(reader, 2**17)
  messages.write(b"again\n")
  assert os.read(reader, 2**16) == b"[400 characters were lost: nobody read them]\nagain\n"


def test_a_long_message_in_a_pipe_that_is_nearly_full_does_not_wait_for_ever(pipe):
  reader, writer = pipe
  streams._stall_for_nobody(writer)
  Descriptor(writer, patient=False).write(bytes(10**6))
  assert os.get_blocking(reader)
  assert len(os.read(reader, 10**6)) == 2**16


def test_others_who_share_the_pipe_still_wait(pipe):
  other = os.dup(pipe[1])
  streams._stall_for_nobody(pipe[1])
  assert (os.get_blocking(pipe[1]), os.get_blocking(other)) == (False, True)
  os.close(other)


def test_a_terminal_that_is_stopped():
  master, slave = pty.openpty()
  termios.tcflow(slave, termios.TCOOFF)  # Ctrl-S.
  messages = Descriptor(slave, patient=False)
  messages.write(b"one")
  assert messages.lost == 3
  termios.tcflow(slave, termios.TCOON)
  messages.write(b"two")
  assert b"3 characters were lost" in os.read(master, 1000)
  os.close(master)  # It hangs up.
  messages.write(b"three")
  assert messages.lost == 5
  os.close(slave)


def test_a_socket_that_nobody_reads():
  ours, theirs = socket.socketpair()
  with Descriptor(ours.fileno(), patient=False) as messages:
    messages.write(bytes(10**7))
    assert messages.lost > 0
  assert ours.getblocking()
  ours.close()
  theirs.close()


@pytest.mark.parametrize("how", ["2>&-", "2>/dev/full", ">&- 2>&- <&-"])
def test_messages_never_end_a_process_and_closed_numbers_are_not_given_away(how):
  program = """if 1:
    import logging, os, sys
    from egad_jax import streams
    streams.take_over()
    file = open(os.devnull)
    assert file.fileno() > 2, file.fileno()
    logging.getLogger("x").error("message")
    print("message", file=sys.stderr)
    streams.write_stderr("last words")
    os._exit(7)
  """
  done = subprocess.run(
    ["sh", "-c", f'exec "$@" {how}', "sh", sys.executable, "-c", program],
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stdout, done.stderr) == (7, "", "")
