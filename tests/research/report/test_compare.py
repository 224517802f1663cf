"""`python -m research.report`: tables, flags that differ, one picture; and one line for bad directories."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import research
from research.report import compare, run_directory
from research.report.__main__ import main


def test_only_flags_that_differ_are_listed(make_run):
  runs = [run_directory.open_run(make_run(name, rate)) for name, rate in (("one", "0.1"), ("two", "0.2"))]
  assert compare.differing_flags(runs) == {"--optim.learning_rate": ["0.1", "0.2"]}


def test_a_flag_that_only_one_run_has_differs(make_run):
  one, two = make_run("one"), make_run("two")
  with open(two / "run.flags", "a") as file:
    file.write("  # a comment\n\n--model.width=3\n--model.name=\n")
  runs = [run_directory.open_run(path) for path in (one, two)]
  assert compare.differing_flags(runs) == {"--model.width": ["-", "3"], "--model.name": ["-", '""']}


def test_results_tell_the_last_and_the_best_value_and_who_leads(make_run):
  runs = [run_directory.open_run(make_run(name)) for name in ("one", "two")]
  runs[1].result["metrics"]["test/loss"] = 0.25
  facts, leaders = compare.results(runs)
  assert facts["validation/accuracy"] == ["50.00%", "50.00%"]
  assert facts["best validation/accuracy"] == ["75.00% at 2", "75.00% at 2"]
  assert facts["test/loss"] == ["0.5000", "0.2500"]
  assert leaders == {"test/loss": 1}
  assert "train/learning_rate" not in facts


def test_the_command_prints_everything_and_draws_the_curves(make_run, tmp_path, capsys):
  paths = [make_run(f"a-rather-long-name-of-a-run-{index}", f"0.{index}") for index in range(1, 8)]
  out = tmp_path / "new" / "both.png"
  for some in (paths[:2], paths):
    assert main([*map(str, some), f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    for wanted in (*(path.name for path in some), "--optim.learning_rate", "0.2", "75.00% at 2", str(out)):
      assert wanted in printed
    assert "--seed" not in printed
    assert "\x1b" not in printed
  with Image.open(out) as picture:
    assert picture.width > 1000


@pytest.mark.parametrize("content", ["a picture", "text", "a folder"])
def test_a_file_of_another_make_is_not_written_over(make_run, tmp_path, capsys, content):
  paths = [str(make_run(name)) for name in ("one", "two")]
  out = tmp_path / "compare.png"
  if content == "a picture":
    Image.new("L", (2, 2)).save(out)
  elif content == "text":
    out.write_text("mine")
  else:
    out.mkdir()
  before = None if out.is_dir() else out.read_bytes()
  assert main([*paths, f"--out={out}"]) == 2
  said = capsys.readouterr()
  line = f"report: {out} is a file that this command did not write; name another with --out=FILE.png\n"
  assert (said.out, said.err) == ("", line)
  assert before is None or out.read_bytes() == before


def test_one_run_gets_its_page_anew(make_run, capsys):
  path = make_run()
  page = (path / "report.html").read_text()
  (path / "report.html").unlink()
  assert main([str(path)]) == 0
  assert capsys.readouterr().out.strip() == str(path / "report.html")
  assert (path / "report.html").read_text() == page


@pytest.mark.parametrize(
  ("arguments", "line"),
  [
    (["{}/on"], "report: {0}/on does not exist (did you mean {0}/one?)"),
    (["{}/empty"], "report: {0}/empty has no metrics.jsonl, so it is no run"),
    (["{}/one", "{}/nothing"], "report: {0}/nothing does not exist"),
    (["{}/one", "{}/one", "--out=x.pdf"], "report: --out=x.pdf must end in .png"),
  ],
)
def test_bad_input_is_one_line_and_exit_code_2(make_run, tmp_path, capsys, arguments, line):
  make_run("one")
  (tmp_path / "empty").mkdir()
  assert main([argument.format(tmp_path) for argument in arguments]) == 2
  assert capsys.readouterr().err == line.format(tmp_path) + "\n"


def test_the_module_runs(tmp_path):
  root = Path(research.__file__).parents[1]
  command = [sys.executable, "-m", "research.report", str(tmp_path)]
  done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
  assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
