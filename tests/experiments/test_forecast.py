"""Forecasting from the command line, from a table of one's own: beside the naive forecasts, and ahead of the table."""

import json
import re

import numpy as np
import pytest

from experiments import command
from experiments.forecast.__main__ import EXPERIMENT as FORECAST
from research.report import pictures, predictions

DRAWS_PICTURES = True

SMALL = ["--series.context=12", "--series.horizon=4", "--series.season=6", "--model.hidden=8", "--model.width=8",
         "--model.heads=2", "--data.batch_size=16", "--run.log_every=5", "--optim.learning_rate=1e-2",
         "--parallel.mesh=data:1"]  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory):
  """A season of six rows under noise, the day, and a column that follows the target."""
  random = np.random.default_rng(0)
  load = 100 + 10 * np.sin(np.arange(200) * np.pi / 3) + random.normal(0, 1.0, 200)
  days = np.arange(np.datetime64("2020-01-01"), np.datetime64("2020-01-01") + np.timedelta64(200, "D"))
  lines = [f"{day},{wind:.3f},{value:.6f}" for day, wind, value in zip(days, load + 5, load, strict=True)]
  path = tmp_path_factory.mktemp("forecast") / "a.csv"
  path.write_text("\n".join(["day,wind,load", *lines]) + "\n")
  return path


def run(table, workdir, *arguments):
  return command.main(FORECAST, [f"--data.source=csv:{table}", *SMALL, *arguments, f"--workdir={workdir}"])


@pytest.fixture(scope="module")
def trained(table, tmp_path_factory):
  """A finished run of the linear map."""
  workdir = tmp_path_factory.mktemp("runs") / "linear"
  assert run(table, workdir, "--model.name=linear", "--run.steps=300", "--run.eval_every=150") == 0
  return workdir


def test_a_linear_map_beats_both_naive_forecasts_and_both_are_told(trained):
  metrics = json.loads((trained / "result.json").read_text())["metrics"]
  assert next(iter(metrics)) == "test/mae"
  assert metrics["test/mae"] < metrics["test/seasonal_naive_mae"] < metrics["test/naive_mae"]
  assert metrics["test/skill"] > 0.05
  assert 0.8 < metrics["test/seasonal_naive_mase"] < 1.25  # the same noise in the test as in training
  # Noise of 1 about a known curve: what repeats the last season has √2 times its mean of √(2/π).
  assert metrics["test/seasonal_naive_mae"] == pytest.approx(np.sqrt(2 * 2 / np.pi), rel=0.2)


def test_the_report_shows_the_baselines_beside_the_model(trained):
  page = (trained / "report.html").read_text()
  tile = re.search(r'<div class="tile main"><div class="name">test mae</div>.*?</div></div>', page)[0]
  assert "seasonal naive " in tile
  assert "<h2>Forecasts</h2>" in page
  assert "seasonal naive (validation)</span>" in page  # the dashed line in the panel of the model's own error
  assert not re.search(r"<h3>(seasonal )?naive", page)  # and no panel of its own
  assert page.count("<h3>from origin") == 4
  for name in ("forecasts.png", "curves.png"):
    assert (trained / "pictures" / name).read_bytes().startswith(b"\x89PNG")
  found = predictions.read(trained / "predictions.npz")
  metrics = json.loads((trained / "result.json").read_text())["metrics"]
  assert np.abs(found["forecast"] - found["truth"]).mean() == pytest.approx(metrics["test/mae"], rel=1e-3)


def test_a_run_forecasts_what_comes_after_the_table(trained, table, tmp_path, capsys):
  assert command.main(FORECAST, ["sample", f"--config={trained}", f"--output={tmp_path / 'b' / 'ahead.csv'}"]) == 0
  assert "the 4 values after the series' last row" in capsys.readouterr().out
  lines = (tmp_path / "b" / "ahead.csv").read_text().splitlines()
  assert lines[0] == "step,forecast,naive,seasonal_naive"
  rows = np.array([[float(cell) for cell in line.split(",")] for line in lines[1:]])
  load = [float(line.split(",")[2]) for line in table.read_text().splitlines()[1:]]
  assert rows[:, 0].tolist() == [1, 2, 3, 4]
  np.testing.assert_allclose(rows[:, 2], load[-1], rtol=1e-5)
  np.testing.assert_allclose(rows[:, 3], load[-6:-2], rtol=1e-5)
  expected = 100 + 10 * np.sin(np.arange(200, 204) * np.pi / 3)
  np.testing.assert_allclose(rows[:, 1], expected, atol=2.5)
  assert command.main(FORECAST, ["sample", f"--config={trained}", f"--output={table}/x.csv"]) == 2
  assert "give another --output" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["gru", "transformer"])  # an LSTM differs from a GRU by its cell alone
def test_networks_learn(table, tmp_path, monkeypatch, name):
  """From the naive forecast, which each begins as."""
  monkeypatch.setattr(pictures, "write_all", lambda run, folder: [])  # drawn once, above
  options = ["--series.covariates=wind", "--model.patch=3", "--run.steps=40", "--run.eval_every=40"]
  assert run(table, tmp_path / "run", f"--model.name={name}", *options) == 0
  metrics = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
  assert metrics["test/mae"] < 0.9 * metrics["test/naive_mae"]


def test_a_run_may_begin_with_another_of_a_longer_horizon(trained, table, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(pictures, "write_all", lambda run, folder: [])
  arguments = [f"--init_from={trained}", "--series.horizon=3", "--run.steps=1"]
  assert run(table, tmp_path / "run", *arguments) == 0
  assert "as drawn: params/head" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--series.season=0"], "--series.season"),
    (["--series.season=24"], "--series.season=24 is longer than --series.context=12"),
    (["--series.horizon=0"], "--series.horizon"),
    (["--series.context=130"], "has 128 rows for training, fewer than a context of 130"),
    (["--series.horizon=41"], "the test split"),
    (["--model.patch=5"], "--model.patch=5 does not divide --series.context=12; --series.context=15 would do"),
    (["--model.name=transformer", "--model.heads=3"], "3 heads do not divide a width of 8"),
    (["--data.target=lod"], "no column 'lod' (did you mean load?)"),
    (["--data.target=day"], "is not a number"),
    (["--series.covariates=winds"], "(did you mean wind?)"),
    (["--data.flip"], "--data.flip is not for a series"),
    (["--data.split_seed=3"], "splits follow time"),
    (["--data.source=sklearn:digits"], "is no series"),
    (["--data.source=csv:missing.csv"], "missing.csv"),
    (["--data.batch_size=512"], "larger than the 113 training examples"),
  ],
)
def test_what_does_not_fit_is_said_in_one_line(table, tmp_path, capsys, arguments, message):
  assert run(table, tmp_path / "run", *arguments) == 2
  error = capsys.readouterr().err
  assert message in error
  assert error.count("\n") == 1
  assert not (tmp_path / "run").exists()
