"""The facade: the order in which a run's end is written, resumes, and what importing it costs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import research
from research.errors import UserError
from research.report import Report, page, record


def open_report(path, **changes):
  return Report(path, **{"header": {}, "total_steps": 10, "batch_size": 1, "quiet": True, **changes})


def steps(path):
  return [line["step"] for line in record.read(path / "metrics.jsonl")]


def test_importing_it_is_cheap():
  script = "import sys, research.report; print(*{name.split('.')[0] for name in sys.modules})"
  root = Path(research.__file__).parents[1]
  loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root, check=True).stdout
  assert not {"jax", "matplotlib", "tensorboardX", "PIL", "sklearn", "rich", "pandas"} & set(loaded.split())


def test_the_result_is_strict_json_with_the_headline_first(tmp_path):
  metrics = {"validation/loss": np.float32(0.5), "validation/accuracy": 0.75, "test/accuracy": float("nan")}
  with open_report(tmp_path, headline="validation/accuracy") as report:
    assert report.finish({"step": 10, "metrics": metrics, "best": {}}) == tmp_path / "report.html"
  found = json.loads((tmp_path / "result.json").read_text())
  wanted = {"test/accuracy": "NaN", "validation/accuracy": 0.75, "validation/loss": 0.5}
  assert list(found["metrics"].items()) == list(wanted.items())
  assert found["step"] == 10
  assert 0 <= found["wall_seconds"] < 60


def test_the_result_comes_after_the_page(tmp_path, monkeypatch):
  seen = []
  monkeypatch.setattr(page, "render", lambda run: seen.append((run.path / "result.json").exists()) or "page")
  with open_report(tmp_path) as report:
    report.finish({"step": 10, "metrics": {}})
  assert seen == [False]
  assert (tmp_path / "result.json").exists()


def test_a_fault_in_drawing_is_loud_but_keeps_the_numbers(tmp_path, monkeypatch):
  def fail(_run):
    raise ZeroDivisionError

  monkeypatch.setattr(page, "render", fail)
  with open_report(tmp_path) as report, pytest.raises(ZeroDivisionError):
    report.finish({"step": 10, "metrics": {"test/loss": 0.5}})
  assert json.loads((tmp_path / "result.json").read_text())["metrics"] == {"test/loss": 0.5}


def test_a_resumed_run_records_each_step_once_and_is_unfinished_again(tmp_path):
  with open_report(tmp_path) as report:
    for step in range(1, 8):
      report.train(step, {"train/loss": step})
    report.evaluation(4, {"validation/loss": 1.0})
    report.sample(3, "three")
    report.sample(6, "six")
    report.finish({"step": 7, "metrics": {}})
  with open_report(tmp_path, start_step=4) as report:
    assert not (tmp_path / "result.json").exists()
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["000003.txt"]
    report.evaluation(4, {"validation/loss": 1.0, "validation/new": 2.0})  # repeated right after the resume
    for step in range(5, 8):
      report.train(step, {"train/loss": step})
  curves = record.curves(record.read(tmp_path / "metrics.jsonl"))
  assert curves["train/loss"] == (list(range(1, 8)), [1, 2, 3, 4, 5, 6, 7])
  assert sorted(steps(tmp_path)) == [1, 2, 3, 4, 4, 4, 5, 6, 7]
  assert sum("validation/loss" in line for line in record.read(tmp_path / "metrics.jsonl")) == 1
  assert curves["validation/new"] == ([4], [2.0])


def test_a_finished_run_that_is_opened_again_stays_finished(tmp_path):
  with open_report(tmp_path) as report:
    report.finish({"step": 10, "metrics": {}})
  with open_report(tmp_path, start_step=10):
    assert (tmp_path / "result.json").exists()


def test_a_run_that_starts_over_keeps_nothing(tmp_path):
  for attempt in range(2):
    with open_report(tmp_path) as report:
      report.evaluation(0, {"validation/loss": attempt})
      report.train(1, {"train/loss": attempt})
  assert steps(tmp_path) == [0, 1]
  assert record.curves(record.read(tmp_path / "metrics.jsonl"))["validation/loss"] == ([0], [1.0])


def test_a_directory_that_cannot_be_made_is_one_line_for_the_user(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match=r"workdir: cannot write .*file") as caught:
    open_report(tmp_path / "file" / "run")
  assert "\n" not in str(caught.value)
