"""TensorBoard's events, read back here; on a full disk they wait, and the run does not."""

from __future__ import annotations

import errno
import struct

import pytest
from etils import epath
from tensorboardX.proto.event_pb2 import Event

from egad_jax.reporting import events
from egad_jax.reporting.events import EventFile


def read(path):
  """The records of a file: a length, its checksum, the bytes and theirs."""
  data, found = path.read_bytes(), []
  while data:
    (size,) = struct.unpack("<Q", data[:8])
    found.append(Event.FromString(data[12 : 12 + size]))
    assert len(data) >= 16 + size, "cut short"
    data = data[16 + size :]
  return found


@pytest.fixture(params=["disk", "bucket"])
def directory(request, tmp_path, bucket):
  return epath.Path(tmp_path) / "tensorboard" if request.param == "disk" else bucket / "tensorboard"


def test_numbers_are_written_whole_after_what_hides_earlier_ones(directory):
  file = EventFile(directory, purge_step=6)
  for step in (6, 7):
    file.add_scalar("loss", step / 2, step)
  file.sync()
  file.add_scalar("held_out/perplexity", 3.0, 7)
  file.close()
  [path] = directory.iterdir()
  assert path.name.startswith("events.out.tfevents.")
  version, start, *numbers = read(path)
  assert version.file_version == "brain.Event:2"
  assert (start.step, start.session_log.status) == (6, 1)
  found = [(e.step, v.tag, v.simple_value) for e in numbers for v in e.summary.value]
  assert found == [(6, "loss", 3.0), (7, "loss", 3.5), (7, "held_out/perplexity", 3.0)]


def test_a_full_disk_delays_them_and_leaves_them_whole(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(events, "_FLUSH_SECONDS", 0.0)
  file = EventFile(epath.Path(tmp_path), purge_step=1)
  file.add_scalar("loss", 1.0, 1)

  def full(self):
    # Half of it got there.
    with open(file._path, "ab") as target:
      target.write(self._waiting[:7])
    raise OSError(errno.ENOSPC, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(EventFile, "_append", full)
    for step in range(2, 40):
      file.add_scalar("loss", 1.0, step)
  assert caplog.text.count("No space left on device") == 1
  file.add_scalar("loss", 1.0, 40)
  assert [event.step for event in read(tmp_path / file._path.name)][2:] == list(range(1, 41))


def test_what_waits_for_room_is_bounded_and_what_is_lost_is_told(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(events, "_MOST_WAITING", 500)
  (tmp_path / "tensorboard").write_text("a file where the directory should be")
  file = EventFile(epath.Path(tmp_path) / "tensorboard", purge_step=1)
  for step in range(1000):
    file.add_scalar("loss", 1.0, step)
  file.close()
  assert len(file._waiting) <= 500
  assert caplog.text.count("cannot be written") == 1
  assert "the last events of TensorBoard are lost" in caplog.text
