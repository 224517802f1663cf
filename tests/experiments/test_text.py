"""Text classification from the command line, from a table of one's own."""

import json

import pytest

from experiments import command
from experiments.text.__main__ import EXPERIMENT as TEXT
from experiments.text.__main__ import NAMES


@pytest.fixture(scope="module")
def table(tmp_path_factory):
  lines = [f'"the {"red cat" if i % 3 else "old dog"} sat on mat {i}",{"cat" if i % 3 else "dog"}' for i in range(60)]
  path = tmp_path_factory.mktemp("text") / "a.csv"
  path.write_text("\n".join(["note,animal", *lines]) + "\n")
  return path


SMALL = ["--text.length=8", "--model.width=8", "--model.hidden=8", "--model.filters=4", "--model.heads=2",
         "--data.batch_size=16", "--run.log_every=5", "--run.eval_every=20",
         "--optim.learning_rate=1e-2"]  # fmt: skip


# In the default tests a GRU stands for the recurrent ones, and BERT's for the transformer.
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("lstm", "transformer")]


@pytest.mark.parametrize("name", [*sorted({*NAMES} - {"lstm", "transformer"}), *SLOW])
def test_every_network_tells_cats_from_dogs(table, tmp_path, name):
  workdir = tmp_path / "run"
  arguments = [f"--data.source=csv:{table}", *SMALL, f"--model.name={name}", "--run.steps=40", f"--workdir={workdir}"]
  assert command.main(TEXT, arguments) == 0
  metrics = json.loads((workdir / "result.json").read_text())["metrics"]
  assert metrics["test/accuracy"] == 1.0
  assert metrics["test/macro_f1"] == 1.0
  assert (workdir / "tokenizer.json").exists()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--data.target=animals"], "no column 'animals' (did you mean animal?)"),
    (["--data.flip"], "--data.flip is for images"),
    (["--model.name=transformer", "--model.heads=3"], "3 heads do not divide a width of 8"),
    (["--model.name=cnn", "--model.windows="], "--model.windows is empty"),
    (["--data.source=csv:missing.csv"], "missing.csv"),
  ],
)
def test_what_does_not_fit_is_said_in_one_line(table, tmp_path, capsys, arguments, message):
  line = [f"--data.source=csv:{table}", *SMALL, *arguments, f"--workdir={tmp_path / 'run'}"]
  assert command.main(TEXT, line) == 2
  error = capsys.readouterr().err
  assert message in error
  assert error.count("\n") == 1
  assert not (tmp_path / "run").exists()
