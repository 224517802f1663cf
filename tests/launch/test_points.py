"""Points of a study: a fresh process each, a row for every outcome, and nothing run twice."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.run_directory import locked
from launch.scaling import points
from research.errors import UserError

COUNT = "import sys, pathlib; p = pathlib.Path(sys.argv[1]); p.write_text(p.read_text() + 'x' if p.exists() else 'x');"


def point(name, tmp_path, code="print(7)", **environment):
  command = (sys.executable, "-S", "-c", COUNT + code, str(tmp_path / f"{name}.count"))
  return points.Point(name, command, environment, {"width": 3})


def number(_, out):
  return {"loss": float(out)}


def starts(name, tmp_path):
  return len((tmp_path / f"{name}.count").read_text())


def run(wanted, tmp_path, **options):
  return points.run_all(wanted, tmp_path / "study", number, say=lambda line: None, **options)


def test_a_resumed_study_runs_what_has_no_row_and_keeps_what_has(tmp_path):
  wanted = [point(name, tmp_path) for name in "abc"]
  rows = run(wanted, tmp_path)
  assert [(row["name"], row["loss"], row["width"], row["ok"]) for row in rows] == [(n, 7.0, 3, True) for n in "abc"]
  file = tmp_path / "study" / points.FILE
  first, _, third = file.read_text().splitlines(keepends=True)
  file.write_text(first + third + '{"name": "b", "lo')  # a row deleted, and the torn line of a killed writer
  assert [row["name"] for row in run(wanted, tmp_path)] == ["a", "b", "c"]
  assert [starts(name, tmp_path) for name in "abc"] == [1, 2, 1]
  assert [json.loads(line)["name"] for line in file.read_text().splitlines()] == ["a", "c", "b"]


def test_a_failure_is_a_row_with_its_reason_and_the_next_point_runs(tmp_path):
  wanted = [
    point("dies", tmp_path, "print('no memory', file=sys.stderr); sys.exit(3)"),
    point("mute", tmp_path, ""),
    point("slow", tmp_path, "import time; time.sleep(60)"),
    points.Point("missing", ("/no/such/program",)),
    point("killed", tmp_path, "import os; os.kill(os.getpid(), 9)"),
    point("works", tmp_path, "import os; print(os.environ['NUMBER'])", NUMBER="4"),
  ]
  rows = {row["name"]: row for row in run(wanted, tmp_path, timeout_s=2)}
  assert rows["dies"]["reason"] == "exit code 3: no memory"
  assert "no result" in rows["mute"]["reason"]
  assert rows["slow"]["reason"] == "took longer than 2 s"
  assert "cannot start /no/such/program" in rows["missing"]["reason"]
  assert rows["killed"]["reason"].startswith("killed by signal 9")
  assert [row["ok"] for row in rows.values()] == [False] * 5 + [True]
  assert rows["works"]["loss"] == 4
  run(wanted[:1], tmp_path)
  assert starts("dies", tmp_path) == 1
  assert not run(wanted[:1], tmp_path, retry=True)[0]["ok"]
  assert starts("dies", tmp_path) == 2


def test_an_interrupted_point_is_no_row(tmp_path):
  with pytest.raises(points.Stopped):
    run([point("a", tmp_path, "sys.exit(75)")], tmp_path)
  assert points.read(tmp_path / "study" / points.FILE) == []


SAVES = """
import pathlib, signal, sys, time
def save(*_):
  time.sleep(0.5)
  print("saved")
  sys.exit(75)
signal.signal(signal.SIGTERM, save)
pathlib.Path("ready").write_text("x")
time.sleep(60)
"""
STUDY = f"""
import pathlib, sys
from launch.scaling import __main__, devices, points
def study(arguments):
  made = [points.Point(each, (sys.executable, "-S", "-c", {SAVES!r})) for each in "ab"]
  points.run_all(made, pathlib.Path("study"), lambda *_: {{}}, say=print)
devices.main = study
sys.exit(__main__.main(["devices"]))
"""


@pytest.mark.parametrize(
  "number",
  [
    signal.SIGTERM,
    signal.SIGKILL,
    pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
  ],
)
def test_a_study_passes_a_signal_on_and_waits_and_none_outlives_it(number, tmp_path):
  if number == signal.SIGKILL and sys.platform != "linux":
    pytest.skip("only the kernel of Linux tells that a parent has died")
  environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
  study = subprocess.Popen(
    [sys.executable, "-c", STUDY], cwd=tmp_path, env=environment, text=True,
    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
  )  # fmt: skip
  end = time.monotonic() + 60
  while not (tmp_path / "ready").exists() and time.monotonic() < end:
    time.sleep(0.02)
  study.send_signal(number)
  out, err = study.communicate(timeout=30)
  saved = (tmp_path / "study" / "logs" / "a.out").read_text()
  if number == signal.SIGKILL:
    assert (study.returncode, saved) == (-9, "")
    with locked(tmp_path / "study", "study"), open(tmp_path / "study" / "logs" / "a.out", "ab") as file:
      assert _gone(file.name)
    return
  assert (study.returncode, err) == (75, "stopped; the same command goes on\n")
  assert saved == "saved\n"  # before the study ended
  assert "2 of 2" not in out
  assert points.read(tmp_path / "study" / points.FILE) == []


def _gone(path, seconds=10):
  """Whether no other process has the file open."""
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    holders = []
    for each in Path("/proc").glob("[0-9]*/fd/1"):
      with contextlib.suppress(OSError):
        holders += [each] if os.readlink(each) == path else []
    if not holders:
      return True
    time.sleep(0.05)
  return False


def test_another_command_of_the_same_name_is_refused_with_what_differs(tmp_path):
  run([point("a", tmp_path, NUMBER="1")], tmp_path)
  with pytest.raises(UserError, match="NUMBER=1 there, NUMBER=2 here"):
    run([point("a", tmp_path, NUMBER="2")], tmp_path)


def test_damage_within_the_file_is_refused(tmp_path):
  (tmp_path / "p.jsonl").write_text('{"name": "a"\n{"name": "b"}\n')
  with pytest.raises(UserError, match="line 1 is damaged"):
    points.read(tmp_path / "p.jsonl")


def test_the_table_has_the_columns_asked_for(tmp_path):
  points.write_csv(tmp_path / "p.csv", [{"name": "a", "n": 1, "x": 2}, {"name": "b"}], ("name", "n"))
  assert (tmp_path / "p.csv").read_text() == "name,n\na,1\nb,\n"
