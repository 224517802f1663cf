"""A run that begins with another's parameters: what goes over, what is drawn anew, and what is refused."""

import json
import shutil

import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from experiments import command
from experiments.gpt.__main__ import EXPERIMENT as GPT
from experiments.mlp.__main__ import EXPERIMENT as MLP

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")  # of this file's own reading
MLP_LINE = [
  "--data.source=sklearn:iris", "--parallel.mesh=data:1", "--data.batch_size=16", "--optim.ema_decay=0.5",
  "--optim.learning_rate=0.01",
]  # fmt: skip
GPT_LINE = [
  "--model.layers=1", "--model.width=8", "--model.heads=2", "--model.context=8", "--data.batch_size=8", "--run.steps=3",
  "--text.tokenizer=char", "--parallel.mesh=data:1",
]  # fmt: skip


@pytest.fixture(scope="module")
def first(tmp_path_factory):
  """A run of another shape than the defaults, with averaged parameters that differ from the last ones."""
  workdir = tmp_path_factory.mktemp("first") / "run"
  line = [*MLP_LINE, "--model.widths=12", "--run.steps=30", f"--workdir={workdir}"]
  assert command.main(MLP, line) == 0
  return workdir


def saved(workdir, step):
  return ocp.load(workdir / "checkpoints" / str(step))


def refused(capsys, definition, *arguments):
  capsys.readouterr()
  assert command.main(definition, list(arguments)) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1, error
  return error


def test_it_begins_with_the_averaged_parameters_and_the_model_of_the_other_run(first, tmp_path):
  workdir = tmp_path / "second"
  # A learning rate of almost nothing: what the first update starts from is what it leaves.
  line = [*MLP_LINE, "--optim.learning_rate=1e-12", f"--init_from={first}", "--run.steps=1", f"--workdir={workdir}"]
  assert command.main(MLP, line) == 0
  assert "--model.widths=12" in (workdir / "run.flags").read_text().splitlines()
  before, after = saved(first, 30), saved(workdir, 1)
  for layer, arrays in before["extra"]["ema"].items():
    for name, array in arrays.items():
      np.testing.assert_allclose(after["params"][layer][name], array, atol=1e-9)
      np.testing.assert_allclose(after["extra"]["ema"][layer][name], array, atol=1e-9)
      assert not np.array_equal(array, before["params"][layer][name])


def test_typed_flags_override_the_other_runs_and_a_finished_run_needs_it_no_more(first, tmp_path, capsys):
  origin = shutil.copytree(first, tmp_path / "origin")
  workdir = tmp_path / "second"
  line = ["--model.norm=layer", f"--init_from={origin}", "--model.dropout=0.1", *MLP_LINE, f"--workdir={workdir}"]
  assert "is of another model" in refused(capsys, MLP, *line)
  line[0] = "--model.activation=tanh"  # of no parameter's shape
  assert command.main(MLP, [*line, "--run.steps=2"]) == 0
  flags = (workdir / "run.flags").read_text()
  assert "--model.dropout=0.1" in flags
  assert "--model.activation=tanh" in flags
  assert "--model.widths=12" in flags
  shutil.rmtree(origin)
  assert command.main(MLP, ["eval", f"--config={workdir}"]) == 0
  assert "arrays from" not in capsys.readouterr().out.rpartition("step 2")[2]


def test_preflight_refuses_what_training_would(first, tmp_path, capsys):
  line = ["preflight", f"--init_from={first}", *MLP_LINE, f"--workdir={tmp_path / 'second'}"]
  assert command.main(MLP, line) == 0
  assert f"arrays from {first}" in capsys.readouterr().out
  assert "is of another model" in refused(capsys, MLP, *line, "--model.norm=layer")


def test_a_head_for_other_classes_is_drawn_and_other_differences_are_named(first, tmp_path, capsys):
  line = [f"--init_from={first}", *MLP_LINE, "--run.steps=1", f"--workdir={tmp_path / 'second'}"]
  error = refused(capsys, MLP, *line, "--data.source=sklearn:wine")
  assert "params/hidden_0/kernel is [4, 12] there and [13, 12] here" in error
  assert not (tmp_path / "second").exists()
  error = refused(capsys, MLP, *line, "--model.widths=12,5")
  assert "params/hidden_1/kernel only here" in error
  table = tmp_path / "four.csv"
  table.write_text("a,b,c,d,kind\n" + "".join(f"{i},{i % 7},{i % 5},{i % 3},{'uvwx'[i % 4]}\n" for i in range(80)))
  assert command.main(MLP, [*line, f"--data.source=csv:{table}"]) == 0
  assert "as drawn: params/head/bias is [3] there and [4] here" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("value", "message"),
  [("nowhere", "nowhere is no run's directory"), (".", ". is no run's directory"), ("", "--init_from is empty")],
)
def test_what_is_no_run(capsys, value, message):
  assert message in refused(capsys, MLP, f"--init_from={value}", *MLP_LINE)


def test_a_run_of_another_experiment(first, capsys):
  assert "is a run of experiments.mlp, not of experiments.gpt" in refused(capsys, GPT, f"--init_from={first}")


def test_another_tokenizer_is_refused_by_its_digest_and_init_takes_the_runs_own(tmp_path, capsys):
  for name, text in (("a", "the cat sat on the mat.\n"), ("b", "a dog lay by a log.\n")):
    (tmp_path / f"{name}.txt").write_text(text * 20)
  first, second = tmp_path / "first", tmp_path / "second"
  assert command.main(GPT, [f"--data.source=text:{tmp_path / 'a.txt'}", *GPT_LINE, f"--workdir={first}"]) == 0
  line = [*GPT_LINE, f"--data.source=text:{tmp_path / 'b.txt'}", f"--init_from={first}", f"--workdir={second}"]
  error = refused(capsys, GPT, *line)
  assert "has another tokenizer (digest" in error
  assert not second.exists()
  assert "--text.tokenizer=init is the tokenizer of --init_from" in refused(capsys, GPT, "--text.tokenizer=init")

  assert command.main(GPT, [*line, "--text.tokenizer=init"]) == 0
  kept = json.loads((second / "tokenizer.json").read_text())
  assert kept == json.loads((first / "tokenizer.json").read_text())
  shutil.rmtree(first)  # a run keeps what it needs
  assert command.main(GPT, ["preflight", f"--config={second}"]) == 0
