"""metrics.jsonl survives kill -9 at any byte, full disks and numbers that JSON cannot hold."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from research.errors import UserError
from research.report import record


def write(path, steps):
  writer = record.Writer(path)
  for step in steps:
    writer.append(step, {"train/loss": step / 7})
  writer.close()


def test_every_line_is_strict_json_and_no_number_is_lost(tmp_path):
  path = tmp_path / "metrics.jsonl"
  values = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": np.float32(0.1), "e": 1e-300, "f": np.int32(3)}
  writer = record.Writer(path)
  writer.append(np.int64(5), values)
  writer.close()

  def refuse(constant):
    raise AssertionError(f"{constant} is not strict JSON")

  line = json.loads(path.read_text(), parse_constant=refuse)
  assert type(line["step"]) is int
  assert line["a"] == "NaN"
  (back,) = record.read(path)
  assert math.isnan(back["a"])
  assert [back[name] for name in "bcdef"] == [math.inf, -math.inf, float(np.float32(0.1)), 1e-300, 3.0]


def test_strict_reaches_into_nested_values():
  nested = {"metrics": {"loss": np.float32(math.nan)}, "list": [np.int32(1), math.inf, None, True]}
  assert record.strict(nested) == {"metrics": {"loss": "NaN"}, "list": [1, "Infinity", None, True]}


def test_a_file_cut_at_any_byte_gives_its_whole_lines(tmp_path):
  path = tmp_path / "metrics.jsonl"
  write(path, [1, 2, 3])
  whole = path.read_bytes()
  for size in range(len(whole) + 1):
    path.write_bytes(whole[:size])
    # The last line counts once its closing brace is there, with or without the line's end.
    complete = (whole[:size] + b"\n").count(b"}\n")
    assert [line["step"] for line in record.read(path)] == [1, 2, 3][:complete]


@pytest.mark.parametrize("line", ["{", '{"step": 2, "loss": NaN}', '{"step": "2"}', "[1]", '{"step": 2, "loss": "x"}'])
def test_damage_before_the_last_line_is_refused_by_its_number(tmp_path, line):
  path = tmp_path / "metrics.jsonl"
  path.write_text(f'{{"step": 1, "time": 0}}\n{line}\n{{"step": 3, "time": 0}}\n')
  with pytest.raises(UserError, match="line 2 is damaged") as caught:
    record.read(path)
  assert "\n" not in str(caught.value)


def test_resuming_records_each_step_once(tmp_path):
  path = tmp_path / "metrics.jsonl"
  write(path, range(1, 8))
  with open(path, "ab") as file:
    file.write(b'{"step": 8, "ti')
  assert [line["step"] for line in record.truncate_after(path, 4)] == [1, 2, 3, 4]
  write(path, range(5, 9))
  assert [line["step"] for line in record.read(path)] == list(range(1, 9))


def test_a_failed_truncation_leaves_the_old_file_whole(tmp_path, monkeypatch):
  path = tmp_path / "metrics.jsonl"
  write(path, [1, 2])
  before = path.read_bytes()

  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "replace", full)
  with pytest.raises(UserError, match="No space left"):
    record.truncate_after(path, 1)
  assert path.read_bytes() == before
  assert os.listdir(tmp_path) == ["metrics.jsonl"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's always-full device")
def test_a_full_disk_is_one_line_for_the_user():
  writer = record.Writer(Path("/dev/full"))
  with pytest.raises(UserError, match=r"cannot write /dev/full: .*\(free space"):
    writer.append(1, {"train/loss": 1.0})
  writer.close()


def test_kill_9_loses_no_record_that_was_appended(tmp_path):
  path = tmp_path / "metrics.jsonl"
  script = (
    "import sys; from pathlib import Path; from research.report import record\n"
    "writer = record.Writer(Path(sys.argv[1]))\n"
    "for step in range(10**9):\n"
    "  writer.append(step, {'train/loss': 0.5})\n"
    "  print(step, flush=True)\n"
  )
  root = Path(record.__file__).parents[2]
  with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE, cwd=root, text=True) as process:
    for _ in range(50):
      told = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
  steps = [line["step"] for line in record.read(path)]
  assert steps == list(range(len(steps)))
  assert len(steps) > told


def test_curves_keep_the_last_value_of_a_repeated_step():
  lines = [{"step": 1, "time": 0, "a": 1.0}, {"step": 2, "time": 1, "a": 2.0, "b": 5.0}, {"step": 1, "time": 2, "a": 9}]
  assert record.curves(lines) == {"a": ([1, 2], [9, 2.0]), "b": ([2], [5.0])}
