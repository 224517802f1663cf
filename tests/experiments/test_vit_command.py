"""The vision transformer's command: a run from end to end, and images that its patches do not fill."""

import json

from experiments import command
from experiments.vit.__main__ import EXPERIMENT as VIT

SMALL = [
  "--model.layers=2", "--model.width=16", "--model.heads=2", "--data.randaugment=1", "--model.stochastic_depth=0.2",
]  # fmt: skip

DRAWS_PICTURES = True


def test_a_run_from_end_to_end(tmp_path):
  arguments = ["--config=digits", *SMALL, "--run.steps=3", f"--workdir={tmp_path / 'run'}"]
  assert command.main(VIT, arguments) == 0
  result = json.loads((tmp_path / "run" / "result.json").read_text())
  assert 0 < result["metrics"]["test/accuracy"] < 1
  assert (tmp_path / "run" / "pictures").is_dir()


def test_what_does_not_fit_is_said_in_one_line(tmp_path, capsys):
  for arguments, message in (
    (["--model.patch=3"], "patches of 3 do not fill images of 8×8; 2 would"),
    (["--data.source=sklearn:iris"], "vit classifies images"),
    (["--model.experts=4"], "--model.experts is for language models"),
    (["--model.heads=5"], "5 heads do not divide a width of 64"),
  ):
    assert command.main(VIT, ["--config=digits", *arguments, f"--workdir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
  assert not (tmp_path / "run").exists()
