"""The autoencoder's command: what a run leaves, what is refused in one line, and how a stopped run goes on."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import command
from experiments.autoencoder.__main__ import EXPERIMENT
from research import throughput

QUICK = [
  "--run.steps=6", "--run.eval_every=3", "--run.checkpoint_every=2", "--run.log_every=1", "--parallel.mesh=data:1",
]  # fmt: skip
VAE = ["--data.source=sklearn:digits", "--model.kind=variational", "--model.latent=3"]
EVERYTHING = [
  *VAE, *QUICK, "--model.widths=8", "--model.binarize", "--model.iwae_samples=2", "--model.beta_warmup=0.8",
  "--optim.ema_decay=0.9", "--optim.micro_batches=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole") / "run"
  assert command.main(EXPERIMENT, [*EVERYTHING, f"--workdir={workdir}"]) == 0
  return workdir


def metrics_of(workdir):
  return json.loads(Path(workdir, "result.json").read_text())["metrics"]


def lines(workdir):
  parsed = [json.loads(line) for line in Path(workdir, "metrics.jsonl").read_text().splitlines()]
  return [{key: line[key] for key in line if key != "time" and not throughput.is_one(key)} for line in parsed]


def refused(capsys, arguments):
  assert command.main(EXPERIMENT, arguments) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1, error
  return error


def test_a_variational_run_leaves_its_numbers_and_pictures(whole):
  found = metrics_of(whole)
  assert found.keys() == {f"test/{name}" for name in ("loss", "elbo", "kl", "reconstruction", "iwae_bound")}
  assert found["test/elbo"] == pytest.approx(found["test/reconstruction"] - found["test/kl"], rel=1e-6)
  assert (whole / "samples" / "000006.png").exists()
  assert {"train/loss", "train/kl", "train/reconstruction", "train/beta"} <= lines(whole)[0].keys()


def test_what_stands_for_a_missing_value_is_the_training_mean(in_directory):
  """The mean's error over missing values is their variance: 1 for standardised columns, up to the small test set."""
  arguments = ["--config=breast_cancer_missing", *QUICK, "--run.steps=3", "--workdir=w"]
  assert command.main(EXPERIMENT, arguments) == 0
  found = metrics_of("w")
  assert 0.6 < found["test/noisy_missing_mse"] < 1.6
  share = found["test/noisy_mse"] / found["test/noisy_missing_mse"]
  assert share == pytest.approx(0.3, abs=0.03)  # --noise.rate
  assert not Path("w/samples").exists()


@pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning")  # a bare load has no sharding to give
def test_a_stopped_run_goes_on_bit_for_bit(whole, tmp_path, stopping_after):
  halves = tmp_path / "run"
  with stopping_after(3):
    assert command.main(EXPERIMENT, [*EVERYTHING, f"--workdir={halves}"]) == command.STOPPED
  assert not (halves / "result.json").exists()
  assert command.main(EXPERIMENT, [*EVERYTHING, f"--workdir={halves}"]) == 0
  assert lines(halves) == lines(whole)
  assert metrics_of(halves) == metrics_of(whole)
  expected, found = arrays_of(whole), arrays_of(halves)
  assert expected.keys() == found.keys()
  for name in expected:
    np.testing.assert_array_equal(expected[name], found[name], err_msg=name)


def arrays_of(workdir):
  """{path: array} of the newest checkpoint, read by Orbax alone."""
  import jax
  from orbax.checkpoint import v1 as ocp

  folder = Path(workdir, "checkpoints").absolute()
  newest = max(int(path.name) for path in folder.iterdir() if path.name.isdigit())
  tree = ocp.load(folder / str(newest), checkpointable_name="state")
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


@pytest.mark.parametrize(
  ("arguments", "complaint"),
  [
    (["--model.kind=denoising"], "needs --noise.kind=gaussian, masking or missing"),
    (["--noise.kind=gaussian", "--noise.sigma=0.3"], "--model.kind=plain with --noise.kind=gaussian"),
    (["--model.kind=denoising", "--noise.kind=gaussian"], "--noise.sigma=0:"),
    (["--model.kind=denoising", "--noise.kind=masking", "--noise.rate=0.1", "--noise.sigma=0.1"], "--noise.sigma=0.1"),
    (["--model.kind=denoising", "--noise.kind=missing"], "--noise.rate=0:"),
    (["--model.kind=denoising", "--noise.kind=masking", "--noise.rate=1"], "from 0 to 0.99"),
    (["--model.beta=2"], "--model.beta is for --model.kind=variational, not plain"),
    ([*VAE, "--model.latent=0"], "--model.latent=1 or more"),
    ([*VAE, "--model.likelihood=gaussian", "--model.binarize"], "for --model.likelihood=bernoulli"),
    ([*VAE, "--model.sigma=0.1"], "for --model.likelihood=gaussian, not bernoulli"),
    ([*VAE, "--model.beta=0", "--model.beta_warmup=0.1"], "to rise to"),
    ([*VAE, "--data.source=sklearn:iris", "--data.batch_size=32"], "--model.likelihood=gaussian takes it"),
    (["--data.mixup=0.2"], "is for classifiers"),
    (["--model.network=conv", "--model.widths=4,4,4,4"], "8x8 cannot be halved 4 times; at most 3 widths do"),
    (["--model.network=conv", "--data.source=sklearn:iris", "--data.batch_size=32"], "needs images"),
    (["--model.latent=0"], "needs --model.network=conv"),
  ],
)
def test_one_line_and_exit_code_2(capsys, in_directory, arguments, complaint):
  assert complaint in refused(capsys, [*arguments, *QUICK])
