"""What some processes have written is read by others, in any number, on any mesh, bit for bit."""

import json
from pathlib import Path

import pytest

from tests import started

WORKER = Path(__file__).with_name("checkpoints_worker.py")


def checkpoints(count, folder, **what):
  """`count` processes, or this one, write or read; [exit code, standard error] of each."""
  return [(code, err) for code, _, err in started.run(count, [str(WORKER), str(folder), json.dumps(what)])]


def test_two_processes_read_what_one_wrote_and_write_what_one_reads(tmp_path):
  import checkpoints_worker

  checkpoints_worker.write(tmp_path, "1")
  ended = checkpoints(2, tmp_path, write="2", read=["1"])
  assert [code for code, _ in ended] == [0, 0], ended
  assert checkpoints_worker.read(tmp_path, "2") == 16


@pytest.mark.slow
def test_any_number_reads_what_any_number_wrote(tmp_path):
  counts = [1, 2, 4]
  for count in counts:
    ended = checkpoints(count, tmp_path, write=str(count), read=[])
    assert {code for code, _ in ended} == {0}, ended
  for count in counts:
    ended = checkpoints(count, tmp_path, write="", read=[str(other) for other in counts])
    assert {code for code, _ in ended} == {0}, ended
